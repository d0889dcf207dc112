"""The deployments that tests run on. KV is bfloat16 everywhere: every pair is lossless, and every answer exact."""

from pathlib import Path
from typing import Any

from isthmus.lab.demo.deployment import free_ports

__all__ = ["CONTEXT_LENGTH", "HEARTBEAT_TIMEOUT_MS", "LEASE_MS", "PAIR", "QUAD", "deployment_of"]

CONTEXT_LENGTH = 512
LEASE_MS = 2_000
HEARTBEAT_TIMEOUT_MS = 2_000

_NHD = {"kv_layout": "NHD", "kv_order": "kv_outer", "block_size": 16, "num_blocks": 256}
_HND = {"kv_layout": "HND", "kv_order": "packed_c", "block_size": 64, "tp_size": 3, "num_blocks": 48}
_CROSS_LAYER = {"kv_layout": "BLHNC", "kv_order": "packed_c", "block_size": 8, "num_blocks": 384}
_SHARDED = {"kv_layout": "HND", "kv_order": "kv_outer", "block_size": 32, "tp_size": 3, "num_blocks": 128}

PAIR: tuple[dict[str, Any], ...] = (
    {"name": "prefill", "role": "prefill", **_NHD},
    {"name": "decode", "role": "decode", **_HND},
)
"""One of each, by shared memory."""

QUAD: tuple[dict[str, Any], ...] = (
    {"name": "prefill-nhd", "role": "prefill", **_NHD},
    {"name": "prefill-sharded", "role": "prefill", "transports": ["tcp"], **_SHARDED},
    {"name": "decode-hnd", "role": "decode", **_HND},
    {"name": "decode-cross", "role": "decode", **_CROSS_LAYER},
)
"""Two of each, no two alike, by shared memory and TCP."""


def deployment_of(pools: tuple[dict[str, Any], ...], model: Path) -> dict[str, Any]:
    """The deployment's file, on free ports of the loopback."""
    port, control_port = free_ports(2)
    return {
        "model": str(model),
        "gateway": {
            "port": port,
            "control_port": control_port,
            "heartbeat_ms": 400,
            "heartbeat_timeout_ms": HEARTBEAT_TIMEOUT_MS,
            "worker_wait_ms": 3_000,
            "allow_pins": True,
        },
        "lease_ms": LEASE_MS,
        "pools": [{"kv_cache_dtype": "bfloat16", "context_length": CONTEXT_LENGTH, **pool} for pool in pools],
    }
