"""How a check says no: the invariant by name, and what was seen."""

__all__ = ["INVARIANTS", "Violation"]

INVARIANTS = {
    "I1": "no stale or torn install",
    "I2": "no write reaches a block of a newer epoch",
    "I3": "the pool's sum is constant: accounts, counts and hand-offs agree",
    "I4": "each grant ends once",
    "I5": "every request has an outcome",
    "I6": "no renewal shortens a lease",
    "I7": "no read or install across tenants",
    "I8": "a drained system holds nothing",
    "I9": "decode never begins before the commit",
    "I10": "admission never exceeds capacity",
    "Bug": "production code caught itself out",
}


class Violation(Exception):
    """An invariant does not hold."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant} ({INVARIANTS[invariant]}): {text}")
        self.invariant = invariant
        self.text = text
