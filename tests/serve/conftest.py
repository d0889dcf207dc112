"""Fleets of real processes, one at a time: the machine has two cores."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from isthmus.engines.embedded.prepare import prepare_smollm2
from tests.engines.models import save_tiny
from tests.serve.fleet import Fleet
from tests.serve.reference import Reference, answer_alone
from tests.serve.shapes import PAIR, QUAD, deployment_of

CACHE = Path(__file__).parents[2] / ".cache" / "isthmus"
RUNNING = pytest.StashKey["Fleets"]()


class Fleets:
    """The fleet that runs now. Another shape ends it first; the same is healed and used again."""

    def __init__(self, model: Path, folder: Path) -> None:
        self._model = model
        self._folder = folder
        self._count = 0
        self._pools: tuple[dict[str, Any], ...] = ()
        self.now: Fleet | None = None

    async def use(self, pools: tuple[dict[str, Any], ...]) -> Fleet:
        if self.now is None or pools is not self._pools:
            await self.stop()
            self._count += 1
            self.now = Fleet(deployment_of(pools, self._model), self._folder / str(self._count))
            self._pools = pools
            await self.now.__aenter__()
        await self.now.heal()
        return self.now

    async def stop(self) -> None:
        fleet, self.now = self.now, None
        if fleet is not None:
            await fleet.__aexit__()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return prepare_smollm2(CACHE)


@pytest.fixture(scope="session")
def other_model(smollm2, tmp_path_factory) -> Path:
    """A tiny random Llama with SmolLM2's tokenizer."""
    folder = save_tiny(
        "llama", tmp_path_factory.mktemp("models") / "other", vocab_size=49152, max_position_embeddings=1024
    )
    for file in smollm2.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="session")
def reference(smollm2) -> tuple[Reference, ...]:
    return answer_alone(smollm2)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def fleets(request, smollm2, tmp_path_factory) -> AsyncIterator[Fleets]:
    held = Fleets(smollm2, tmp_path_factory.mktemp("fleets"))
    request.config.stash[RUNNING] = held
    try:
        yield held
    finally:
        await held.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def pair(fleets) -> Fleet:
    """One prefill and one decode worker."""
    return await fleets.use(PAIR)


@pytest_asyncio.fixture(loop_scope="session")
async def quad(fleets) -> Fleet:
    """Two prefill and two decode workers, no two alike."""
    return await fleets.use(QUAD)


def pytest_collection_modifyitems(items):
    """Those of one fleet together, so that each is started once; else as they came."""
    ours = [item for item in items if Path(__file__).parent in item.path.parents]
    slots = [items.index(item) for item in ours]
    ours.sort(key=lambda item: ("pair" in item.fixturenames) + 2 * ("quad" in item.fixturenames))
    for slot, item in zip(slots, ours, strict=True):
        items[slot] = item


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    fleets = item.config.stash.get(RUNNING, None)
    if report.failed and fleets is not None and fleets.now is not None:
        report.sections.append(("ends of the processes' logs", fleets.now.tails()))
    return report
