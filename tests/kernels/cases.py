"""A filled producer's pool, an empty consumer's, and the plan between them."""

from dataclasses import dataclass

import numpy as np

from isthmus.kernels.binding import Binding, bind
from isthmus.portability.alignment import Meeting
from isthmus.portability.compiler import compile_plan, compile_plans
from isthmus.state.identity import TokenRange
from isthmus.state.plan import TransformPlan
from isthmus.state.runtime_kv_state import KVRepresentation
from tests.byhand import Pool, Rows, layer_scales, pool_of, random_rows


@dataclass(frozen=True)
class Case:
    """One plan, bound. `data` are the producer's bound rows, of the layers that both sides hold."""

    plan: TransformPlan
    binding: Binding
    source: Pool
    target: Pool
    data: Rows
    layers: tuple[int, ...]

    def scales(self, side: str) -> dict[str, np.ndarray]:
        """A side's static scales, as `reference.execute` takes them; but for those that are all one."""
        components = getattr(self.plan, side).components
        found = {part.name: layer_scales(part, self.layers) for part in components}
        known = {part.name for part in components if part.encoding.quant and part.encoding.quant.scale_values != "ones"}
        return {name: scales for name, scales in found.items() if scales is not None and name in known}

    def swapped(self) -> Binding:
        return Binding(rows=self.binding.rows, producer=self.binding.consumer, consumer=self.binding.producer)


def tokens_of(rng: np.random.Generator) -> TokenRange:
    start = int(rng.integers(0, 9))
    return TokenRange(start=start, stop=start + int(rng.integers(1, 14)))


def bound(plan: TransformPlan, tokens: TokenRange, source: Pool, target: Pool) -> Binding:
    return bind(
        plan,
        tokens,
        producer_blocks=source.table,
        producer_num_blocks=source.num_blocks,
        consumer_blocks=target.table,
        consumer_num_blocks=target.num_blocks,
    )


def a_case(pair: tuple[KVRepresentation, KVRepresentation], seed: int) -> Case:
    """The plan of two sides of one group each, with a pool of random rows."""
    rng = np.random.default_rng(seed)
    tokens = tokens_of(rng)
    source, target = (pool_of(side, 0, tokens, rng) for side in pair)
    return _filled(rng, pair, Meeting(0, 0, pair[0].groups[0].layers), tokens, source, target)


def cases_of(pair: tuple[KVRepresentation, KVRepresentation], seed: int) -> list[Case]:
    """All plans of two sides of several groups each. Plans of one group share its pool."""
    rng = np.random.default_rng(seed)
    tokens = tokens_of(rng)
    sources, targets = ([pool_of(side, at, tokens, rng) for at in range(len(side.groups))] for side in pair)
    found = []
    for plan in compile_plans(*pair):
        layers = tuple(sorted({layer for part in plan.parts for layer in part.layers}))
        meeting = Meeting(plan.producer_group, plan.consumer_group, layers)
        found.append(_filled(rng, pair, meeting, tokens, sources[meeting.producer], targets[meeting.consumer]))
    return found


def _filled(rng, pair, meeting: Meeting, tokens: TokenRange, source: Pool, target: Pool) -> Case:
    plan = compile_plan(*pair, meeting)
    binding = bound(plan, tokens, source, target)
    group = source.group
    data = random_rows(rng, group, len(binding.rows))
    held = [group.layers.index(layer) for layer in meeting.layers]
    data = {name: rows[held] for name, rows in data.items()}
    source.put(binding.rows, meeting.layers, data)
    return Case(plan, binding, source, target, data, meeting.layers)
