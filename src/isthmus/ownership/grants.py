"""The grants that one life of one worker has minted: which hand-off each is of, and whether a peer's claim holds."""

from collections.abc import Callable

from msgspec.structs import replace

from isthmus.core.clock import Clock
from isthmus.core.errors import Bug, GrantUnknown, NotAuthorised, StaleEpoch
from isthmus.core.ids import Epoch, GrantId, HandoffId, Incarnation, WorkerId
from isthmus.ownership.capability import Claims, check, draw_key, mint

__all__ = ["Grants"]


class Grants:
    """Mints and looks up. `claims_of` says what a grant on a hand-off is for, by our record as it is now.

    For a hand-off that has ended it says so by empty blocks: those it was minted for count then.
    """

    def __init__(self, clock: Clock, claims_of: Callable[[HandoffId], Claims | None]) -> None:
        self._clock = clock
        self._claims_of = claims_of
        self._key = draw_key(clock)
        self._minted: dict[GrantId, Claims] = {}

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._minted)

    def mint(self, claims: Claims) -> GrantId:
        """A new grant for `claims`. It is not known before `open`: what mints may still be refused."""
        return mint(self._key, self._clock.token(), claims)

    def open(self, grant: GrantId, claims: Claims) -> None:
        """From now on peers may speak under it."""
        self._minted[grant] = claims

    def forget(self, grant: GrantId) -> None:
        """Its hand-off's tombstone has made room for a younger one."""
        del self._minted[grant]

    def handoff(self, grant: GrantId, epoch: Epoch, holder: WorkerId, life: Incarnation | None = None) -> HandoffId:
        """The hand-off of a grant that is genuine for what the peer says, and for what our record says.

        `step` judges the same once more, by the record. Who moves bytes says its name only (`life` is None).

        Raises:
            GrantUnknown, StaleEpoch, NotAuthorised: it is not for what the peer says.
            Bug: it is not for what our own record says.
        """
        # A lookup by hash tells a guesser nothing of how close the guess was; both checks compare in constant time.
        minted = self._minted.get(grant)
        ours = None if minted is None else self._claims_of(minted.handoff)
        if minted is None or ours is None:
            raise GrantUnknown("no such grant", field="grant")
        if not ours.blocks:
            ours = replace(ours, blocks=minted.blocks)  # a tombstone has no blocks left to be touched
        if not check(self._key, grant, ours):
            raise Bug(f"hand-off {minted.handoff}: its grant was not minted for it as it is now", field="grant")  # I1
        said = (epoch, holder, life or ours.holder_incarnation)
        if said != (ours.epoch, ours.holder, ours.holder_incarnation):
            presented = replace(ours, epoch=epoch, holder=holder, holder_incarnation=said[2])
            if not check(self._key, grant, presented):
                if said[1:] == (ours.holder, ours.holder_incarnation):
                    raise StaleEpoch(f"epoch: {epoch}, the grant is of another", field="epoch")
                raise NotAuthorised("the hand-off is of another worker, incarnation or tenant", field="holder")
        return minted.handoff
