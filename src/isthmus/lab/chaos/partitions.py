"""Partitions by network namespaces: some members are each alone on a network, and a bridge loses their packets.

    driver, gateway, most members ── hub (bridge, HUB) ─┬─ port0 ═ eth0 ── member, 10.213.0.2
                                                        └─ port1 ═ eth0 ── member, 10.213.0.3

The hub is a namespace too, which the driver's thread enters while it runs, so that nothing of the host's network is
used or changed. What a partition loses it loses at the hub, in a filter of the member's port, and in silence: neither
end sees a reset, a lost carrier or an unreachable host. Packets of ARP pass, for who does not resolve is told so.
Lost packets are sent again by their ends' TCP after the partition has healed, unless they have given up by then.
"""

import enum
import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from isthmus.core.clock import Instant
from isthmus.core.errors import Unsupported
from isthmus.lab.chaos.namespaces import Namespace

__all__ = ["HUB", "Network", "Partition", "Silence"]

SUBNET, PREFIX_BITS = "10.213.0", 24
HUB = f"{SUBNET}.1"
"""Any private range does: these namespaces have no other addresses, and no route to where there are."""


class Partition(enum.StrEnum):
    """Which of a member's packets are lost."""

    WHOLE = "whole"
    DEAF = "deaf"  # those that it would hear
    MUTE = "mute"  # those that it says
    GATEWAY = "gateway"  # to and from the gateway: it is fenced, and goes on with its peers
    PEERS = "peers"  # to and from all others: the gateway sees a member that reaches nobody


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """A member was partitioned for so long."""

    name: str
    partition: Partition
    began: Instant
    ended: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    namespace: Namespace
    address: str
    port: str


class Network:
    """A hub, which this thread is in while the context lasts, and a namespace for each of `names`."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.packets_lost = dict.fromkeys(self.names, 0)
        self._members: dict[str, _Member] = {}
        self._left = ExitStack()

    def __enter__(self) -> Self:
        """Raises Unsupported where the system or our rights do not allow it; the message says what is missing."""
        with ExitStack() as stack:
            try:
                self._build(stack)
            except OSError as error:
                raise Unsupported(f"network namespaces: {error.strerror}", field="partitions") from error
            self._left = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.close()

    def _build(self, stack: ExitStack) -> None:
        self._hub = Namespace()
        stack.callback(self._hub.close)
        stack.enter_context(self._hub.entered())
        _ip(
            "link set lo up",
            "link add hub type bridge",
            f"address add {HUB}/{PREFIX_BITS} dev hub",
            "link set hub up",
        )
        for number, name in enumerate(self.names):
            self._members[name] = self._join(number, stack)
        # One partition while nobody is there, to see whether this kernel has what it takes.
        self.part(self.names[0], Partition.GATEWAY, control_port=1)
        self.heal(self.names[0])

    def _join(self, number: int, stack: ExitStack) -> _Member:
        namespace = Namespace()
        stack.callback(namespace.close)
        member = _Member(namespace=namespace, address=f"{SUBNET}.{number + 2}", port=f"port{number}")
        _ip(
            f"link add {member.port} type veth peer name far{number}",
            f"link set far{number} netns {namespace.path}",
            f"link set {member.port} master hub up",
        )
        with namespace.entered():
            _ip(
                "link set lo up",
                f"link set far{number} name eth0",
                f"address add {member.address}/{PREFIX_BITS} dev eth0",
                "link set eth0 up",
            )
        return member

    def address(self, name: str) -> str:
        """Where a member is reached, from everywhere."""
        member = self._members.get(name)
        return HUB if member is None else member.address

    def path(self, name: str) -> Path:
        """The namespace that a member is to enter: its own, or the hub."""
        member = self._members.get(name)
        return (self._hub if member is None else member.namespace).path

    @contextmanager
    def beside(self, name: str) -> Iterator[None]:
        """This thread is where the member is, while the body runs. A socket made there stays there."""
        with self._members[name].namespace.entered():
            yield

    def part(self, name: str, partition: Partition, control_port: int) -> None:
        """Until `heal`. `control_port` is the gateway's, by which its packets are told from all others."""
        with self._hub.entered():  # wherever the caller is: nothing is ever ordered of the host's network
            _run(["tc", "-batch", "-"], _losing(self._members[name].port, partition, control_port))

    def heal(self, name: str) -> None:
        """All packets pass again."""
        port = self._members[name].port
        with self._hub.entered():
            shown = json.loads(_run(["tc", "-statistics", "-json", "qdisc", "show", "dev", port]))
            _run(["tc", "-batch", "-"], f"qdisc delete dev {port} clsact")
        self.packets_lost[name] += sum(qdisc["drops"] for qdisc in shown if qdisc["kind"] == "clsact")


# Classic BPF, which looks at whole Ethernet frames: 14 bytes, then 20 of IPv4, then TCP's two ports.
SOURCE_PORT_AT, DESTINATION_PORT_AT = 34, 36
LOSE, PASS = 2, 0xFFFF_FFFF  # TC_ACT_SHOT, TC_ACT_UNSPEC


def _losing(port: str, partition: Partition, control_port: int) -> str:
    """Lines of `tc` that begin it. What comes in at the hub's port is what the member says."""
    said = _program(partition, DESTINATION_PORT_AT, control_port)
    heard = _program(partition, SOURCE_PORT_AT, control_port)
    lines = [f"qdisc add dev {port} clsact"]
    if partition is not Partition.DEAF:
        lines.append(f"filter add dev {port} ingress pref 1 protocol ip bpf direct-action bytecode '{said}'")
    if partition is not Partition.MUTE:
        lines.append(f"filter add dev {port} egress pref 1 protocol ip bpf direct-action bytecode '{heard}'")
    return "\n".join(lines)


def _program(partition: Partition, gateway_port_at: int, control_port: int) -> str:
    if partition not in (Partition.GATEWAY, Partition.PEERS):
        return f"1,6 0 0 {LOSE}"
    gateways, others = (LOSE, PASS) if partition is Partition.GATEWAY else (PASS, LOSE)
    return f"4,40 0 0 {gateway_port_at},21 0 1 {control_port},6 0 0 {gateways},6 0 0 {others}"


def _ip(*lines: str) -> None:
    _run(["ip", "-batch", "-"], "\n".join(lines))


def _run(command: Sequence[str], lines: str = "") -> str:
    """What it says. Raises Unsupported."""
    try:
        ran = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Unsupported(f"network namespaces: {command[0]}: {error.strerror}", field="partitions") from error
    if ran.returncode:
        raise Unsupported(f"network namespaces: {command[0]}: {ran.stderr.strip()}", field="partitions")
    return ran.stdout
