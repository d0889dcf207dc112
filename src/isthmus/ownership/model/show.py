"""Counterexamples for people: who did what, and how things stood after it."""

from collections.abc import Iterator

from isthmus.ownership.accounts import BlockState
from isthmus.ownership.model.counterexample import Counterexample
from isthmus.ownership.model.packing import World
from isthmus.ownership.model.records import MINE, NOBODY, PREFIX, Request, Slot
from isthmus.ownership.model.rules import Steps

__all__ = ["story"]


def story(counterexample: Counterexample, steps: Steps, parts: int) -> Iterator[str]:
    """One numbered line a move, one line below it for the state, and the violation last."""
    for number, step in enumerate(counterexample.steps, 1):
        yield f"{number:3}  {step.label}"
        if step.world is not None:
            yield f"       {_world(step.world, steps, parts)}"
    yield f"  =>  {counterexample.violation}"


def _world(world: World, steps: Steps, parts: int) -> str:
    lines = [f"r{index} {_request(request, steps)}" for index, request in enumerate(world.requests) if request.begun]
    for name, workers in (("p", world.producers), ("c", world.consumers)):
        for index, worker in enumerate(workers):
            blocks = " ".join(_slot(slot, parts) for slot in worker.slots)
            condition = " paused" if worker.paused else ""
            lines.append(f"{name}{index}{condition} [{blocks}]")
    return "; ".join(lines)


def _request(request: Request, steps: Steps) -> str:
    if request.ended:
        return "ended"
    destination = steps.destinations[request.destination]
    there = "gone" if destination is None else destination.phase.value
    sides = []
    for part in request.parts:
        source = steps.sources[part.source]
        here = "none" if source is None else source.phase.value
        over = " (lease over)" if part.over else ""
        copied = "".join("+" if chunk == MINE else "x" for chunk in part.copied)
        sides.append(f"{here}{over}{' copied ' + copied if copied else ''}")
    return f"{'|'.join(sides)} -> {there}"


def _slot(slot: Slot, parts: int) -> str:
    account = BlockState(slot.account).name.lower()
    owner = " prefix" if slot.owner == PREFIX else "" if slot.owner == NOBODY else f" of r{slot.owner // parts}"
    bytes_ = ",".join("-" if stamp == 0 else "?" if stamp < 0 else f"r{(stamp - 1) // parts}" for stamp in slot.stamps)
    return f"{account}{owner} {bytes_}"
