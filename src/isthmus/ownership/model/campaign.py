"""One run of the model checker: scopes explored, walks, mutants killed; and what is reported of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from isthmus.core.clock import Clock
from isthmus.ownership.model.counterexample import Counterexample
from isthmus.ownership.model.explore import NS_PER_SECOND, Explored, explore
from isthmus.ownership.model.mutant import Mutant
from isthmus.ownership.model.rules import PRODUCTION
from isthmus.ownership.model.scopes import Named
from isthmus.ownership.model.show import story
from isthmus.ownership.model.space import Space
from isthmus.ownership.model.violations import Violation
from isthmus.ownership.model.walk import Walked, walk

__all__ = ["Campaign", "MutantRun", "ScopeRun", "run_campaign"]

Say = Callable[[str], None]

_TELL_EVERY_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeRun:
    """One scope's search (and walks), how many views it came from, and which of the things that must happen did."""

    named: Named
    explored: Explored
    walked: Walked | None
    views: int
    sometimes: dict[str, bool]
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MutantRun:
    """One mutant: what was found instead of the guard, and in how many moves."""

    mutant: Mutant
    states: int
    found: str
    moves: int
    seconds: float

    @property
    def killed(self) -> bool:
        return self.found == self.mutant.violates


@dataclass(slots=True, kw_only=True)
class Campaign:
    """All of a run."""

    scopes: list[ScopeRun] = field(default_factory=list)
    mutants: list[MutantRun] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Nothing is wrong, all that must happen has, and no mutant lives."""
        seen = all(all(run.sometimes.values()) and not run.wrong for run in self.scopes)
        return seen and all(run.killed for run in self.mutants)

    def summary(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "ok": self.ok,
            "states": sum(run.explored.states for run in self.scopes),
            "transitions": sum(run.explored.transitions for run in self.scopes),
            "seconds": round(self.seconds, 3),
            "violations": [line for run in self.scopes for line in run.wrong],
            "mutants": len(self.mutants),
            "mutants_killed": sum(run.killed for run in self.mutants),
            "scopes": [_scope_row(run) for run in self.scopes],
            "sometimes": {run.named.scope.name: run.sometimes for run in self.scopes},
            "mutant_rows": [_mutant_row(run) for run in self.mutants],
        }


def run_campaign(
    scopes: Sequence[Named], mutants: Sequence[Mutant], *, walks: int, seed: int, clock: Clock, say: Say
) -> Campaign:
    """Explore, walk where a scope is not exhausted, and hunt mutants. `say` hears of progress."""
    began = clock.now()
    campaign = Campaign()
    for named in scopes:
        campaign.scopes.append(_run_scope(named, walks, seed, clock, say))
    for mutant in mutants:
        run = _run_mutant(mutant, clock)
        verdict = "killed" if run.killed else f"LIVES, wanted {mutant.violates}"
        say(f"mutant {mutant.name}: {verdict}: {run.found or 'nothing found'} in {run.moves} moves")
        campaign.mutants.append(run)
    campaign.seconds = (clock.now() - began) / NS_PER_SECOND
    return campaign


def _run_scope(named: Named, walks: int, seed: int, clock: Clock, say: Say) -> ScopeRun:
    scope = named.scope
    space = Space(scope, PRODUCTION)
    last = 0.0

    def tell(depth: int, states: int, seconds: float) -> None:
        nonlocal last
        if seconds - last >= _TELL_EVERY_SECONDS:
            last = seconds
            say(f"{scope.name}: depth {depth}, {states:,} states, {states / seconds:,.0f} states/s")

    explored = explore(space, clock, tell=tell)
    wrong = list(_told(space, explored.counterexample))
    walked: Walked | None = None
    if scope.depth_max is not None and not wrong:
        walked = walk(scope, PRODUCTION, walks=walks, seed=seed)
        if walked.story:
            wrong.append("\n".join((f"{scope.name}, walking:", *walked.story)))
    try:
        space.check_progress()
    except Violation as violation:
        wrong.append(f"{scope.name}: {violation}")
    marks = space.marks if walked is None else space.marks | walked.marks
    sometimes = {line: line in marks for line in named.sometimes}
    rate = explored.states / max(explored.seconds, 1e-9)
    say(f"{scope.name}: {explored.states:,} states, depth {explored.depth}, {rate:,.0f} states/s")
    return ScopeRun(
        named=named, explored=explored, walked=walked, views=space.views, sometimes=sometimes, wrong=tuple(wrong)
    )


def _told(space: Space, counterexample: Counterexample | None) -> list[str]:
    if counterexample is None:
        return []
    return ["\n".join((f"{space.scope.name}:", *story(counterexample, space.steps, space.scope.parts)))]


def _run_mutant(mutant: Mutant, clock: Clock) -> MutantRun:
    explored = explore(Space(mutant.scope, mutant.rules()), clock)
    found = explored.counterexample
    return MutantRun(
        mutant=mutant,
        states=explored.states,
        found="" if found is None else found.violation.invariant,
        moves=0 if found is None else len(found.steps),
        seconds=explored.seconds,
    )


def _scope_row(run: ScopeRun) -> dict[str, object]:
    explored, scope = run.explored, run.named.scope
    row: dict[str, object] = {
        "name": scope.name,
        "about": scope.about,
        "states": explored.states,
        "transitions": explored.transitions,
        "quiescent": explored.quiescent,
        "views": run.views,
        "depth": explored.depth,
        "exhausted": explored.exhausted,
        "reduced": scope.reduced,
        "seconds": round(explored.seconds, 3),
        "states_per_second": round(explored.states / max(explored.seconds, 1e-9)),
    }
    if run.walked is not None:
        walked = run.walked
        row["walks"] = {
            "walks": walked.walks,
            "moves": walked.moves,
            "states": walked.states,
            "longest": walked.longest,
        }
    return row


def _mutant_row(run: MutantRun) -> dict[str, object]:
    mutant = run.mutant
    return {
        "name": mutant.name,
        "removes": mutant.removes,
        "expected": mutant.violates,
        "found": run.found,
        "killed": run.killed,
        "moves": run.moves,
        "states": run.states,
        "seconds": round(run.seconds, 3),
    }
