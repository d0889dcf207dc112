"""What a model keeps of the tokens it has seen, as types: layer groups, states, and how positions were put in."""

from typing import Annotated

from msgspec import Meta

from isthmus.core.limits import HEAD_SIZE_MAX, HEADS_MAX, LAYERS_MAX, TOKENS_PER_STATE_MAX
from isthmus.state.representation import GroupKind
from isthmus.state.structs import Name, WireStruct, require

__all__ = ["ConvSection", "LayerShape", "ModelShape", "RopeShape", "StateShape"]

KINDS = frozenset(GroupKind)


class ConvSection(WireStruct, frozen=True, kw_only=True):
    """Some channels of a convolution's state: `heads` times `head_channels` of them, for each kept token."""

    name: Annotated[str, Meta(pattern=r"^conv_[xbc]\Z")]
    heads: int
    head_channels: int

    def __post_init__(self) -> None:
        require(1 <= self.heads <= HEADS_MAX, "heads", self.heads, f"1 to {HEADS_MAX}")
        require(1 <= self.head_channels <= HEAD_SIZE_MAX, "head_channels", self.head_channels, f"1 to {HEAD_SIZE_MAX}")


class StateShape(WireStruct, frozen=True, kw_only=True):
    """What a layer with a state keeps of a sequence, whatever its length.

    The convolution keeps its last `conv_kernel` - 1 tokens; `sections` are in the order in which engines put them one
    after another (Mamba 2: x, B, C; gated delta nets: q, k, v, which are called conv_b, conv_c, conv_x here). The
    recurrent part is [ssm_heads, ssm_head_dim, ssm_state_size]: values' channels, then keys' (of a gated delta net
    the value's head, then the key's). Lightning attention has no convolution: `conv_kernel` 0, no sections.
    """

    conv_kernel: int
    sections: tuple[ConvSection, ...]
    ssm_heads: int
    ssm_head_dim: int
    ssm_state_size: int

    def __post_init__(self) -> None:
        require(0 <= self.conv_kernel <= HEAD_SIZE_MAX, "conv_kernel", self.conv_kernel, f"0 to {HEAD_SIZE_MAX}")
        require(1 <= self.ssm_heads <= HEADS_MAX, "ssm_heads", self.ssm_heads, f"1 to {HEADS_MAX}")
        for name, size in (("ssm_head_dim", self.ssm_head_dim), ("ssm_state_size", self.ssm_state_size)):
            require(1 <= size <= HEAD_SIZE_MAX, name, size, f"1 to {HEAD_SIZE_MAX}")


class LayerShape(WireStruct, frozen=True, kw_only=True):
    """Layers that keep the same things. Head sizes are in elements; `layers` are the model's layer numbers, ascending.

    A layer may be in several: one with an indexer is in two. For mla, `head_size` is `kv_lora_rank` +
    `qk_rope_head_dim` and `num_kv_heads` is 1. `sliding_window` is the window in tokens, the one looking included; for
    chunked_local it is the chunk. A row stands for `tokens_per_state` tokens. Where there is a `state`, `num_kv_heads`,
    `head_size` and `head_size_v` repeat its ssm part.
    """

    kind: Name
    layers: Annotated[tuple[int, ...], Meta(min_length=1, max_length=LAYERS_MAX)]
    num_kv_heads: int
    head_size: int
    head_size_v: int
    kv_lora_rank: int = 0
    qk_rope_head_dim: int = 0
    sliding_window: int = 0
    tokens_per_state: int = 1
    state: StateShape | None = None

    def __post_init__(self) -> None:
        require(self.kind in KINDS, "kind", self.kind, ", ".join(sorted(KINDS)))
        layers = self.layers
        require(
            bool(layers) and layers[0] >= 0 and layers[-1] < LAYERS_MAX and all(map(int.__lt__, layers, layers[1:])),
            "layers",
            layers[:8],
            f"ascending layer numbers below {LAYERS_MAX}",
        )
        require(1 <= self.num_kv_heads <= HEADS_MAX, "num_kv_heads", self.num_kv_heads, f"1 to {HEADS_MAX}")
        for name, size in (("head_size", self.head_size), ("head_size_v", self.head_size_v)):
            require(1 <= size <= HEAD_SIZE_MAX, name, size, f"1 to {HEAD_SIZE_MAX}")
        require(
            1 <= self.tokens_per_state <= TOKENS_PER_STATE_MAX,
            "tokens_per_state",
            self.tokens_per_state,
            f"1 to {TOKENS_PER_STATE_MAX}",
        )


class RopeShape(WireStruct, frozen=True, kw_only=True):
    """How positions are rotated into keys.

    `rope_dim` elements of a head are rotated: 0, with `theta` 1, where none is. `scaling` is the canonical JSON of the
    scaling record, '' where there is none. A model whose layers differ has all their records there, by layer type, and
    those of its full attention in `theta` and `rope_dim`. `style` says which elements make a pair: neighbours
    (interleaved), or those half a head apart (neox).
    """

    theta: float
    rope_dim: int
    style: Annotated[str, Meta(pattern=r"^(neox|interleaved)\Z")]
    scaling: str = ""


class ModelShape(WireStruct, frozen=True, kw_only=True):
    """A model as far as its KV goes.

    `model_type` is that of the language model (of `text_config` where there is one). `dtype` is bf16, f16 or f32, of
    what is computed; `weights_dtype` of what is stored. `architecture` is the canonical JSON of the settings that
    change what is computed with the same weights.
    """

    name: Name
    base_model: Name
    revision: Name
    model_type: Name
    dtype: Annotated[str, Meta(pattern=r"^(bf16|f16|f32)\Z")]
    weights_dtype: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{1,31}\Z")]
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    rope: RopeShape
    architecture: str
    layers: tuple[LayerShape, ...]

    def layers_of(self, kind: str) -> tuple[int, ...]:
        """The numbers of the layers of a kind, ascending; () where there is none."""
        return tuple(sorted({layer for shape in self.layers if shape.kind == kind for layer in shape.layers}))
