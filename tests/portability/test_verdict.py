"""The verdict: what is decided agrees with what is planned, for every pair there is."""

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isthmus.core.errors import GateRefused, Unsupported
from isthmus.portability.compiler import compile_plans
from isthmus.portability.verdict import decide, judge, plans_or_refuse
from isthmus.state.partition import Partition
from isthmus.state.plan import Outcome
from isthmus.state.representation import GroupKind, KvOrder, Layout, attention
from isthmus.state.runtime_kv_state import KVRepresentation
from tests.kernels.test_groups_execute import hybrid_pairs
from tests.portability.test_differences import group, side, static, stored
from tests.state.states import GROUP, IDENTITY
from tests.state.test_sameness import same_by_hand
from tests.strategies import Shape, encoding_of, groups, pairs, partitions, quant_of, shapes, sides, valid

every = settings(max_examples=3 * settings().max_examples, suppress_health_check=list(HealthCheck))


def verdict(one: KVRepresentation, other: KVRepresentation):
    return judge((IDENTITY, one), (IDENTITY, other))


def outcome_of(outcomes: set[Outcome]) -> Outcome:
    """What all plans come to together."""
    moves = outcomes & {Outcome.REDISTRIBUTE, Outcome.REDISTRIBUTE_CONVERT}
    converts = outcomes & {Outcome.CONVERT, Outcome.REDISTRIBUTE_CONVERT}
    if moves:
        return Outcome.REDISTRIBUTE_CONVERT if converts else Outcome.REDISTRIBUTE
    return Outcome.CONVERT if converts else Outcome.DIRECT


@every
@given(st.one_of(pairs(), hybrid_pairs()))
def test_what_is_decided_is_what_the_plans_do(pair):
    found = verdict(*pair)
    assert found.outcome is outcome_of({plan.outcome for plan in found.plans})
    assert found.plans == compile_plans(*pair)
    assert plans_or_refuse(found) == found.plans


@every
@given(st.one_of(pairs(), hybrid_pairs()))
def test_a_plan_converts_exactly_where_its_outcome_says_so(pair):
    for plan in verdict(*pair).plans:
        says = plan.outcome in (Outcome.CONVERT, Outcome.REDISTRIBUTE_CONVERT)
        assert not plan.lossless or not any(c.loss.relative for c in plan.conversions)
        if not plan.converts:
            assert not says
            assert plan.lossless
        if plan.outcome is Outcome.DIRECT:
            assert not plan.converts


@st.composite
def anything(draw) -> KVRepresentation:
    """One side, whatever the other is; with unknown scales and forms that nobody has described among them."""
    one = draw(sides(draw(shapes())))
    (group_,) = one.groups
    match draw(st.sampled_from(["plain", "plain", "opaque", "unknown"])):
        case "opaque":
            group_ = msgspec.structs.replace(group_, interior="opaque:x")
        case "unknown":
            part = group_.components[0]
            encoding = encoding_of("i8", quant_of("tensor", "layer_attr"), transform=part.encoding.transform)
            changed = valid(lambda: msgspec.structs.replace(part, encoding=encoding))
            parts = (changed, *group_.components[1:])
            group_ = valid(lambda: msgspec.structs.replace(group_, components=parts))
    return valid(lambda: KVRepresentation(groups=(group_,), partition=one.partition))


@every
@given(anything(), anything())
def test_any_two_sides_are_judged_without_an_error_and_what_does_not_cross_is_refused(one, other):
    for pair in ((one, other), (one, one)):
        decision, found = decide((IDENTITY, pair[0]), (IDENTITY, pair[1])), verdict(*pair)
        assert found.decision == decision
        opaque = any(group_.opaque for side_ in pair for group_ in side_.groups)
        assert bool(found.plans) == (decision.crosses and not opaque)
        if not found.plans:
            with pytest.raises(Unsupported, match="no plan resolves"):
                plans_or_refuse(found)


OPAQUE = group(interior="opaque:x")


def test_what_nobody_has_described_crosses_to_itself_but_only_in_whole_blocks():
    """No plan: a plan moves rows, and where these lie is not known. A block that is not full could not be cut."""
    found = verdict(side(OPAQUE), side(msgspec.structs.replace(OPAQUE)))
    assert (found.outcome, found.lossless, found.plans) == (Outcome.DIRECT, True, ())
    with pytest.raises(Unsupported):
        plans_or_refuse(found)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (side(OPAQUE), side()),
        (side(OPAQUE), side(OPAQUE, tp_size=2)),
        (side(OPAQUE), side(msgspec.structs.replace(OPAQUE, interior="opaque:y"))),
        (side(stored(static(scale_values=""))), side(stored(static(scale_values="")))),
        (side(stored(static(scale_values=""))), side(stored(static()))),
        (side(stored(encoding_of("u8"))), side(stored(encoding_of("bf16")))),
    ],
)
def test_what_is_not_known_is_unknown_and_never_planned(one, other):
    for pair in ((one, other), (other, one)):
        found = verdict(*pair)
        assert (found.outcome, found.plans, found.lossless) == (Outcome.UNKNOWN, (), False)
        with pytest.raises(Unsupported, match="no plan resolves"):
            plans_or_refuse(found)


