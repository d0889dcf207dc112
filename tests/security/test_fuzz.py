"""Whatever a peer, a client or a file says: a typed refusal or a value, soon, and with no memory taken for a promise.

The parsers and their valid inputs are those of `fuzz/targets`, where a coverage-guided fuzzer runs them for longer.
"""

import importlib
import tracemalloc
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FOLDER = Path(__file__).parents[2] / "fuzz" / "targets"
TARGETS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
MODULES = {name: importlib.import_module(f"fuzz.targets.{name}") for name in TARGETS}
SEEDS = {name: module.seeds() for name, module in MODULES.items()}
SLOW = ("deployment", "launch", "journal")
GROWTH = 64
"""How many bytes a parser may take for each that it is given: Python's objects are large. A bomb takes millions."""

PROMISES = [
    kind + size.to_bytes(width, "big")
    for width, kinds in ((4, (b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9")), (2, (b"\xdc", b"\xde", b"\xda", b"\xc5")))
    for kind in kinds
    for size in ((1 << (8 * width)) - 1, (1 << (8 * width - 1)) - 1)
]
"""Headers of msgpack that promise as many elements or bytes as there can be."""


def accepts(module: ModuleType, data: bytes) -> None:
    """Let a parser have its say; what is not one of its refusals gets out."""
    try:
        module.parse(data)
    except module.REFUSALS:
        return


@st.composite
def mutated(draw, seeds: list[bytes]) -> bytes:
    """A valid input, changed in a few places: bytes set, cut out, doubled, replaced, or promised."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(data)))
        stop = draw(st.integers(start, min(len(data), start + 16)))
        match draw(st.integers(0, 5)):
            case 0 if stop > start:
                data[start] = draw(st.integers(0, 255))
            case 1:
                del data[start:stop]
            case 2:
                data[start:start] = data[start:stop] * draw(st.integers(1, 4))
            case 3:
                other = draw(st.sampled_from(seeds))
                data[start:stop] = other[start : start + draw(st.integers(0, 40))]
            case 4:
                data[start:stop] = draw(st.sampled_from(PROMISES))
            case _:
                data[start:stop] = draw(st.binary(max_size=9))
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_valid_inputs_are_taken(name):
    taken = 0
    for seed in SEEDS[name]:
        try:
            MODULES[name].parse(seed)
            taken += 1
        except MODULES[name].REFUSALS:
            continue
    assert taken or name == "tcp_frames", "no seed is valid: mutants of it would test nothing"


@pytest.mark.parametrize("name", TARGETS)
def test_mutants_of_valid_inputs_and_noise_are_refused_by_name_or_taken(name):
    @settings(
        max_examples=60 if name in SLOW else 200,
        deadline=2000,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(data=mutated(SEEDS[name]) | st.binary(max_size=300))
    def fuzz(data: bytes) -> None:
        accepts(MODULES[name], data)

    fuzz()


@pytest.mark.parametrize("name", TARGETS)
def test_no_memory_is_taken_for_a_promise(name):
    """Each seed is cut at every few bytes, and goes on with a header that promises gigabytes."""
    module = MODULES[name]
    accepts(module, SEEDS[name][0])  # what is imported and kept on the first use is not what is measured
    for seed in SEEDS[name][: 2 if name in SLOW else 8]:
        step = max(1, len(seed) // (3 if name in SLOW else 8))
        for cut in range(0, len(seed), step):
            for promise in PROMISES[:: 6 if name in SLOW else 2]:
                data = seed[:cut] + promise
                tracemalloc.start()
                try:
                    accepts(module, data)
                    _, peak = tracemalloc.get_traced_memory()
                finally:
                    tracemalloc.stop()
                assert peak < (1 << 20) * 4 + GROWTH * len(data), (cut, promise)


@pytest.mark.parametrize("name", TARGETS)
def test_nesting_without_end_is_refused(name):
    for opening in (b"\x91", b"\x81\xa1a", b"[", b'{"a":', b"- ", b"a: {"):
        accepts(MODULES[name], opening * 20_000)
        accepts(MODULES[name], SEEDS[name][0][:1] + opening * 20_000)
