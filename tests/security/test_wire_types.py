"""What a peer can say at all: ids under a grant. No address, no file, no class, nothing without a type and a bound."""

from collections.abc import Iterator

import msgspec
import pytest
from msgspec import inspect

from isthmus.handoff import orders
from isthmus.serve import messages
from isthmus.serve.channel import _Frame
from isthmus.state import manifest
from isthmus.state.runtime_kv_state import RuntimeKVState
from isthmus.transport.shm._header import Header
from isthmus.transport.tcp import _frames

PLACES = {"host", "port", "address", "addr", "url", "uri", "path", "file", "filename", "pid", "fd"}
MEMORY = {"pointer", "ptr", "device_ptr", "base_addr", "address_of"}
CODE = {"module", "class", "cls", "qualname", "callable", "function", "import", "command"}
ADDRESSES = PLACES | MEMORY | CODE
"""`code` of a failure is not among them: it names an error of our own closed table, and what is not there is a loss."""
REGISTRY = (messages.Hello, messages.Members)
"""Where a worker says where it is, to the gateway, which checks it; and where the gateway passes it on."""

BETWEEN_PEERS = {
    kind.__name__: kind
    for kind in (
        *(getattr(orders, name) for name in orders.__all__),
        messages.PeerHello,
        messages.Failure,
        messages.Generate,
        messages.TokenEvent,
        messages.CancelRequest,
        RuntimeKVState,
        *(
            kind
            for kind in vars(_frames).values()
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == _frames.__name__
        ),
    )
}
EVERYTHING = {
    **BETWEEN_PEERS,
    "Frame": _Frame,
    "Header": Header,
    **{kind.__name__: kind for kind in messages.Message.__args__},
}


def fields_of(kind: object) -> Iterator[tuple[str, str, inspect.Type]]:
    """(struct, field, type) of everything that a message can hold."""
    seen: set[object] = set()
    waiting = [inspect.type_info(kind)]
    while waiting:
        found = waiting.pop()
        if isinstance(found, inspect.Metadata):
            found = found.type
        if isinstance(found, inspect.StructType):
            if found.cls in seen:
                continue
            seen.add(found.cls)
            for field in found.fields:
                yield found.cls.__name__, field.encode_name, field.type
                waiting.append(field.type)
        elif isinstance(found, inspect.UnionType):
            waiting += found.types
        elif isinstance(found, inspect.DictType):
            waiting += [found.key_type, found.value_type]
        elif isinstance(found, inspect.TupleType):
            waiting += found.item_types
        elif hasattr(found, "item_type"):
            waiting.append(found.item_type)


def test_the_search_sees_addresses_where_there_are_some():
    for kind in REGISTRY:
        assert {field for _, field, _ in fields_of(kind)} & ADDRESSES >= {"host", "port", "pid", "fd"}


@pytest.mark.parametrize("name", BETWEEN_PEERS)
def test_peers_name_no_address_to_each_other(name):
    assert [(struct, field) for struct, field, _ in fields_of(BETWEEN_PEERS[name]) if field in ADDRESSES] == []


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_field_has_a_type_of_its_own_and_unknown_fields_are_refused(name):
    for struct, field, kind in fields_of(EVERYTHING[name]):
        bare = kind.type if isinstance(kind, inspect.Metadata) else kind
        assert not isinstance(
            bare, inspect.AnyType | inspect.RawType | inspect.CustomType | inspect.ExtType | inspect.DataclassType
        ), (struct, field)


def test_only_messages_that_travel_between_gateway_and_workers_hold_maps():
    maps = {
        (name, field)
        for name, kind in EVERYTHING.items()
        if name != "Frame"
        for _, field, found in fields_of(kind)
        if isinstance(found, inspect.DictType)
    }
    assert maps <= {("Pulse", "blocks"), ("HandoffReport", "stage_ms"), ("HandoffReport", "blocks")}


def test_the_raw_part_of_a_manifest_is_decoded_as_a_state_and_as_nothing_else():
    raw = [name for _, name, kind in fields_of(manifest._Envelope) if isinstance(kind, inspect.RawType)]
    assert raw == ["state"]
    assert manifest._state_decoder.type is RuntimeKVState


def test_every_struct_on_the_wire_refuses_what_it_does_not_know():
    loose = set()
    for kind in EVERYTHING.values():
        waiting = {kind}
        for _, _, found in fields_of(kind):
            waiting |= {one.cls for one in _structs(found)}
        loose |= {one.__name__ for one in waiting if not one.__struct_config__.forbid_unknown_fields}
    assert loose == set()


def _structs(found: inspect.Type) -> Iterator[inspect.StructType]:
    if isinstance(found, inspect.StructType):
        yield found
    for inner in getattr(found, "types", ()):
        yield from _structs(inner)
    if hasattr(found, "item_type"):
        yield from _structs(found.item_type)
