"""The digest of the weights as loaded, cached beside them."""

import hashlib
import json
import os
from pathlib import Path

import torch
from torch import nn

__all__ = ["CACHE_NAME", "weights_digest"]

CACHE_NAME = ".isthmus-weights.json"
_FORMAT = 2


def weights_digest(path: Path, network: nn.Module, dtype: str) -> str:
    """SHA-256, hex, over names, dtypes, shapes and bytes of the parameters, tied ones once, sorted by name.

    The result is kept in `path`/.isthmus-weights.json under the sizes and modification times of the weight files, so
    that a second start in the same precision reads it there. A directory that cannot be written is no error.
    """
    key = json.dumps([_FORMAT, dtype, _stamp(path)])
    cached = _read_cache(path)
    if key in cached:
        return cached[key]
    total = hashlib.sha256()
    for name, parameter in sorted(network.named_parameters()):
        data = parameter.detach().cpu().contiguous()
        total.update(json.dumps([name, str(data.dtype), list(data.shape)]).encode())
        total.update(data.view(-1).view(torch.uint8).numpy().data)
    digest = total.hexdigest()
    _write_cache(path, {k: v for k, v in cached.items() if json.loads(k)[2] == _stamp(path)} | {key: digest})
    return digest


def _stamp(path: Path) -> list[list[str | int]]:
    """What identifies the files without reading them. A copy that keeps modification times has its own inodes."""
    found = sorted([*path.glob("*.safetensors"), path / "config.json"])
    stats = [(file.name, file.stat()) for file in found]
    return [[name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev] for name, stat in stats]


def _read_cache(path: Path) -> dict[str, str]:
    try:
        found = json.loads((path / CACHE_NAME).read_text(encoding="utf-8"))
        return {str(key): str(value) for key, value in found.items() if len(json.loads(key)) == 3}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _write_cache(path: Path, entries: dict[str, str]) -> None:
    # Written aside and renamed: two workers that start together each leave a whole file.
    aside = path / f"{CACHE_NAME}.{os.getpid()}"
    try:
        aside.write_text(json.dumps(entries), encoding="utf-8")
        aside.replace(path / CACHE_NAME)
    except OSError:
        aside.unlink(missing_ok=True)
