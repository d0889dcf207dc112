"""Element encodings in torch, on any device. `reference.encode` and `reference.decode` are the definition."""

from functools import lru_cache

import torch
from torch import Tensor

from isthmus.state.encoding import SCALE_MIN, TRAITS, StorageDtype
from isthmus.state.representation import Quant

__all__ = ["TORCH_DTYPES", "decode_rows", "encode_rows"]

TORCH_DTYPES: dict[StorageDtype, torch.dtype] = {
    StorageDtype.F32: torch.float32,
    StorageDtype.BF16: torch.bfloat16,
    StorageDtype.F16: torch.float16,
    StorageDtype.F8_E4M3FN: torch.float8_e4m3fn,
    StorageDtype.I8: torch.int8,
}


def encode_rows(values: Tensor, dtype: StorageDtype, quant: Quant | None) -> tuple[Tensor, Tensor | None]:
    """Encode rows.

    Args:
        values: [..., count], any floating dtype.
        dtype: target encoding; values beyond its range become its largest.
        quant: one f32 scale per row for integer encodings, else None.

    Returns:
        uint8 [..., count * itemsize], and f32 scales [...] or None.
    """
    values = values.to(torch.float32)
    if quant is not None:
        scale = (values.abs().amax(dim=-1) / TRAITS[dtype].largest).clamp(min=SCALE_MIN)
        codes = torch.round(values / scale.unsqueeze(-1)).clamp_(-127, 127).to(torch.int8)
        return codes.view(torch.uint8), scale
    largest = TRAITS[dtype].largest
    return values.clamp(-largest, largest).to(TORCH_DTYPES[dtype]).contiguous().view(torch.uint8), None


def decode_rows(raw: Tensor, dtype: StorageDtype, scale: Tensor | None) -> Tensor:
    """Decode rows: uint8 [..., count * itemsize] and f32 scales [...] (or None) to f32 [..., count]."""
    if dtype is StorageDtype.F8_E4M3FN:
        table = _f8_table(raw.device)
        values = table.index_select(0, raw.reshape(-1).to(torch.int32)).view(raw.shape)
    else:
        values = raw.contiguous().view(TORCH_DTYPES[dtype]).to(torch.float32)
    return values if scale is None else values * scale.unsqueeze(-1)


@lru_cache(maxsize=16)
def _f8_table(device: torch.device) -> Tensor:
    """All 256 values: on CPU a look-up is many times faster than torch's own cast from f8."""
    codes = torch.arange(256, dtype=torch.int16, device=device).to(torch.uint8)
    return codes.view(torch.float8_e4m3fn).to(torch.float32)
