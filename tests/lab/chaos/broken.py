"""A fork server whose members may be broken on purpose: each has one check or one duty taken out.

`ISTHMUS_TEST_BROKEN` in a member's environment names what. Production knows nothing of it.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isthmus.core.errors import Bug
from isthmus.handoff.consumer import ConsumerSide
from isthmus.handoff.orders import ConfirmOrder, ConfirmReply
from isthmus.lab.chaos.member import run_member
from isthmus.lab.chaos.zygote import serve
from isthmus.ownership.consumer import DestinationOwner
from isthmus.ownership.producer import SourceOwner
from isthmus.serve.worker.decode import DecodeService


def leaks() -> None:
    """Decode ends, and its blocks are not given back."""
    finish = DestinationOwner.finish
    DestinationOwner.finish = lambda self, handoff: self.state(handoff)  # type: ignore[method-assign]
    assert finish is not DestinationOwner.finish


def installs_unasked() -> None:
    """Takes the owner's yes for granted."""

    async def confirm(self: ConsumerSide, order: ConfirmOrder, producer: object) -> ConfirmReply:
        return ConfirmReply(epoch=order.epoch)

    ConsumerSide._confirm = confirm  # type: ignore[method-assign]


def lies() -> None:
    """Sends other tokens than it decodes."""
    send = DecodeService._send

    def other(self: DecodeService, request: Any, index: int, token: int, finish_reason: str | None) -> None:
        send(self, request, index, token ^ 1 if index else token, finish_reason)

    DecodeService._send = other  # type: ignore[method-assign]


def crashes() -> None:
    """Catches itself out at its third offer."""
    publish, offers = SourceOwner.publish, []

    def third(self: SourceOwner, *arguments: Any) -> Any:
        offers.append(arguments)
        if len(offers) == 3:
            raise Bug("broken on purpose", field="test")
        return publish(self, *arguments)

    SourceOwner.publish = third  # type: ignore[method-assign]


BROKEN: dict[str, Callable[[], None]] = {each.__name__: each for each in (leaks, installs_unasked, lies, crashes)}


def run_broken(name: str, config: Path) -> int:
    wanted = os.environ.get("ISTHMUS_TEST_BROKEN")
    if wanted is not None:
        BROKEN[wanted]()
    return run_member(name, config)


if __name__ == "__main__":
    serve(run_broken)
