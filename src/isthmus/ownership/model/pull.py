"""The world of a pull: order, fill, publish, offer, copy chunk by chunk, convert, verify, ask, install, decode.

Each of these is one atomic move. Messages stay on the wire once sent, so that each may come never, late, or repeatedly,
in any order. A lease's time may end at any moment, which is also what a pause looks like from outside. A copy is
one-sided: it looks at memory, two chunks one after the other, and asks nobody.

    order → COMPUTING → chunk, chunk → HELD → publish → offer → RECEIVING → copy, copy → CONVERTING → convert
    → VERIFYING → verify → confirm → yes or no → INSTALLED → finish
"""

from collections.abc import Iterator

from isthmus.ownership.model.accounts import owned, point
from isthmus.ownership.model.memory import convert, fill, see, spoiled
from isthmus.ownership.model.options import Option, Why
from isthmus.ownership.model.records import CONFIRM, FLIPPED, NO, NOBODY, OFFER, YES, Engine, Part, Stage
from isthmus.ownership.model.turn import (
    CONSUMER,
    GRANT,
    LEASE,
    LIFE,
    OWN_EPOCH,
    Turn,
    now,
    tenant,
)
from isthmus.ownership.protocol.events import (
    Arrived,
    Complete,
    Confirm,
    Confirmed,
    ConfirmRefused,
    ConvertDone,
    Publish,
    Submit,
    VerifyBad,
    VerifyOk,
)
from isthmus.ownership.protocol.states import PartStage, SourcePhase

__all__ = ["consumer_options", "next_stage", "producer_options"]


# the producer


def producer_options(turn: Turn, index: int) -> Iterator[Option]:
    """What the producer may do next for a part."""
    part = turn.part(index)
    state = turn.source_state(index)
    if state is None:
        pass
    elif part.engine:
        yield Option(f"the engine fills chunk {part.engine - 1}", lambda turn: _fill(turn, index))
    elif state.phase is SourcePhase.HELD:
        yield Option("the producer publishes, and offers", lambda turn: _publish(turn, index))
    if part.sent & CONFIRM:
        yield Option("the consumer's question reaches the producer", lambda turn: _answer(turn, index), Why.DELIVERY)


def _fill(turn: Turn, index: int) -> None:
    engine = turn.part(index).engine
    fill(turn, index, engine - 1)
    turn.change_part(index, engine=Engine.HALF if engine == Engine.STARTED else Engine.OFF)
    if engine == Engine.HALF:
        turn.source(index, Complete())


def _publish(turn: Turn, index: int) -> None:
    turn.source(index, Publish(now=now(over=False), grant=GRANT, lease=LEASE))
    turn.send(index, OFFER)
    turn.producer = point(turn.producer, turn.claim(index), turn.claim(index))  # the offer carries the address


def _answer(turn: Turn, index: int) -> None:
    over = turn.part(index).over
    question = Confirm(now=now(over), grant=GRANT, epoch=OWN_EPOCH, holder=CONSUMER, holder_incarnation=LIFE)
    turn.source(index, question)
    turn.send(index, YES if turn.refusal is None else NO)
    if turn.refusal is not None:
        turn.marks.add("a confirmation was refused")


# the consumer


def consumer_options(turn: Turn, index: int) -> Iterator[Option]:
    """What the consumer may do next for a part."""
    part = turn.part(index)
    state = turn.destination_state()
    yield from _own_work(turn, index, part)
    if state is None:
        return
    if part.sent & OFFER and state.parts[index].stage is PartStage.WAITING:
        yield Option(
            "the offer reaches the consumer, which begins to read", lambda turn: _submit(turn, index), Why.DELIVERY
        )
    early = turn.scope.switches.confirm_before_copy and not state.prepared  # an early answer is kept until then
    if part.sent & YES and not early:
        yield Option("the yes reaches the consumer", lambda turn: _yes(turn, index), Why.DELIVERY)
    if part.sent & NO and not early:
        yield Option("the no reaches the consumer", lambda turn: _no(turn), Why.DELIVERY)


def _own_work(turn: Turn, index: int, part: Part) -> Iterator[Option]:
    if part.stage == Stage.READ:
        if not turn.consumer.fenced or not turn.cut_by_fence():
            yield Option(f"the consumer copies chunk {len(part.copied)}", lambda turn: _copy(turn, index))
            if turn.scope.faults.flips and FLIPPED not in part.copied:
                label = f"the consumer copies chunk {len(part.copied)}, and the network changes it"
                yield Option(label, lambda turn: _copy(turn, index, flipped=True), why=Why.FAULT)
    elif part.stage == Stage.CONVERT:
        yield Option("the consumer converts into its own block", lambda turn: _convert(turn, index))
    elif part.stage == Stage.VERIFY:
        label = "the check of the bytes fails" if spoiled(turn) else "the consumer has verified, and asks the owner"
        yield Option(label, lambda turn: _verify(turn, index))


def _submit(turn: Turn, index: int) -> None:
    offered = tenant(turn.scope.tenant(turn.index))
    turn.destination(Submit(tenant=offered, grant=GRANT, epoch=OWN_EPOCH, part=index))
    if turn.refusal is None:
        turn.change_part(index, stage=Stage.READ)
        turn.consumer = point(turn.consumer, turn.claim(), turn.claim(index))
        if turn.scope.switches.confirm_before_copy:
            turn.send(index, CONFIRM)


def _copy(turn: Turn, index: int, *, flipped: bool = False) -> None:
    part = turn.part(index)
    seen = see(turn, index, len(part.copied))
    copied = (*part.copied, FLIPPED if flipped else seen)
    turn.change_part(index, copied=copied)
    source = turn.source_state(index)
    if part.over or (source is not None and source.phase in (SourcePhase.EXPIRED, SourcePhase.IN_DOUBT)):
        turn.marks.add("a reader was slower than its lease")
    if len(copied) == 2:
        if len(set(copied)) == 2:
            turn.marks.add("a torn copy was made")
        turn.destination(Arrived(part=index))
        next_stage(turn, index)


def _convert(turn: Turn, index: int) -> None:
    convert(turn, index)
    turn.destination(ConvertDone(part=index))
    next_stage(turn, index)


def _verify(turn: Turn, index: int) -> None:
    if spoiled(turn):
        turn.marks.add("bytes changed on the way were refused")
        turn.destination(VerifyBad(part=index))
    else:
        turn.destination(VerifyOk(part=index))
    next_stage(turn, index)
    state = turn.destination_state()
    if state is not None and state.prepared and not turn.scope.switches.confirm_before_copy:
        for each in range(turn.scope.parts):
            turn.send(each, CONFIRM)


def next_stage(turn: Turn, index: int) -> None:
    """After a stage has ended: what the protocol lets the consumer's code do next for a part."""
    state = turn.destination_state()
    follows = {PartStage.CONVERTING: Stage.CONVERT, PartStage.VERIFYING: Stage.VERIFY}
    late = state is None or turn.refusal is not None
    stage = Stage.NOTHING if late or state is None else follows.get(state.parts[index].stage, Stage.NOTHING)
    turn.change_part(index, stage=stage)


def _yes(turn: Turn, index: int) -> None:
    turn.destination(Confirmed(epoch=OWN_EPOCH, part=index))


def _no(turn: Turn) -> None:
    index = owned(turn.consumer, turn.claim())
    if index != NOBODY and turn.consumer.slots[index].stamps != turn.whole():
        turn.marks.add("a stale or torn copy was refused")
    turn.destination(ConfirmRefused())
