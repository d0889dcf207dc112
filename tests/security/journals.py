"""A journal of a few real hand-offs, as bytes."""

import asyncio
import tempfile
from pathlib import Path

from isthmus.core.clock import ManualClock
from isthmus.core.ids import HandoffId
from isthmus.core.units import Duration
from isthmus.ownership import Capacity, Ledger, SourceOwner, TransportKind
from isthmus.ownership.journal import Header, JournalWriter
from isthmus.ownership.side import Side
from tests.ownership.worlds import DECODE, DECODE_LIFE, LEASE, PREFILL, PREFILL_LIFE, TENANT, grant_of

__all__ = ["a_journal"]


def a_journal(clock: ManualClock) -> bytes:
    """One life in which one hand-off is confirmed, one abandoned, and one runs out."""
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(_live(Path(name), clock))
        (file,) = Path(name).iterdir()
        return file.read_bytes()


async def _live(folder: Path, clock: ManualClock) -> None:
    ledger = Ledger(num_blocks=8, block_bytes=10, staging_bytes=0)
    header = Header(
        side=Side.PRODUCER,
        worker=PREFILL,
        incarnation=PREFILL_LIFE,
        sole_tenant=TENANT,
        num_blocks=8,
        block_bytes=10,
        staging_bytes=0,
        lease_ms=LEASE.ms,
        clock="c" * 32,
        began=clock.now(),
        began_unix_seconds=0,
    )
    journal = JournalWriter(folder, header)
    owner = SourceOwner(
        ledger=ledger,
        capacity=Capacity(ledger=ledger, clock=clock),
        clock=clock,
        worker=PREFILL,
        incarnation=PREFILL_LIFE,
        lease=LEASE,
        transport=TransportKind.TCP,
        sole_tenant=TENANT,
        journal=journal,
    )
    for number in range(3):
        handoff = HandoffId(clock.token())
        await owner.reserve(
            handoff,
            holder=DECODE,
            holder_incarnation=DECODE_LIFE,
            tenant=TENANT,
            blocks=2,
            deadline=Duration.of_seconds(1),
        )
        owner.complete(handoff)
        offer = owner.publish(handoff)
        if number == 0:
            owner.check_read(grant_of(offer), offer.epoch, DECODE, offer.blocks)
            owner.confirm(grant_of(offer), offer.epoch, DECODE, DECODE_LIFE)
        elif number == 1:
            owner.abandon(handoff, DECODE, DECODE_LIFE)
    clock.advance(LEASE)
    owner.reap()
    journal.close(at=clock.now(), blocks_held=0)
