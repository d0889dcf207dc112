"""Every pair of `pairs.yaml`: what was worked out by hand, what is stored, and what its plans do to bytes."""

import json
from zlib import crc32

import numpy as np
import pytest

from tests.golden.pairs import REPORTS, Pair, computed, described, pairs, shortened
from tests.golden.scaled import scaled
from tests.kernels.cases import Case, cases_of
from tests.kernels.test_plans_execute import allowed, by_hand, execute

PAIRS = pairs()
CROSSING = ("direct", "redistribute", "convert", "redistribute+convert")
BY_HAND = [
    pytest.param(pair, id=pair.name, marks=[pytest.mark.xfail(reason=pair.bug, strict=True)] if pair.bug else [])
    for pair in PAIRS
]
SOUND = [pytest.param(pair, id=pair.name) for pair in PAIRS if not pair.bug]
RUNS = [param for param in SOUND if param.values[0].verdict in CROSSING]


def test_there_are_enough_pairs_each_under_a_name_of_its_own():
    assert len(PAIRS) >= 60
    assert len({pair.name for pair in PAIRS}) == len(PAIRS)
    assert {pair.verdict for pair in PAIRS} == {*CROSSING, "reject", "unknown"}
    assert all(pair.source for pair in PAIRS)


@pytest.mark.parametrize("pair", BY_HAND)
def test_the_verdict_is_the_one_worked_out_by_hand(pair: Pair):
    found = computed(pair.producer, pair.consumer)
    assert found["verdict"] == pair.verdict
    assert set(pair.fields) <= {difference["field"] for difference in found["differences"]}
    assert set(pair.assumed) <= {each["field"] for each in found["assumed"]}
    outcomes = {each["connector"]: each["outcome"] for each in found["without_isthmus"]}
    assert {title: outcomes[title] for title in pair.without} == pair.without


@pytest.mark.parametrize("pair", SOUND)
def test_the_report_is_the_stored_one(pair: Pair):
    path = REPORTS / f"{pair.name}.json"
    how = "if the new report is right, run `python -m tests.golden.write` and read the difference before committing it"
    assert path.is_file(), f"{path} is missing; {how}"
    found = json.loads(json.dumps(shortened(computed(pair.producer, pair.consumer))))
    assert found == json.loads(path.read_bytes()), f"{path} differs; {how}"


def test_no_report_is_stored_for_a_pair_that_is_gone():
    assert {path.stem for path in REPORTS.glob("*.json")} == {param.values[0].name for param in SOUND}


@pytest.mark.parametrize("pair", RUNS)
def test_the_resolutions_and_the_plans_say_the_same_as_the_verdict(pair: Pair):
    found = computed(pair.producer, pair.consumer)
    resolutions = {difference["resolution"] for difference in found["differences"]}
    said = {word for word in ("redistribute", "convert") if word in resolutions}
    assert set(pair.verdict.split("+")) - {"direct"} == said
    if found["plan"] is None:  # an opaque interior: blocks may cross whole, and only as they are
        assert pair.verdict == "direct"
        return
    assert {word for group in found["plan"]["groups"] for word in group["outcome"].split("+")} - {"direct"} == said


@pytest.mark.parametrize("pair", RUNS)
def test_plans_do_to_bytes_what_decoding_by_one_side_and_encoding_by_the_other_does(pair: Pair):
    """On two layers of each group and some tokens: every byte that moves as it is, every element within its bound."""
    sides = described(pair.producer).representation, described(pair.consumer).representation
    if any(group.opaque for side in sides for group in side.groups):
        pytest.skip("bytes that nobody describes are carried whole")
    for case in cases_of(scaled(*sides), seed=crc32(pair.name.encode())):
        counts = execute(case)
        arrived = case.target.get(case.binding.rows, case.layers)
        wanted, saturated = by_hand(case)
        for field, rows in wanted.items():
            np.testing.assert_array_equal(arrived[field], rows)
        assert all(counts.saturated.get(name, 0) == count for name, count in saturated.items())
        assert_within_the_bound(case, arrived, counts)


def assert_within_the_bound(case: Case, arrived, counts) -> None:
    from tests.byhand import meaning_of

    for part in case.plan.producer.components:
        other, conversion = case.plan.consumer.component(part.name), case.plan.conversion(part.name)
        before = meaning_of(part, case.data, case.layers)
        after = meaning_of(other, arrived, case.layers)
        distance = np.abs(after.astype(np.float64) - before)
        outside = ~(distance <= allowed(conversion, other, arrived, before, case))
        assert int(outside.sum()) <= counts.saturated.get(part.name, 0)


def test_a_side_that_no_rule_covers_is_unknown_by_the_name_of_a_field():
    unknown = [pair for pair in PAIRS if pair.verdict == "unknown" and not pair.bug]
    fields = [computed(pair.producer, pair.consumer).get("unknown", {}).get("field") for pair in unknown]
    assert sum(field is not None for field in fields) >= 5
    assert "" not in fields
