"""From fields of a config to what its layers keep: a builder for each kind of layer. Which of them a model has, and
which layers are of which kind, is said in `families.py`.
"""

from collections.abc import Callable

from isthmus.catalogue.config_fields import POSITIONS_MAX, Fields, bad
from isthmus.catalogue.shape_types import ConvSection, LayerShape, StateShape
from isthmus.core.limits import HEAD_SIZE_MAX, HEADS_MAX
from isthmus.state.representation import GroupKind

__all__ = [
    "Builder",
    "chunked",
    "compressed",
    "full",
    "gated_delta",
    "global_full",
    "indexed",
    "kimi_delta",
    "lightning",
    "mamba2",
    "mla",
    "sliding",
    "sliding_latent",
]

Builder = Callable[[Fields, tuple[int, ...]], list[LayerShape]]
"""What these layers keep. Raises BadInput where a field that it reads is missing or wrong."""


def _kv_heads(fields: Fields, name: str = "num_key_value_heads") -> int:
    heads = fields.integer("num_attention_heads", HEADS_MAX)
    found = fields.integer(name, HEADS_MAX)
    if heads % found:
        raise bad(name, found, f"a divisor of num_attention_heads = {heads}")
    return found


def _head_size(fields: Fields) -> int:
    """`head_dim`, or what transformers computes where it is missing."""
    name = fields.which("head_dim", "attention_head_dim")
    if name:
        return fields.integer(name, HEAD_SIZE_MAX)
    heads = fields.integer("num_attention_heads", HEADS_MAX)
    hidden = fields.integer("hidden_size", HEADS_MAX * HEAD_SIZE_MAX, wanted="an integer, or head_dim")
    if not 1 <= hidden // heads <= HEAD_SIZE_MAX:
        raise bad("hidden_size", hidden, f"num_attention_heads = {heads} times a head size of 1 to {HEAD_SIZE_MAX}")
    return hidden // heads


def _attention(kind: GroupKind, layers: tuple[int, ...], heads: int, size: int, *, window: int = 0) -> list[LayerShape]:
    return [
        LayerShape(
            kind=kind.value,
            layers=layers,
            num_kv_heads=heads,
            head_size=size,
            head_size_v=size,
            sliding_window=window,
        )
    ]


def full(fields: Fields, layers: tuple[int, ...]) -> list[LayerShape]:
    """Keys and values of all tokens."""
    return _attention(GroupKind.FULL_ATTENTION, layers, _kv_heads(fields), _head_size(fields))


def global_full(fields: Fields, layers: tuple[int, ...]) -> list[LayerShape]:
    """Gemma 4's full attention, which has head sizes and counts of its own."""
    shared = fields.switch("attention_k_eq_v") and fields.get("num_global_key_value_heads") is not None
    heads = _kv_heads(fields, "num_global_key_value_heads" if shared else "num_key_value_heads")
    return _attention(GroupKind.FULL_ATTENTION, layers, heads, fields.integer("global_head_dim", HEAD_SIZE_MAX))


def sliding(fields: Fields, layers: tuple[int, ...]) -> list[LayerShape]:
    """Keys and values of a window. A window as long as the context never leaves a token out: that is full attention."""
    window = fields.integer("sliding_window", POSITIONS_MAX)
    if window >= fields.integer("max_position_embeddings", POSITIONS_MAX):
        return full(fields, layers)
    return _attention(GroupKind.SLIDING_WINDOW, layers, _kv_heads(fields), _head_size(fields), window=window)


def chunked(fields: Fields, layers: tuple[int, ...]) -> list[LayerShape]:
    """Keys and values of the chunk that the token is in."""
    chunk = fields.integer("attention_chunk_size", POSITIONS_MAX)
    return _attention(GroupKind.CHUNKED_LOCAL, layers, _kv_heads(fields), _head_size(fields), window=chunk)


def mla(fields: Fields, layers: tuple[int, ...]) -> list[LayerShape]:
    """One latent and one rotated key for all heads."""
    rank = fields.integer("kv_lora_rank", HEAD_SIZE_MAX)
    rope = fields.integer("qk_rope_head_dim", HEAD_SIZE_MAX)
    return [_latent(GroupKind.MLA, layers, rank, rope, value=rank)]


def _latent(
    kind: GroupKind, layers: tuple[int, ...], rank: int, rope: int, *, value: int, window: int = 0, tokens: int = 1
) -> LayerShape:
    if rank + rope > HEAD_SIZE_MAX:
        raise bad("kv_lora_rank", rank, f"with qk_rope_head_dim = {rope} at most {HEAD_SIZE_MAX}")
    return LayerShape(
        kind=kind.value,
        layers=layers,
        num_kv_heads=1,
        head_size=rank + rope,
        head_size_v=value,
        kv_lora_rank=rank,
        qk_rope_head_dim=rope,
        sliding_window=window,
        tokens_per_state=tokens,
    )


def _index_keys(fields: Fields, layers: tuple[int, ...], tokens: int = 1) -> LayerShape:
    size = fields.integer("index_head_dim", HEAD_SIZE_MAX)
    return LayerShape(
        kind=GroupKind.INDEXER.value,
        layers=layers,
        num_kv_heads=1,
        head_size=size,
        head_size_v=size,
        tokens_per_state=tokens,
    )


