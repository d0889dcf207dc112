"""The gate: each field of identity, one at a time."""

import msgspec
import pytest
from hypothesis import given

from isthmus.core.errors import GateRefused
from isthmus.portability.gate import gate, refuse_unless_passed
from isthmus.state.identity import UNVERIFIED
from tests.state.states import IDENTITY, identities

# path of the field, another value of it
DIFFERENCES = [
    ("lineage.base_model", "org/other"),
    ("lineage.revision", "v2"),
    ("weights.digest", "cd" * 32),
    ("weights.digest", ""),
    ("rope.applied", False),
    ("rope.theta", 500_000.0),
    ("rope.theta", 10_000.000001),
    ("rope.rope_dim", 8),
    ("rope.style", "interleaved"),
    ("rope.scaling_digest", "ef" * 32),
    ("rope.position_origin", 1),
    ("architecture_digest", "ef" * 32),
    ("adapter", "org/lora"),
    ("multimodal_digest", "ef" * 32),
]


def changed(path: str, value: object, identity=IDENTITY):
    *outer, name = path.split(".")
    if not outer:
        return msgspec.structs.replace(identity, **{name: value})
    inner = msgspec.structs.replace(getattr(identity, outer[0]), **{name: value})
    return msgspec.structs.replace(identity, **{outer[0]: inner})


def leaves(value: msgspec.Struct, prefix: str = ""):
    for name in value.__struct_fields__:
        child = getattr(value, name)
        if isinstance(child, msgspec.Struct):
            yield from leaves(child, f"{prefix}{name}.")
        else:
            yield prefix + name


@pytest.mark.parametrize(("path", "value"), DIFFERENCES)
def test_a_field_in_which_two_sides_differ_is_refused_by_its_name_whichever_side_it_is_on(path, value):
    other = changed(path, value)
    for producer, consumer in ((IDENTITY, other), (other, IDENTITY)):
        result = gate(producer, consumer)
        (mismatch,) = result.mismatches
        assert (mismatch.field, result.passed) == (path, False)
        with pytest.raises(GateRefused, match=r"Serve the same model on both sides") as caught:
            refuse_unless_passed(result)
        assert caught.value.field == f"identity.{path}"
        assert f"producer {mismatch.producer!r}, consumer {mismatch.consumer!r}" in str(caught.value)


def test_the_table_has_every_field_that_the_gate_refuses():
    assert {path for path, _ in DIFFERENCES} | {"weights.dtype", "weights.published"} == set(leaves(IDENTITY))


def test_equal_identities_pass_without_an_assumption():
    result = gate(IDENTITY, IDENTITY)
    assert result.passed
    assert result.assumptions == ()
    refuse_unless_passed(result)


def test_another_precision_of_a_lineage_that_nobody_vouches_for_is_refused():
    unverified = changed("lineage.revision", UNVERIFIED)
    assert gate(unverified, unverified).passed  # equal weights speak for themselves
    (mismatch,) = gate(unverified, changed("weights.dtype", "int8", unverified)).mismatches
    assert mismatch.field == "lineage.revision"


@pytest.mark.parametrize("digest", ["cd" * 32, IDENTITY.weights.digest])
def test_another_precision_of_the_same_lineage_passes_as_a_stated_assumption(digest):
    other = changed("weights.digest", digest, changed("weights.dtype", "int8"))
    result = gate(IDENTITY, other)
    assert result.passed
    (assumption,) = result.assumptions
    for word in ("prefill in bfloat16", "decode in int8", "org/model@main"):
        assert word in assumption.value + assumption.why


@pytest.mark.parametrize(("path", "value"), [(p, v) for p, v in DIFFERENCES if not p.startswith("weights")])
def test_another_precision_excuses_no_other_difference(path, value):
    result = gate(IDENTITY, changed(path, value, changed("weights.dtype", "int8")))
    assert [mismatch.field for mismatch in result.mismatches] == [path]


def test_weights_that_are_unknown_on_both_sides_are_not_thereby_the_same():
    unknown = changed("weights.digest", "")
    (mismatch,) = gate(unknown, unknown).mismatches
    assert (mismatch.field, mismatch.producer) == ("weights.digest", "unknown")


PUBLISHED = changed("weights.digest", "", changed("weights.published", "org/model@main"))


def test_weights_that_nobody_has_read_pass_by_the_name_they_are_published_under_as_a_stated_assumption():
    result = gate(PUBLISHED, PUBLISHED)
    assert result.passed
    (assumption,) = result.assumptions
    assert (assumption.field, assumption.value) == ("weights.digest", "as published: org/model@main")


def test_weights_published_under_another_name_in_one_precision_are_another_models():
    (mismatch,) = gate(PUBLISHED, changed("weights.published", "org/copy@main", PUBLISHED)).mismatches
    assert (mismatch.field, mismatch.unknown) == ("weights.published", False)


def test_a_name_does_not_excuse_a_digest():
    named = changed("weights.published", "org/model@main")
    (mismatch,) = gate(named, changed("weights.digest", "cd" * 32, named)).mismatches
    assert mismatch.field == "weights.digest"


def test_a_digest_against_a_name_is_unknown_and_not_a_mismatch():
    result = gate(PUBLISHED, IDENTITY)
    assert (result.passed, result.unknown) == (False, True)
    assert not gate(changed("adapter", "x", PUBLISHED), IDENTITY).unknown


def test_all_differences_are_named_and_the_first_is_the_errors_field():
    other = changed("adapter", "org/lora", changed("rope.theta", 5e5, changed("lineage.revision", "v2")))
    result = gate(IDENTITY, other)
    assert [m.field for m in result.mismatches] == ["lineage.revision", "rope.theta", "adapter"]
    with pytest.raises(GateRefused) as caught:
        refuse_unless_passed(result)
    assert caught.value.field == "identity.lineage.revision"
    assert all(m.field in str(caught.value) for m in result.mismatches)


@given(identities, identities)
def test_the_gate_passes_exactly_identities_equal_but_for_weights_that_are_known_or_named_to_agree(one, other):
    same = one == other and bool(one.weights.digest or one.weights.published)
    assert gate(one, other).passed == (same or _differs_in_weights_only(one, other))
    assert gate(one, other).passed == gate(other, one).passed


def _differs_in_weights_only(one, other) -> bool:
    aligned = msgspec.structs.replace(other, weights=one.weights)
    ours, theirs = one.weights, other.weights
    if aligned != one or ours.dtype != theirs.dtype:
        return aligned == one
    if ours.digest and theirs.digest:
        return ours.digest == theirs.digest
    return bool(ours.published) and ours.published == theirs.published
