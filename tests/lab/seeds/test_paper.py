"""The model on paper and its forms agree with the definitions in `kernels.reference`."""

import itertools

import numpy as np
import pytest

from isthmus.kernels import reference
from isthmus.kernels.binding import bind
from isthmus.lab.seeds.forms import FORMS, Form, converted, decode, digest, encode, table, verdict
from isthmus.lab.seeds.paper import FIELDS, LAYERS, answer, history, kv, next_token
from isthmus.state.identity import TokenRange

TOKENS = tuple(range(40, 51))
PAIRS = list(itertools.product(FORMS, FORMS))


def regions_of(plan, side: str, num_blocks: int, memory: np.ndarray) -> list[list[np.ndarray]]:
    """A flat memory as regions by [shard][region]."""
    found, start = [], 0
    for shard in getattr(plan, f"{side}_shards"):
        regions = []
        for region in shard.regions:
            size = region.size_bytes(num_blocks)
            regions.append(memory[start : start + size])
            start += size
        found.append(regions)
    return found


@pytest.mark.parametrize(("producer", "consumer"), PAIRS, ids=lambda form: form.name)
def test_a_plan_by_its_tables_is_the_plan_by_the_reference(producer: Form, consumer: Form) -> None:
    plan = verdict(producer, consumer).plans[0]
    counts = [9, 11]
    memories = [
        np.zeros(table(plan, n, producer=p).max() + 1, np.uint8) for n, p in zip(counts, (True, False), strict=True)
    ]
    source, wanted = memories[0], memories[1].copy()
    mine, theirs = table(plan, counts[0], producer=True), table(plan, counts[1], producer=False)
    slots = np.arange(len(TOKENS))
    source[mine[:, :, slots]] = encode(kv(history(TOKENS)), producer.storage)
    blocks = [range(counts[0]), range(counts[1])]
    binding = bind(
        plan,
        TokenRange(start=0, stop=len(TOKENS)),
        producer_blocks=blocks[0],
        producer_num_blocks=counts[0],
        consumer_blocks=blocks[1],
        consumer_num_blocks=counts[1],
    )
    reference.execute(
        plan,
        binding,
        regions_of(plan, "producer", counts[0], source),
        regions_of(plan, "consumer", counts[1], wanted),
    )
    rows, lost = converted(plan, source[mine[:, :, slots]])
    found = memories[1]
    found[theirs[:, :, slots]] = rows
    assert not any(lost.saturated.values())
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_the_digest_is_the_references(form: Form) -> None:
    rows = encode(kv(history(TOKENS)), form.storage)
    by_name = dict(zip(FIELDS, rows, strict=True))
    wanted = reference.digest(by_name, layers=range(LAYERS), tokens=range(len(TOKENS)), head_start=0)
    assert digest(rows) == wanted


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_no_form_loses_a_value(form: Form) -> None:
    values = kv(history(range(64)))
    assert np.array_equal(decode(encode(values, form.storage), form.storage), values)


def test_any_flipped_bit_of_any_row_changes_the_next_token() -> None:
    form = FORMS[0]
    rows = encode(kv(history(TOKENS)), form.storage)
    right = next_token(decode(rows, form.storage), 0)
    flat = rows.reshape(-1)
    for byte in range(len(flat)):
        flat[byte] ^= 1 << byte % 8
        assert next_token(decode(rows, form.storage), 0) != right, byte
        flat[byte] ^= 1 << byte % 8


def test_an_answer_that_is_gone_on_with_is_the_same() -> None:
    whole = answer(TOKENS, 6)
    numbers = history((*TOKENS, *whole[:3]))
    assert next_token(kv(numbers), 3) == whole[3]
