"""What is taken on trust, said aloud: a verdict that rests on it prints it."""

from isthmus.state.structs import Name, WireStruct

__all__ = ["Assumption"]


class Assumption(WireStruct, frozen=True, kw_only=True):
    """`field` was taken to be `value`, because `why`."""

    field: Name
    value: str
    why: str
