"""The engine's synchronous core: requests in, one step at a time, tokens out. One thread calls it.

A step reads and writes only blocks of requests the engine holds; a request that is done or aborted is in no later
step, so between steps "not held" means "will not be touched".
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from isthmus.core.errors import BadInput, Bug, CapacityExceeded, ContextTooLong, IsthmusError, Lost
from isthmus.core.ids import Digest, RequestId
from isthmus.core.limits import REQUESTS_IN_FLIGHT_MAX
from isthmus.engines.embedded.config import EmbeddedConfig, representation_of
from isthmus.engines.embedded.model import LoadedModel, load_model
from isthmus.engines.embedded.plan import Span, plan_step
from isthmus.engines.embedded.pool import Allocate, EncodedRows, PagedPool
from isthmus.engines.embedded.request import EngineRequest, FinishReason, StepOutput
from isthmus.engines.embedded.sampler import sample
from isthmus.engines.embedded.scheduler import Active, Chunk, Scheduler
from isthmus.kernels.torch_digest import row_digests
from isthmus.state.identity import TokenRange
from isthmus.state.representation import FIELD_NAMES

__all__ = ["EmbeddedEngine"]


class EmbeddedEngine:
    """A model, a pool, and the requests between them.

    Args:
        config: what was asked for.
        model, pool: what was made of it (`EmbeddedEngine.create` makes both).
    """

    def __init__(self, config: EmbeddedConfig, model: LoadedModel, pool: PagedPool) -> None:
        self.config = config
        self.model = model
        self.pool = pool
        self._scheduler = Scheduler(config.step_tokens)

    @classmethod
    def create(cls, config: EmbeddedConfig, *, allocate: Allocate = bytearray) -> "EmbeddedEngine":
        """Load the model and allocate the pool. Sets torch's thread count for the whole process.

        Raises:
            ConfigInvalid, Unsupported: see `load_model` and `representation_of`.
        """
        torch.set_num_threads(config.num_threads)
        model = load_model(config)
        representation = representation_of(config, model.shape)
        pool = PagedPool(representation, config.num_blocks, model.device, allocate)
        return cls(config, model, pool)

    @property
    def has_work(self) -> bool:
        """Whether the next step would compute anything."""
        return len(self._scheduler) > 0

    def holds(self, request_id: RequestId) -> bool:
        """Whether a later step may touch the request's blocks."""
        return request_id in self._scheduler

    def check(self, request: EngineRequest) -> None:
        """Whether the request fits the model and the pool. Reads nothing that changes: any thread may ask.

        Raises:
            ContextTooLong: prompt and answer do not fit the context.
            BadInput: a token or block id is out of range, or the blocks are too few.
        """
        if request.tokens_max > self.model.context_length:
            raise ContextTooLong(
                f"max_tokens: {len(request.token_ids)} tokens and up to {request.tokens_max - len(request.token_ids)} "
                f"more, wanted at most {self.model.context_length} in all",
                field="max_tokens",
            )
        vocabulary = self.model.shape.vocab_size
        if not all(0 <= token < vocabulary for token in request.token_ids):
            raise BadInput(f"token_ids: an id out of range, wanted 0 <= id < {vocabulary}", field="token_ids")
        if not all(0 <= block < self.pool.num_blocks for block in request.block_ids):
            raise BadInput(f"block_ids: an id out of range, wanted 0 <= id < {self.pool.num_blocks}", field="block_ids")
        slots = len(request.block_ids) * self.pool.group.block_size
        if slots < request.kv_tokens_max:
            raise BadInput(f"block_ids: got room for {slots} tokens, wanted {request.kv_tokens_max}", field="block_ids")

    def add(self, request: EngineRequest) -> None:
        """Hold a request; the next step may compute it.

        Raises:
            BadInput, ContextTooLong: as `check`; or the id is held already.
            CapacityExceeded: too many requests are held.
        """
        self.check(request)
        if request.request_id in self._scheduler:
            raise BadInput(f"request_id: {request.request_id} is held already, wanted a new id", field="request_id")
        if len(self._scheduler) >= REQUESTS_IN_FLIGHT_MAX:
            raise CapacityExceeded(f"requests: wanted at most {REQUESTS_IN_FLIGHT_MAX} in flight", field="requests")
        self._scheduler.add(Active.of(request))

    def abort(self, request_id: RequestId) -> None:
        """Let go of a request, between steps. Unknown ids are ignored."""
        self._scheduler.remove(request_id)

    def held(self) -> tuple[RequestId, ...]:
        """Requests that a later step may compute."""
        return tuple(active.request.request_id for active in self._scheduler)

    def fail(self, error: BaseException) -> list[StepOutput]:
        """Let go of every request after a step has raised: one output each, with the error."""
        cause = self.failure_of(error)
        held = self.held()
        for request_id in held:
            self.abort(request_id)
        return [StepOutput(request_id=request_id, done=True, error=cause) for request_id in held]

    @staticmethod
    def failure_of(error: BaseException) -> IsthmusError:
        """An error of torch's or Python's, as ours."""
        if isinstance(error, IsthmusError):
            return error
        return Bug(f"a step failed: {type(error).__name__}: {error}")

    @torch.inference_mode()
    def step(self) -> list[StepOutput]:
        """Compute one step: one output for each request that got a token, failed, or is followed and got further."""
        chunks = self._scheduler.next_step()
        if not chunks:
            return []
        spans = tuple(
            Span(
                token_ids=tuple(chunk.active.tokens[chunk.start : chunk.stop]),
                position=chunk.start,
                block_ids=chunk.active.request.block_ids,
            )
            for chunk in chunks
        )
        plan = plan_step(
            spans,
            step_tokens=self.config.step_tokens,
            block_size=self.pool.group.block_size,
            device=self.model.device,
        )
        hidden, cache = self.model.hidden_states(plan, self.pool)
        self._digest(chunks, cache.written)
        for chunk in chunks:
            chunk.active.computed = chunk.stop
        further = [
            StepOutput(request_id=chunk.active.request.request_id, filled_tokens=chunk.stop)
            for chunk in chunks
            if chunk.active.request.followed and not chunk.samples
        ]
        return [*further, *self._sample(chunks, hidden)]

    def _digest(self, chunks: Sequence[Chunk], written: Sequence[EncodedRows]) -> None:
        """Digest the rows that exported requests wrote, as encoded and before anybody else can reach them."""
        if not any(chunk.active.request.exported for chunk in chunks):
            return
        stacked = {name: torch.stack([rows.fields[name] for rows in written]) for name in written[0].fields}
        row = 0
        for chunk in chunks:
            if chunk.active.request.exported:
                per_token = sum(
                    row_digests(
                        rows[:, row : row + len(chunk)],
                        field_index=FIELD_NAMES.index(name),
                        layers=self.pool.group.layers,
                        token_start=chunk.start,
                        head_start=0,
                    )
                    for name, rows in stacked.items()
                )
                assert isinstance(per_token, Tensor)
                chunk.active.digests.update(zip(range(chunk.start, chunk.stop), per_token.tolist(), strict=True))
            row += len(chunk)

    def _sample(self, chunks: Sequence[Chunk], hidden: Tensor) -> list[StepOutput]:
        rows, row = [], 0
        for chunk in chunks:
            row += len(chunk)
            if chunk.samples:
                rows.append(row - 1)
        if not rows:
            return []
        logits = self.model.logits(hidden, rows)
        finite = logits.amax(dim=-1).isfinite().tolist()  # NaN spreads to the maximum
        sampling = [chunk for chunk in chunks if chunk.samples]
        return [self._advance(chunk.active, logits[i], bool(finite[i])) for i, chunk in enumerate(sampling)]

    def _advance(self, active: Active, logits: Tensor, finite: bool) -> StepOutput:
        """Take one request's next token, and let go of the request where that was its last."""
        request = active.request
        if not finite:
            # Never an answer from doubtful bytes: whatever made them, this request ends here.
            self._scheduler.remove(request.request_id)
            error = Lost(f"request {request.request_id}: its logits are not finite", field="logits")
            return StepOutput(request_id=request.request_id, done=True, error=error)
        token = sample(logits, request.sampling, active.sampled)
        index = active.sampled
        active.tokens.append(token)
        active.sampled += 1
        prefilled = not active.decoding
        reason = self._finish_reason(active, token)
        done = reason is not None or (prefilled and request.stop_after_prefill)
        if done:
            self._scheduler.remove(request.request_id)
        elif prefilled:
            self._scheduler.to_decode(active)
        filled = self._filled(active) if prefilled and request.exported else None
        return StepOutput(
            request_id=request.request_id,
            token=token,
            token_index=index,
            finish_reason=reason,
            prefilled=prefilled,
            done=done,
            digest=None if filled is None else Digest(sum(filled[1]) % (1 << 64)),
            digest_range=None if filled is None else filled[0],
            token_digests=() if filled is None else filled[1],
        )

    def _finish_reason(self, active: Active, token: int) -> FinishReason | None:
        sampling = active.request.sampling
        if token in self.model.eos_token_ids and not sampling.ignore_eos:
            return "stop"
        return "length" if active.sampled >= sampling.max_tokens else None

    def _filled(self, active: Active) -> tuple[TokenRange, tuple[Digest, ...]]:
        """The tokens of the prompt that were computed here, and the digest of each."""
        tokens = TokenRange(start=active.request.computed_tokens, stop=len(active.request.token_ids))
        positions = range(tokens.start, tokens.stop)
        return tokens, tuple(Digest(active.digests[position] % (1 << 64)) for position in positions)
