"""The embedded engine's configuration, and the representation it stands for. Imports no torch.

To change how KV is stored, change fields here (or their YAML): the pool derives every address from the representation.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from isthmus.core.errors import ConfigInvalid
from isthmus.core.limits import BLOCK_SIZE_TOKENS_MAX, BLOCKS_PER_POOL_MAX, TOKENS_PER_REQUEST_MAX, TP_SIZE_MAX
from isthmus.engines.embedded.shape import ModelShape
from isthmus.state.encoding import Encoding, Granularity, Quant, ScaleLocation, StorageDtype
from isthmus.state.partition import Partition
from isthmus.state.representation import GroupKind, GroupRepresentation, KvOrder, Layout, attention
from isthmus.state.runtime_kv_state import KVRepresentation

__all__ = ["KV_CACHE_DTYPES", "LAYOUTS", "EmbeddedConfig", "config_of", "context_length_of", "representation_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _CacheDtype:
    """How elements are stored, and what shares an f32 scale, if anything does."""

    storage_dtype: StorageDtype
    granularity: Granularity | None = None


# `catalogue/data/engines/embedded.yaml` says the same to `isthmus check`; a test holds the two together.
KV_CACHE_DTYPES = {
    "float32": _CacheDtype(storage_dtype=StorageDtype.F32),
    "bfloat16": _CacheDtype(storage_dtype=StorageDtype.BF16),
    "float16": _CacheDtype(storage_dtype=StorageDtype.F16),
    "fp8_e4m3": _CacheDtype(storage_dtype=StorageDtype.F8_E4M3FN),
    "int8_per_token_head": _CacheDtype(storage_dtype=StorageDtype.I8, granularity=Granularity.TOKEN_HEAD),
}
LAYOUTS = {"NHD": Layout.LBNHC, "HND": Layout.LBHNC, **{layout.value: layout for layout in Layout}}
"""By their own names (vLLM 0.33, v1/kv_cache_layout.py:15), and the two short ones that vLLM's users know."""


class EmbeddedConfig(BaseModel):
    """What an embedded engine is. Sizes are in tokens or blocks; `step_tokens` rows make one forward, always."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: Path
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    step_tokens: Annotated[int, Field(ge=16, le=4096, multiple_of=16)] = 32
    context_length: Annotated[int, Field(ge=1, le=TOKENS_PER_REQUEST_MAX)] | None = None
    num_blocks: Annotated[int, Field(ge=1, le=BLOCKS_PER_POOL_MAX)] = 1024
    kv_cache_dtype: str = "bfloat16"
    kv_layout: Layout = Layout.LBNHC
    kv_order: KvOrder = KvOrder.KV_OUTER
    scale_location: ScaleLocation = ScaleLocation.INLINE
    block_size: Annotated[int, Field(ge=1, le=BLOCK_SIZE_TOKENS_MAX)] = 16
    tp_size: Annotated[int, Field(ge=1, le=TP_SIZE_MAX)] = 1
    num_threads: Annotated[int, Field(ge=1, le=1024)] = 1

    @field_validator("kv_layout", mode="before")
    @classmethod
    def _layout(cls, value: object) -> object:
        if isinstance(value, str) and value not in LAYOUTS:
            raise ValueError(f"wanted one of {', '.join(LAYOUTS)}")
        return LAYOUTS[value] if isinstance(value, str) else value

    @field_validator("kv_cache_dtype")
    @classmethod
    def _dtype(cls, value: str) -> str:
        if value not in KV_CACHE_DTYPES:
            raise ValueError(f"wanted one of {', '.join(KV_CACHE_DTYPES)}")
        return value


def config_of(fields: dict[str, Any]) -> EmbeddedConfig:
    """Parse a mapping, as read from YAML.

    Raises:
        ConfigInvalid: names the first wrong field and what would be right.
    """
    try:
        return EmbeddedConfig.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigInvalid(f"{field}: {first['msg']} (got {first['input']!r})", field=field) from None


def context_length_of(config: EmbeddedConfig, shape: ModelShape) -> int:
    """Tokens a request may have in all, prompt and completion.

    Raises:
        ConfigInvalid: `context_length` is more than the model was made for.
    """
    wanted = config.context_length or shape.max_position_embeddings
    if wanted > shape.max_position_embeddings:
        raise ConfigInvalid(
            f"context_length: got {wanted}, wanted at most the model's {shape.max_position_embeddings} positions",
            field="context_length",
        )
    return wanted


def representation_of(config: EmbeddedConfig, shape: ModelShape) -> KVRepresentation:
    """The representation `config` stands for with a model of `shape`.

    Raises:
        ConfigInvalid: the fields do not fit each other or the model (`tp_size` must divide the KV heads, for one).
    """
    cache = KV_CACHE_DTYPES[config.kv_cache_dtype]
    try:
        quant = None
        if cache.granularity is not None:
            quant = Quant(
                granularity=cache.granularity, scale_dtype=StorageDtype.F32, scale_location=config.scale_location
            )
        group = GroupRepresentation(
            kind=GroupKind.FULL_ATTENTION,
            layers=tuple(range(shape.num_layers)),
            components=attention(
                heads=shape.num_kv_heads,
                head_size=shape.head_dim,
                head_size_v=shape.head_dim,
                encoding=Encoding(storage_dtype=cache.storage_dtype, quant=quant),
            ),
            block_size=config.block_size,
            layout=config.kv_layout,
            kv_order=config.kv_order,
        )
        return KVRepresentation(groups=(group,), partition=Partition(tp_size=config.tp_size))
    except ValueError as error:
        raise ConfigInvalid(str(error), field=str(error).partition(":")[0]) from None