def indexed(fields: Fields, layers: tuple[int, ...]) -> list[LayerShape]:
    """MLA with an indexer's keys; layers whose `indexer_types` are shared take the choice of the one before."""
    own = layers
    if fields.get("indexer_types") is not None:
        types = fields.texts("indexer_types")
        if len(types) <= layers[-1] or not set(types) <= {"full", "shared"}:
            raise bad("indexer_types", types, "full or shared for each layer")
        own = tuple(layer for layer in layers if types[layer] == "full")
    elif fields.get("index_topk_pattern") is not None:
        pattern = fields.text("index_topk_pattern")
        if len(pattern) <= layers[-1] or not set(pattern) <= {"F", "S"}:
            raise bad("index_topk_pattern", pattern, "F or S for each layer")
        own = tuple(layer for layer in layers if pattern[layer] == "F")
    else:
        every = fields.integer_or("index_topk_freq", 1, HEADS_MAX)
        offset = fields.integer_or("index_skip_topk_offset", 2, HEADS_MAX)
        own = tuple(layer for layer in layers if max(layer - offset + 1, 0) % every == 0)
    return mla(fields, layers) + ([_index_keys(fields, own)] if own else [])


def sliding_latent(fields: Fields, layers: tuple[int, ...]) -> list[LayerShape]:
    """DeepSeek V4's window: one vector for each token, which is key and value; its last elements are rotated."""
    size = fields.integer("head_dim", HEAD_SIZE_MAX)
    rope = fields.integer("qk_rope_head_dim", size - 1)
    window = fields.integer("sliding_window", POSITIONS_MAX)
    return [_latent(GroupKind.SLIDING_WINDOW_MLA, layers, size - rope, rope, value=size, window=window)]


def compressed(tokens: int, *, with_indexer: bool) -> Builder:
    """DeepSeek V4: beside the window, one vector for each `tokens` tokens, and the indexer's likewise.

    What the compressor has gathered of tokens that do not fill a vector yet is no cache of rows and is not described.
    """

    def build(fields: Fields, layers: tuple[int, ...]) -> list[LayerShape]:
        window = sliding_latent(fields, layers)
        near = window[0]
        far = _latent(
            GroupKind.MLA, layers, near.kv_lora_rank, near.qk_rope_head_dim, value=near.head_size_v, tokens=tokens
        )
        return [*window, far] + ([_index_keys(fields, layers, tokens)] if with_indexer else [])

    return build


def _state(kind: GroupKind, layers: tuple[int, ...], state: StateShape) -> list[LayerShape]:
    return [
        LayerShape(
            kind=kind.value,
            layers=layers,
            num_kv_heads=state.ssm_heads,
            head_size=state.ssm_head_dim,
            head_size_v=state.ssm_state_size,
            state=state,
        )
    ]


def mamba2(fields: Fields, layers: tuple[int, ...]) -> list[LayerShape]:
    """Mamba 2: x of the heads, B and C of the groups."""
    heads = fields.integer("mamba_num_heads", HEADS_MAX)
    head = fields.integer("mamba_head_dim", HEAD_SIZE_MAX)
    groups = fields.integer("n_groups", HEADS_MAX)
    size = fields.integer("ssm_state_size", HEAD_SIZE_MAX)
    state = StateShape(
        conv_kernel=fields.integer("conv_kernel", HEAD_SIZE_MAX),
        sections=(
            ConvSection(name="conv_x", heads=heads, head_channels=head),
            ConvSection(name="conv_b", heads=groups, head_channels=size),
            ConvSection(name="conv_c", heads=groups, head_channels=size),
        ),
        ssm_heads=heads,
        ssm_head_dim=head,
        ssm_state_size=size,
    )
    return _state(GroupKind.MAMBA, layers, state)


def gated_delta(fields: Fields, layers: tuple[int, ...]) -> list[LayerShape]:
    """A gated delta net: q, k and v through one convolution."""
    return _state(
        GroupKind.GDN,
        layers,
        _delta(
            fields.integer("linear_conv_kernel_dim", HEAD_SIZE_MAX),
            keys=(
                fields.integer("linear_num_key_heads", HEADS_MAX),
                fields.integer("linear_key_head_dim", HEAD_SIZE_MAX),
            ),
            values=(
                fields.integer("linear_num_value_heads", HEADS_MAX),
                fields.integer("linear_value_head_dim", HEAD_SIZE_MAX),
            ),
        ),
    )


def kimi_delta(fields: Fields, layers: tuple[int, ...]) -> list[LayerShape]:
    """Kimi delta attention keeps what a gated delta net with as many heads of keys as of values keeps."""
    linear = Fields(fields.record("linear_attn_config"), {}, within="linear_attn_config.")
    each = (linear.integer("num_heads", HEADS_MAX), linear.integer("head_dim", HEAD_SIZE_MAX))
    kernel = linear.integer("short_conv_kernel_size", HEAD_SIZE_MAX)
    return _state(GroupKind.GDN, layers, _delta(kernel, keys=each, values=each))


def _delta(kernel: int, *, keys: tuple[int, int], values: tuple[int, int]) -> StateShape:
    return StateShape(
        conv_kernel=kernel,
        sections=(
            ConvSection(name="conv_b", heads=keys[0], head_channels=keys[1]),
            ConvSection(name="conv_c", heads=keys[0], head_channels=keys[1]),
            ConvSection(name="conv_x", heads=values[0], head_channels=values[1]),
        ),
        ssm_heads=values[0],
        ssm_head_dim=values[1],
        ssm_state_size=keys[1],
    )


def lightning(fields: Fields, layers: tuple[int, ...]) -> list[LayerShape]:
    """Lightning attention: a matrix for each head, no convolution."""
    size = _head_size(fields)
    heads = fields.integer("num_attention_heads", HEADS_MAX)
    state = StateShape(conv_kernel=0, sections=(), ssm_heads=heads, ssm_head_dim=size, ssm_state_size=size)
    return _state(GroupKind.MAMBA, layers, state)