def test_a_known_mismatch_outweighs_what_is_not_known():
    other = msgspec.structs.replace(OPAQUE, kind=GroupKind.CROSS)
    assert verdict(side(OPAQUE), side(other)).outcome is Outcome.REJECT


REJECTED = [
    group(layers=(0, 1, 2)),
    group(kind=GroupKind.CHUNKED_LOCAL),
    group(tokens_per_state=4),
    group(components=attention(heads=2, head_size=16, head_size_v=16, encoding=encoding_of("bf16"))),
]


@pytest.mark.parametrize("other", REJECTED)
def test_what_no_plan_resolves_is_refused_by_its_names_and_never_planned(other):
    found = verdict(side(), side(other))
    assert (found.outcome, found.plans, found.lossless) == (Outcome.REJECT, (), False)
    with pytest.raises(Unsupported, match="no plan resolves") as caught:
        plans_or_refuse(found)
    assert all(d.name in str(caught.value) for d in found.differences if d.resolution == "reject")
    with pytest.raises(Unsupported):
        compile_plans(side(), side(other))


def test_scales_that_lie_elsewhere_are_only_moved():
    inline, apart = (encoding_of("i8", quant_of("token_head", place)) for place in ("inline", "side_pool"))
    found = verdict(side(stored(inline)), side(stored(apart)))
    assert (found.outcome, found.lossless) == (Outcome.REDISTRIBUTE, True)


def test_representations_that_fit_do_not_excuse_another_model():
    other = msgspec.structs.replace(IDENTITY, adapter="org/lora")
    found = judge((IDENTITY, side()), (other, side()))
    assert (found.outcome, found.plans) == (Outcome.REJECT, ())
    with pytest.raises(GateRefused, match="adapter"):
        plans_or_refuse(found)


def test_weights_that_are_not_known_to_be_equal_make_the_verdict_unknown():
    weights = msgspec.structs.replace(IDENTITY.weights, digest="")
    unknown = msgspec.structs.replace(IDENTITY, weights=weights)
    found = judge((unknown, side()), (IDENTITY, side()))
    assert (found.outcome, found.plans) == (Outcome.UNKNOWN, ())
    with pytest.raises(GateRefused, match=r"weights\.digest"):
        plans_or_refuse(found)
    rejected = judge((unknown, side()), (IDENTITY, side(group(kind=GroupKind.CROSS))))
    assert rejected.outcome is Outcome.REJECT


def test_bytes_per_token_are_each_sides_own():
    found = verdict(side(stored(encoding_of("bf16"))), side(stored(encoding_of("f8_e4m3fn"))))
    assert (found.producer_bytes_per_token, found.consumer_bytes_per_token) == (2 * 4 * 64, 2 * 4 * 32)
    padded = stored(encoding_of("bf16"), row_bytes=80)
    assert verdict(side(padded), side(padded)).producer_bytes_per_token == 2 * 4 * 80


@st.composite
def placements(draw) -> tuple[KVRepresentation, KVRepresentation]:
    """The same group under two names of its arrangement: mostly, the same bytes."""
    shape = Shape(GroupKind.FULL_ATTENTION, (0,), draw(shapes((GroupKind.FULL_ATTENTION,))).parts)
    one = draw(groups(shape))
    fields = {"layout": draw(st.sampled_from(Layout)), "kv_order": draw(st.sampled_from(KvOrder))}
    other = valid(lambda: msgspec.structs.replace(one, **fields))
    partition = draw(partitions(one))
    return tuple(valid(lambda g=g: KVRepresentation(groups=(g,), partition=partition)) for g in (one, other))


@every
@given(placements())
def test_other_names_for_the_same_bytes_are_direct(pair):
    direct = verdict(*pair).outcome is Outcome.DIRECT
    assert direct == same_by_hand(*pair)


def test_a_side_is_direct_to_itself():
    assert verdict(side(), side()).outcome is Outcome.DIRECT
    assert verdict(side(), side()).plans[0].producer_partition == Partition()
    assert verdict(side(), side()).differences == ()
    assert GROUP.num_layers == 2
