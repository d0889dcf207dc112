"""The deployment under chaos: three producers and three consumers, no two alike, by shared memory and by TCP.

KV is bfloat16 everywhere, so that every pair is lossless and every greedy answer is one answer. Leases and heartbeats
are short: a fault has run its course within seconds. One producer and one consumer are reached through fault proxies,
and one producer serves many tenants: what its lost readers held is quarantined until their death is proven.

Where there are network namespaces, one more of each side is apart: alone in one, and reached by TCP only.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from isthmus.core.units import Duration
from isthmus.handoff.consumer import CONFIRM_TRIES
from isthmus.lab.chaos.model import CONTEXT_LENGTH
from isthmus.lab.chaos.partitions import HUB, Network
from isthmus.lab.demo.deployment import free_ports
from isthmus.serve.config import ServeConfig, parse_config

__all__ = ["APART", "LEASE", "STARVED", "Link", "Shape", "answered_within", "shape_of"]

LEASE = Duration.of_ms(2_000)
HEARTBEAT_MS = 250
HEARTBEAT_TIMEOUT_MS = 2_000

PROXIED_PRODUCER = "prefill-sharded-0"
PROXIED_CONSUMER = "decode-cross-0"
STARVED = "decode-nhd-0"
APART = ("prefill-apart-0", "decode-apart-0")
"""A producer of many tenants and a consumer: for each, the gateway and all its peers are beyond its network's edge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A connection that goes through a fault proxy: who dials `listens` reaches `target`."""

    name: str
    listens: int
    target: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A deployment's file, its links, and what single members find in their environment.

    `host`: where all that listens listens, but the members that are apart.
    """

    config: ServeConfig
    host: str
    path: Path
    journals: Path
    links: tuple[Link, ...]
    environment: dict[str, dict[str, str]]

    @property
    def names(self) -> list[str]:
        """Every member's name, the gateway's first."""
        return ["gateway", *(str(worker) for worker, _ in self.config.workers())]


def shape_of(
    model: Path, folder: Path, *, heads: int, mode: str, full_disk: Path | None, network: Network | None = None
) -> Shape:
    """Write the file; `heads` is the model's number of KV heads. One member's journal goes to `full_disk`, if any.

    With a `network` it has two members more, which are apart.
    """
    host = "127.0.0.1" if network is None else HUB
    port, control, own, own_tcp, *proxies = free_ports(8)
    links = tuple(
        Link(name=name, listens=listens, target=target)
        for name, listens, target in zip(
            (f"{PROXIED_PRODUCER}.orders", f"{PROXIED_PRODUCER}.kv", "gateway.producer", "gateway.consumer"),
            proxies,
            (own, own_tcp, control, control),
            strict=True,
        )
    )
    through_proxy = {
        "transports": ["tcp"],
        "port": own,
        "tcp_port": own_tcp,
        "advertised_port": links[0].listens,
        "advertised_tcp_port": links[1].listens,
    }
    raw: dict[str, Any] = {
        "model": str(model),
        "gateway": {
            "port": port,
            "control_host": host,
            "control_port": control,
            "heartbeat_ms": HEARTBEAT_MS,
            "heartbeat_timeout_ms": HEARTBEAT_TIMEOUT_MS,
            "worker_wait_ms": 3_000,
        },
        "deadlines": {"reserve_ms": 10_000, "prefill_ms": 15_000, "transfer_ms": 3_000, "confirm_ms": 1_000},
        "lease_ms": round(LEASE.ms),
        "handoff_mode": mode,
        "journal": str(folder / "journals"),
        "pools": [
            _pool("prefill-nhd", "prefill", host, kv_layout="NHD", kv_order="kv_outer", block_size=16),
            _pool("prefill-sharded", "prefill", host, block_size=32, tp_size=heads, kv_layout="HND", **through_proxy),
            _pool("prefill-cross", "prefill", host, block_size=8, sole_tenant=None, **CROSS),
            _pool("decode-hnd", "decode", host, kv_layout="HND", kv_order="packed_c", block_size=64, tp_size=heads),
            _pool("decode-cross", "decode", host, block_size=8, transports=["tcp"], **CROSS),
            _pool("decode-nhd", "decode", host, kv_layout="NHD", kv_order="kv_outer", block_size=16),
            *([] if network is None else _apart(network)),
        ],
    }
    if network is not None:
        raw["tls"] = "insecure"  # nobody else is on that network
    path = folder / "deployment.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    environment = {
        PROXIED_PRODUCER: {"ISTHMUS_GATEWAY__CONTROL_PORT": str(links[2].listens)},
        PROXIED_CONSUMER: {"ISTHMUS_GATEWAY__CONTROL_PORT": str(links[3].listens)},
    }
    if full_disk is not None:
        environment[STARVED] = {"ISTHMUS_JOURNAL": str(full_disk)}
    return Shape(
        config=parse_config(raw, where=str(path)),
        host=host,
        path=path,
        journals=folder / "journals",
        links=links,
        environment=environment,
    )


POOL_TOKENS = 4_096
DECODE_MS_MAX = 30_000


def answered_within(config: ServeConfig) -> Duration:
    """When a request has ended at the latest, by the deployment's own deadlines, and 30 s of decoding."""
    deadlines = config.deadlines
    stages_ms = (
        deadlines.reserve_ms + deadlines.prefill_ms + deadlines.transfer_ms + CONFIRM_TRIES * deadlines.confirm_ms
    )
    attempt_ms = config.gateway.worker_wait_ms + stages_ms
    return Duration.of_ms(config.gateway.attempts_max * attempt_ms + DECODE_MS_MAX)


CROSS = {"kv_layout": "BLHNC", "kv_order": "packed_c"}


def _apart(network: Network) -> list[dict[str, Any]]:
    producer, consumer = (network.address(name) for name in APART)
    return [
        _pool("prefill-apart", "prefill", producer, block_size=4, sole_tenant=None, transports=["tcp"], **CROSS),
        _pool("decode-apart", "decode", consumer, kv_layout="HND", block_size=16, transports=["tcp"]),
    ]


def _pool(name: str, role: str, host: str, *, block_size: int, **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "role": role,
        "host": host,
        "kv_cache_dtype": "bfloat16",
        "context_length": CONTEXT_LENGTH,
        "block_size": block_size,
        "num_blocks": POOL_TOKENS // block_size,
        **fields,
    }
