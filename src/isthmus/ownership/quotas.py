"""Each tenant's part of a pool: a guaranteed minimum, a maximum, and a weight for what lies between.

    0 ───── blocks_min ─────────────────── blocks_max ───── num_blocks
      kept     lent to whoever asks, in         never
      free     proportion to weights

A minimum is kept free while its tenant is idle: a hand-off cannot be taken back, so what is lent is gone until its
borrower ends. Everything above the minimums is work-conserving: a tenant that is alone may have it up to its maximum,
and one that comes back is first in line for the next release (`fair_queue`). Retained cache may lie in kept blocks,
because it can be taken back.

Owns the arithmetic that keeps I10 for each tenant: the sum over tenants of max(minimum, held) never exceeds the pool.
Refuses to know who waits and what is free.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from isthmus.core.errors import ConfigInvalid
from isthmus.core.ids import TenantId
from isthmus.core.limits import TENANTS_PER_POOL_MAX

__all__ = ["Quota", "Quotas"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """One tenant's part. `blocks_max` None: the whole pool."""

    blocks_min: int = 0
    blocks_max: int | None = None
    weight: float = 1.0


class Quotas:
    """The quotas of one pool: of the tenants named, and one for each of all others.

    Raises:
        ConfigInvalid: a quota contradicts itself, or the minimums do not fit the pool together.
    """

    def __init__(
        self, *, num_blocks: int, tenants: Mapping[TenantId, Quota] | None = None, others: Quota | None = None
    ) -> None:
        self._num_blocks = num_blocks
        self._tenants = dict(tenants or {})
        self._others = others or Quota()
        self._guaranteed = [(tenant, quota.blocks_min) for tenant, quota in self._tenants.items() if quota.blocks_min]
        self.guaranteed = sum(blocks for _, blocks in self._guaranteed)
        self._blocks_max = {tenant: self._most(quota) for tenant, quota in self._tenants.items()}
        self._blocks_max_of_others = self._most(self._others)
        self._check()

    def of(self, tenant: TenantId) -> Quota:
        return self._tenants.get(tenant, self._others)

    def blocks_max(self, tenant: TenantId) -> int:
        """The most that the tenant may hold at once."""
        return self._blocks_max.get(tenant, self._blocks_max_of_others)

    def _most(self, quota: Quota) -> int:
        unguaranteed = self._num_blocks - self.guaranteed + quota.blocks_min
        return unguaranteed if quota.blocks_max is None else min(quota.blocks_max, unguaranteed)

    def unguaranteed_to(self, tenant: TenantId) -> int:
        """The pool without what is guaranteed to others."""
        return self._num_blocks - self.guaranteed + self.of(tenant).blocks_min

    def kept_from(self, tenant: TenantId, held_by: Callable[[TenantId], int]) -> int:
        """Blocks that must stay free of `tenant`: what others are guaranteed and do not hold."""
        if not self._guaranteed:
            return 0
        return sum(max(0, blocks_min - held_by(other)) for other, blocks_min in self._guaranteed if other != tenant)

    def _check(self) -> None:
        if len(self._tenants) > TENANTS_PER_POOL_MAX:
            raise ConfigInvalid(
                f"quotas: {len(self._tenants)} tenants, wanted at most {TENANTS_PER_POOL_MAX}", field="quotas"
            )
        for name, quota in (*self._tenants.items(), ("*", self._others)):
            most = self._num_blocks if quota.blocks_max is None else quota.blocks_max
            if not 0 <= quota.blocks_min <= most <= self._num_blocks or most < 1:
                raise ConfigInvalid(
                    f"quotas.{name}: min {quota.blocks_min}, max {most} blocks; wanted 0 <= min <= max <= "
                    f"num_blocks = {self._num_blocks}, and max at least 1",
                    field=f"quotas.{name}",
                )
            if not (math.isfinite(quota.weight) and quota.weight > 0):
                raise ConfigInvalid(
                    f"quotas.{name}.weight: got {quota.weight}, wanted more than 0", field=f"quotas.{name}.weight"
                )
        if self._others.blocks_min:
            raise ConfigInvalid(
                f"quotas.*.min: got {self._others.blocks_min}, wanted 0: tenants without a name here cannot be "
                "counted, so nothing can be kept for each of them",
                field="quotas.*.min",
            )
        if self.guaranteed > self._num_blocks:
            raise ConfigInvalid(
                f"quotas: the minimums add up to {self.guaranteed} blocks, wanted at most "
                f"num_blocks = {self._num_blocks}",
                field="quotas",
            )
        for tenant in (*self._tenants, TenantId("*")):
            if self.blocks_max(tenant) < 1:
                raise ConfigInvalid(
                    f"quotas.{tenant}: the minimums of others leave it no block, wanted at least 1",
                    field=f"quotas.{tenant}",
                )
