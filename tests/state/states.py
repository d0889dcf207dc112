"""Runtime KV states, whole ones and random ones."""

import numpy as np
from hypothesis import strategies as st

from isthmus.state.identity import Identity, ModelLineage, RopeState, TokenRange, WeightsRecord
from isthmus.state.partition import Partition
from isthmus.state.representation import GroupKind, GroupRepresentation, KvOrder, Layout, attention
from isthmus.state.runtime_kv_state import GroupState, KVRepresentation, Ownership, Residency, RuntimeKVState
from isthmus.state.tokens import pack_tokens, tokens_digest
from tests.strategies import encoding_of, groups, partitions, shapes, valid

TOKENS = tuple(range(40))

IDENTITY = Identity(
    lineage=ModelLineage(base_model="org/model", revision="main"),
    weights=WeightsRecord(dtype="bfloat16", digest="ab" * 32),
    rope=RopeState(applied=True, theta=10_000.0, rope_dim=16, style="neox"),
)
GROUP = GroupRepresentation(
    kind=GroupKind.FULL_ATTENTION,
    layers=(0, 1),
    components=attention(heads=4, head_size=16, head_size_v=16, encoding=encoding_of("bf16")),
    block_size=16,
    layout=Layout.LBNHC,
    kv_order=KvOrder.KV_OUTER,
)
OWNERSHIP = Ownership(
    owner="prefill-0",
    incarnation="a" * 32,
    handoff="d" * 32,
    grant="e" * 64,
    epoch=1,
    tenant="tenant-0",
    lease_ms=2000,
)


def a_state(**changes) -> RuntimeKVState:
    """A state of 40 tokens in 3 blocks, with fields changed."""
    fields = {
        "identity": IDENTITY,
        "token_range": TokenRange(start=0, stop=40),
        "tokens_digest": tokens_digest(pack_tokens(TOKENS)),
        "representation": KVRepresentation(groups=(GROUP,), partition=Partition(tp_size=2)),
        "groups": (GroupState(block_ids=(5, 1, 9), logical_digest=1 << 63),),
        "residency": Residency(tier="host", num_blocks=10),
        "ownership": OWNERSHIP,
    }
    return RuntimeKVState(**fields | changes)


def hexes(low: int, high: int) -> st.SearchStrategy[str]:
    return st.text("0123456789abcdef", min_size=low, max_size=high)


names = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), min_size=1, max_size=20)
digests = st.one_of(st.just(""), hexes(16, 64))

identities = st.builds(
    Identity,
    lineage=st.builds(ModelLineage, base_model=names, revision=names),
    weights=st.builds(
        WeightsRecord,
        dtype=st.sampled_from(["float32", "bfloat16", "fp8"]),
        digest=digests,
        published=st.sampled_from(["", "org/model@main", "org/other@main"]),
    ),
    rope=st.builds(
        RopeState,
        applied=st.booleans(),
        theta=st.floats(1, 1e9),
        rope_dim=st.integers(0, 256),
        style=st.sampled_from(["neox", "interleaved"]),
        scaling_digest=digests,
        position_origin=st.integers(0, 1 << 20),
    ),
    architecture_digest=digests,
    adapter=st.one_of(st.just(""), names),
    multimodal_digest=digests,
)
ownerships = st.builds(
    Ownership,
    owner=names,
    incarnation=hexes(32, 32),
    handoff=hexes(32, 32),
    grant=hexes(64, 64),
    epoch=st.integers(1, (1 << 63) - 1),
    tenant=names,
    lease_ms=st.integers(1, 1 << 40),
)


@st.composite
def representations(draw) -> KVRepresentation:
    """Any one or two layer groups: of other layers, or of other components of the same ones."""
    group = draw(shapes().flatmap(groups))
    partition, held = draw(partitions(group)), [group]
    if draw(st.booleans()):
        more = draw(shapes().flatmap(groups))
        held.append(more)
    return valid(lambda: KVRepresentation(groups=tuple(held), partition=partition))


def blocks_of(group: GroupRepresentation, partition: Partition, tokens: TokenRange) -> int:
    """Entries of a block table, counted row by row."""
    rows = group.held(tokens)
    span = group.block_size * partition.dcp_size
    return len({row // span for row in range(rows.start, rows.stop)})


@st.composite
def states(draw) -> RuntimeKVState:
    """Anything that a producer could offer, of one or two layer groups."""
    representation = draw(representations())
    start = draw(st.integers(0, 20))
    tokens = TokenRange(start=start, stop=start + draw(st.integers(1, 60)))
    counts = [blocks_of(group, representation.partition, tokens) for group in representation.groups]
    num_blocks = max(counts) + draw(st.integers(0, 9))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    return RuntimeKVState(
        identity=draw(identities),
        token_range=tokens,
        tokens_digest=draw(hexes(64, 64)),
        representation=representation,
        groups=tuple(
            GroupState(
                block_ids=tuple(int(block) for block in rng.permutation(num_blocks)[:count]),
                logical_digest=draw(st.integers(0, (1 << 64) - 1)),
            )
            for count in counts
        ),
        residency=Residency(
            tier=draw(st.sampled_from(["device", "pinned_host", "host", "file", "remote"])), num_blocks=num_blocks
        ),
        ownership=draw(ownerships),
    )
