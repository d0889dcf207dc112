"""The demo's deployment: one prefill worker, a decode worker that is unlike but lossless, and one that is lossy."""

import socket
from pathlib import Path
from typing import Any

import yaml

from isthmus.serve.config import ServeConfig, load_config

__all__ = ["LOSSLESS", "LOSSY", "demo_config", "free_ports"]

LOSSLESS = "decode-lossless-0"
LOSSY = "decode-lossy-0"


def demo_config(model: Path, folder: Path, *, heads: int) -> tuple[ServeConfig, Path]:
    """Write the deployment's file and return it, parsed. `heads`: the model's KV heads, which tp must divide."""
    port, control_port = free_ports(2)
    raw: dict[str, Any] = {
        "model": str(model),
        "gateway": {"port": port, "control_port": control_port, "allow_pins": True},
        "pools": [
            {
                "name": "prefill",
                "role": "prefill",
                "kv_cache_dtype": "bfloat16",
                "kv_layout": "NHD",
                "kv_order": "kv_outer",
                "block_size": 16,
                "num_blocks": 512,
            },
            {
                "name": "decode-lossless",
                "role": "decode",
                "kv_cache_dtype": "bfloat16",
                "kv_layout": "HND",
                "kv_order": "packed_c",
                "block_size": 64,
                "tp_size": heads,
                "num_blocks": 160,
                "transports": ["shm", "tcp"],
            },
            {
                "name": "decode-lossy",
                "role": "decode",
                "kv_cache_dtype": "int8_per_token_head",
                "kv_layout": "BLHNC",
                "kv_order": "packed_c",
                "scale_location": "inline",
                "block_size": 32,
                "num_blocks": 320,
                "transports": ["tcp"],
            },
        ],
    }
    path = folder / "demo.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return load_config(path), path  # as the processes read it, environment included


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
