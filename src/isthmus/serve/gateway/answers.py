"""From a client's body to an Ask, and from its tokens to text: what lies between HTTP and the dispatcher."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from isthmus.core.clock import Clock
from isthmus.core.errors import BadInput, ContextTooLong, NotAuthorised, UnknownModel
from isthmus.core.ids import TenantId, WorkerId
from isthmus.core.limits import NAME_CHARS_MAX
from isthmus.engines.text import TextStream
from isthmus.handoff.request import Sampling
from isthmus.serve.gateway.dispatch import Ask, Dispatcher
from isthmus.serve.gateway.metrics import Metrics
from isthmus.serve.gateway.openai import ChatRequest, CompletionRequest

__all__ = ["Answerer", "Piece", "Prepared"]

COMPLETION_TOKENS_DEFAULT = 16  # as the OpenAI API
TOP_P_MIN = 1e-9  # OpenAI allows 0, which means the likeliest token alone
TENANT = TenantId("default")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A request that may be answered."""

    ask: Ask
    text: TextStream
    chat: bool
    created: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some text of an answer, the tokens that came with it, and the reason where it is the last."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None = None


class Answerer:
    """Prepares and answers requests for one model."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        tokenizer: Any,
        clock: Clock,
        metrics: Metrics,
        *,
        model: str,
        context_length: int,
        vocab_size: int,
        max_tokens_default: int,
        allow_pins: bool = False,
    ) -> None:
        self._dispatcher = dispatcher
        self._tokenizer = tokenizer
        self._clock = clock
        self._metrics = metrics
        self.model = model
        self.context_length = context_length
        self._vocab_size = vocab_size
        self._max_tokens_default = max_tokens_default
        self._allow_pins = allow_pins
        self._token_chars_max = max(len(token) for token in tokenizer.get_vocab())

    def prepare(self, body: CompletionRequest | ChatRequest, headers: Mapping[str, str]) -> Prepared:
        """Tokenise and check.

        Raises:
            UnknownModel, BadInput: the field is named.
            NotAuthorised: it chooses its workers, and this deployment does not let clients.
            ContextTooLong: the prompt, or prompt and `max_tokens`, exceed the context.
        """
        if body.model != self.model:
            raise UnknownModel(f"model: {body.model!r} is not served here, {self.model!r} is", field="model")
        chat = isinstance(body, ChatRequest)
        prompt = self._tokenise(body)
        ask = Ask(
            request_id=f"{'chatcmpl' if chat else 'cmpl'}-{self._clock.token()}",
            tenant=TENANT,
            prompt=prompt,
            sampling=Sampling(
                max_tokens=self._max_tokens(body, len(prompt)),
                temperature=1.0 if body.temperature is None else body.temperature,
                top_p=1.0 if body.top_p is None else max(body.top_p, TOP_P_MIN),
                seed=int(self._clock.token()[:15], 16) if body.seed is None else body.seed,
                ignore_eos=body.ignore_eos,
            ),
            pin_producer=self._pin(headers, "x-isthmus-producer"),
            pin_consumer=self._pin(headers, "x-isthmus-consumer"),
        )
        text = TextStream(self._tokenizer, body.stops)
        return Prepared(ask=ask, text=text, chat=chat, created=self._clock.unix_seconds())

    async def answer(self, prepared: Prepared) -> AsyncGenerator[Piece]:
        """Text as it becomes certain. Close it to cancel. Raises as `Dispatcher.answer`."""
        ask, text = prepared.ask, prepared.text
        start = self._clock.now()
        first = None
        given = 0
        outcome = "cancelled"
        self._metrics.requests_running.inc()
        self._metrics.prompt_tokens.inc(len(ask.prompt))
        try:
            async with aclosing(self._dispatcher.answer(ask)) as events:
                async for event in events:
                    if first is None:
                        first = self._clock.now()
                        self._metrics.ttft.observe((first - start) / 1e9)
                    piece = text.push(event.token)
                    reason = "stop" if text.stopped else event.finish_reason
                    if reason is not None:
                        outcome = reason
                        piece += "" if text.stopped else text.finish()
                    if piece or reason is not None:
                        yield Piece(text=piece, token_ids=tuple(ask.sent[given:]), finish_reason=reason)
                        given = len(ask.sent)
                    if reason is not None:
                        return
        except Exception:
            outcome = "failed"
            raise
        finally:
            self._metrics.requests_running.dec()
            self._metrics.requests.labels(outcome).inc()
            self._metrics.generation_tokens.inc(len(ask.sent))
            if first is not None and len(ask.sent) > 1:
                self._metrics.tpot.observe((self._clock.now() - first) / 1e9 / (len(ask.sent) - 1))

    def _max_tokens(self, body: CompletionRequest | ChatRequest, prompt_tokens: int) -> int:
        """How long the answer may become. Raises ContextTooLong."""
        field, wanted = "max_tokens", body.max_tokens
        asked, default = "prompt", COMPLETION_TOKENS_DEFAULT
        if isinstance(body, ChatRequest):
            asked, default = "messages", self._max_tokens_default
            if body.max_completion_tokens is not None:
                field, wanted = "max_completion_tokens", body.max_completion_tokens
        room = self.context_length - prompt_tokens
        if room < 1:
            raise ContextTooLong(
                f"{asked}: {prompt_tokens} tokens, this model's context is {self.context_length} tokens and must also "
                "hold the answer",
                field=asked,
            )
        if wanted is not None and wanted > room:
            raise ContextTooLong(
                f"{field}: {wanted}, but a prompt of {prompt_tokens} tokens leaves room for {room} in a context of "
                f"{self.context_length}",
                field=field,
            )
        return min(default, room) if wanted is None else wanted

    def _tokenise(self, body: CompletionRequest | ChatRequest) -> tuple[int, ...]:
        if isinstance(body, ChatRequest):
            messages = [message.plain() for message in body.messages]
            self._bound(sum(len(message["content"]) for message in messages), "messages")
            return self._templated(messages)
        text = body.prompt
        self._bound(len(text) if isinstance(text, str) else 0, "prompt")
        ids = tuple(self._tokenizer(text)["input_ids"]) if isinstance(text, str) else tuple(text)
        if not ids:
            raise BadInput("prompt: got no tokens, wanted at least one", field="prompt")
        if max(ids) >= self._vocab_size:
            raise BadInput(f"prompt: token id {max(ids)}, wanted less than {self._vocab_size}", field="prompt")
        return ids

    def _pin(self, headers: Mapping[str, str], name: str) -> WorkerId | None:
        value = headers.get(name)
        if not value:
            return None
        if not self._allow_pins:
            raise NotAuthorised(
                f"{name}: clients do not choose workers here; `gateway: {{allow_pins: true}}` lets them", field=name
            )
        return WorkerId(value[:NAME_CHARS_MAX])

    def _bound(self, characters: int, field: str) -> None:
        """Refuse what cannot fit before it is tokenised: that takes seconds for megabytes, and others wait."""
        most = self.context_length * self._token_chars_max
        if characters > most:
            raise ContextTooLong(
                f"{field}: {characters} characters, a context of {self.context_length} tokens holds at most {most}",
                field=field,
            )

    def _templated(self, messages: list[dict[str, str]]) -> tuple[int, ...]:
        try:
            encoded = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True, tokenize=True
            )
        except (ValueError, TemplateError) as error:  # a base model has no template, and a template may refuse a role
            raise BadInput(
                f"messages: this model's chat template does not take them: {error}", field="messages"
            ) from None
        return tuple(encoded["input_ids"])
