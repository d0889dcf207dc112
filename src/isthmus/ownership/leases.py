"""Leases on the monotonic clock, and the loop that ends those that have run out.

The reaper depends on no new work: it ticks by the clock alone. Each tick looks at *every* hand-off; one that was
renewed in place hides none behind it (vllm #58222).
"""

from collections.abc import Callable

from isthmus.core.clock import Clock, Instant
from isthmus.core.errors import Bug
from isthmus.core.units import Duration

__all__ = ["left", "reap_forever", "renewal_interval"]

_TICKS_PER_LEASE = 8
_RENEWALS_PER_LEASE = 3


def left(lease_ends: Instant, now: Instant) -> Duration:
    """How long a lease still lasts; zero once it is over."""
    return Duration(max(0, lease_ends - now))


def renewal_interval(lease: Duration) -> Duration:
    """How often a holder renews: two renewals may be lost before the lease is."""
    return lease / _RENEWALS_PER_LEASE


async def reap_forever(clock: Clock, lease: Duration, *reap: Callable[[], object]) -> None:
    """Call each of `reap` several times per `lease`, until cancelled. An overdue lease ends within an eighth of one."""
    if lease.ns < _TICKS_PER_LEASE:
        raise Bug(f"a lease of {lease} cannot be watched", field="lease")
    while True:
        await clock.sleep(lease / _TICKS_PER_LEASE)
        for each in reap:
            each()
