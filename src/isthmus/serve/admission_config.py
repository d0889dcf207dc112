"""What a pool's file says of admission: whose part of the blocks is how large, and when to refuse.

    admission:
      quotas:
        alice: {min: 25%, max: 75%, weight: 2}     # of the pool; or a number of blocks: {min: 64}
        "*":   {max: 50%}                          # each tenant without a name here
      quarantine_max: 50%
      waiting_max: 1024
      waiting_per_tenant_max: 256

`min` is kept free for its tenant, whether it uses it or not; the rest is lent by `weight` to whoever asks, up to each
one's `max`. Above `quarantine_max` a worker takes nothing new until proof of drain comes, or a restart.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from isthmus.core.ids import TenantId
from isthmus.core.limits import BLOCKS_PER_POOL_MAX, NAME_CHARS_MAX, REQUESTS_IN_FLIGHT_MAX, TENANTS_PER_POOL_MAX
from isthmus.ownership.quotas import Quota, Quotas

__all__ = ["AdmissionConfig", "QuotaConfig", "blocks_of"]

Share = Annotated[str, Field(pattern=r"^(100|[0-9]{1,2}(\.[0-9]{1,3})?)%$")]
Blocks = Annotated[int, Field(ge=0, le=BLOCKS_PER_POOL_MAX, strict=True)]
Amount = Blocks | Share
"""A number of blocks, or a share of the pool such as `25%`."""

Tenant = Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX)]
OTHERS = "*"


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class QuotaConfig(_Config):
    """One tenant's part."""

    min: Amount = 0
    max: Amount = "100%"
    weight: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 1.0

    def quota(self, num_blocks: int) -> Quota:
        return Quota(
            blocks_min=blocks_of(self.min, num_blocks),
            blocks_max=None if self.max == "100%" else blocks_of(self.max, num_blocks),
            weight=self.weight,
        )


class AdmissionConfig(_Config):
    """Quotas by tenant, and bounds."""

    quotas: Annotated[dict[Tenant, QuotaConfig], Field(max_length=TENANTS_PER_POOL_MAX)] = {}
    quarantine_max: Amount = "50%"
    waiting_max: Annotated[int, Field(ge=1, le=REQUESTS_IN_FLIGHT_MAX)] = REQUESTS_IN_FLIGHT_MAX
    waiting_per_tenant_max: Annotated[int, Field(ge=1, le=REQUESTS_IN_FLIGHT_MAX)] | None = None

    def quotas_for(self, num_blocks: int) -> Quotas:
        """As blocks of a pool. Raises ConfigInvalid where they do not fit it."""
        named = {TenantId(name): quota.quota(num_blocks) for name, quota in self.quotas.items()}
        others = named.pop(TenantId(OTHERS), None)
        return Quotas(num_blocks=num_blocks, tenants=named, others=others)


def blocks_of(amount: int | str, num_blocks: int) -> int:
    """An amount as blocks; shares are rounded down."""
    return amount if isinstance(amount, int) else int(num_blocks * float(amount.removesuffix("%")) / 100)
