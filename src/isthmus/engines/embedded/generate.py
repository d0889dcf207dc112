"""One engine alone: prompts in, answers out, with blocks of its own. The reference that hand-offs are compared with."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from isthmus.core.errors import BadInput, CapacityExceeded
from isthmus.core.ids import Digest, RequestId
from isthmus.core.units import blocks_for
from isthmus.engines.embedded.engine import EmbeddedEngine
from isthmus.engines.embedded.pool import EncodedRows
from isthmus.engines.embedded.request import EngineRequest, StepOutput
from isthmus.engines.text import TextStream, Tokenizer
from isthmus.handoff.request import Sampling

__all__ = ["BlockAllocator", "Generated", "Piece", "generate", "stream"]


class BlockAllocator:
    """A free list over a pool that nobody else uses."""

    def __init__(self, num_blocks: int) -> None:
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> tuple[int, ...] | None:
        """`count` blocks, or None while there are not so many."""
        if count > len(self._free):
            return None
        return tuple(self._free.pop() for _ in range(count))

    def put(self, blocks: Sequence[int]) -> None:
        self._free.extend(blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """News of one prompt (by its index): a token, the text it makes certain, and on the last one the reason.

    `kv` is on the last piece where it was asked for: rows of all tokens whose KV was computed.
    """

    index: int
    token: int | None
    text: str
    finish_reason: str | None
    digest: Digest | None = None
    kv: EncodedRows | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """One answer. `kv` rows are uint8 [layers, tokens, heads, bytes] per field, of prompt and answer less its last."""

    prompt: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    finish_reason: str
    digest: Digest | None = None
    kv: EncodedRows | None = None


@dataclass(slots=True, kw_only=True)
class _Running:
    index: int
    prompt: tuple[int, ...]
    blocks: tuple[int, ...]
    text: TextStream | None
    tokens: list[int] = field(default_factory=list)


def generate(
    engine: EmbeddedEngine,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling | Sequence[Sampling],
    *,
    stop: Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
    keep_kv: bool = False,
) -> list[Generated]:
    """Answer all prompts, in their order. See `stream`."""
    tokens: list[list[int]] = [[] for _ in prompts]
    texts = [""] * len(prompts)
    digests: list[Digest | None] = [None] * len(prompts)
    last: dict[int, Piece] = {}
    for piece in stream(engine, prompts, sampling, stop=stop, tokenizer=tokenizer, keep_kv=keep_kv):
        if piece.token is not None:
            tokens[piece.index].append(piece.token)
        texts[piece.index] += piece.text
        digests[piece.index] = piece.digest if piece.digest is not None else digests[piece.index]
        if piece.finish_reason is not None:
            last[piece.index] = piece
    return [
        Generated(
            prompt=tuple(prompt),
            token_ids=tuple(tokens[index]),
            text=texts[index],
            finish_reason=last[index].finish_reason or "",
            digest=digests[index],
            kv=last[index].kv,
        )
        for index, prompt in enumerate(prompts)
    ]


def stream(
    engine: EmbeddedEngine,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling | Sequence[Sampling],
    *,
    stop: Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
    keep_kv: bool = False,
) -> Iterator[Piece]:
    """Answer prompts together, as many as there are blocks for; pieces come as they are made.

    Args:
        engine: idle, and used by nobody else meanwhile.
        prompts: token ids.
        sampling: one for all, or one each.
        stop: stop strings; they need the tokenizer, without which pieces have no text.
        keep_kv: read each request's KV back before its blocks are used again.

    Raises:
        CapacityExceeded: one prompt needs more blocks than the pool has.
        BadInput, ContextTooLong: as `EmbeddedEngine.check`.
    """
    if stop and tokenizer is None:
        raise BadInput("stop: got stop strings without a tokenizer, wanted both", field="stop")
    params = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    allocator = BlockAllocator(engine.pool.num_blocks)
    waiting = list(range(len(prompts)))
    running: dict[RequestId, _Running] = {}
    try:
        while waiting or running:
            while waiting and (started := _start(engine, allocator, waiting[0], prompts, params)) is not None:
                waiting.pop(0)
                request_id, run = started
                run.text = TextStream(tokenizer, stop) if tokenizer is not None else None
                running[request_id] = run
            for output in engine.step():
                piece, done = _piece(engine, running[output.request_id], output, keep_kv)
                if done:
                    engine.abort(output.request_id)
                    allocator.put(running.pop(output.request_id).blocks)
                yield piece
    finally:
        for request_id in running:
            engine.abort(request_id)


def _start(
    engine: EmbeddedEngine,
    allocator: BlockAllocator,
    index: int,
    prompts: Sequence[Sequence[int]],
    params: Sequence[Sampling],
) -> tuple[RequestId, _Running] | None:
    prompt = tuple(prompts[index])
    need = blocks_for(max(1, len(prompt) + params[index].max_tokens - 1), engine.pool.group.block_size)
    if need > engine.pool.num_blocks:
        raise CapacityExceeded(f"num_blocks: got {engine.pool.num_blocks}, wanted {need} for prompt {index}")
    blocks = allocator.take(need)
    if blocks is None:
        return None
    request_id = RequestId(f"local-{index}")
    engine.add(
        EngineRequest(request_id=request_id, token_ids=prompt, sampling=params[index], block_ids=blocks, exported=True)
    )
    return request_id, _Running(index=index, prompt=prompt, blocks=blocks, text=None)


def _piece(engine: EmbeddedEngine, run: _Running, output: StepOutput, keep_kv: bool) -> tuple[Piece, bool]:
    if output.error is not None:
        raise output.error
    assert output.token is not None
    run.tokens.append(output.token)
    reason: str | None = output.finish_reason
    text = ""
    if run.text is not None:
        text = run.text.push(output.token)
        if run.text.stopped:
            reason = "stop"
        elif reason is not None:
            text += run.text.finish()
    kv = None
    if reason is not None and keep_kv:
        kv = engine.pool.read_tokens(run.blocks, len(run.prompt) + len(run.tokens) - 1)
    piece = Piece(index=run.index, token=output.token, text=text, finish_reason=reason, digest=output.digest, kv=kv)
    return piece, reason is not None
