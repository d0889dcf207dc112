"""Element encodings in torch, on any device. `reference_codec` is the definition.

What an engine of ours stores: floating-point encodings without scales, and int8 with one f32 scale for a token's head.
"""

from functools import lru_cache

import torch
from torch import Tensor

from isthmus.core.errors import Unsupported
from isthmus.state.encoding import SCALE_MIN, TRAITS, Encoding, Granularity, StorageDtype

__all__ = ["TORCH_DTYPES", "check_encoding", "decode_rows", "encode_rows"]

TORCH_DTYPES: dict[StorageDtype, torch.dtype] = {
    StorageDtype.F32: torch.float32,
    StorageDtype.BF16: torch.bfloat16,
    StorageDtype.F16: torch.float16,
    StorageDtype.F8_E4M3FN: torch.float8_e4m3fn,
    StorageDtype.I8: torch.int8,
}


def check_encoding(encoding: Encoding) -> None:
    """Raise Unsupported unless `encode_rows` and `decode_rows` do it."""
    dtype, quant = encoding.storage_dtype, encoding.quant
    if quant is None:
        fits = dtype in TORCH_DTYPES
    else:
        fits = not quant.tensor_scale and (dtype, quant.granularity, quant.scale_dtype) == (
            StorageDtype.I8,
            Granularity.TOKEN_HEAD,
            StorageDtype.F32,
        )
    if not fits:
        done = ", ".join(name.value for name in TORCH_DTYPES)
        raise Unsupported(
            f"storage_dtype: {dtype.value} with these scales is not executed here; wanted one of {done} "
            "(i8 with a scale for each token's head, the others without)",
            field="storage_dtype",
        )


def encode_rows(values: Tensor, encoding: Encoding) -> tuple[Tensor, Tensor | None]:
    """Encode rows.

    Args:
        values: [..., count], any floating dtype; values beyond the range become the largest.

    Returns:
        uint8 [..., count * itemsize], and f32 scales [...] or None.
    """
    values, dtype = values.to(torch.float32), encoding.storage_dtype
    largest = TRAITS[dtype].largest
    if encoding.quant is not None:
        scale = (values.abs().amax(dim=-1) / largest).clamp(min=SCALE_MIN)
        codes = torch.round(values / scale.unsqueeze(-1)).clamp_(-127, 127).to(torch.int8)
        return codes.view(torch.uint8), scale
    return values.clamp(-largest, largest).to(TORCH_DTYPES[dtype]).contiguous().view(torch.uint8), None


def decode_rows(raw: Tensor, encoding: Encoding, scale: Tensor | None) -> Tensor:
    """Decode rows: uint8 [..., count * itemsize] and f32 scales [...] (or None) to f32 [..., count]."""
    dtype = encoding.storage_dtype
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
