"""OpenAI's request and response shapes, as far as they are served here. Unknown fields are refused by name."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, inspect

from isthmus.core.errors import BadInput, CapacityExceeded, IsthmusError, Lost, QuotaExceeded, Rejected
from isthmus.core.limits import MESSAGES_PER_CHAT_MAX, STOP_STRINGS_MAX, TOKENS_PER_REQUEST_MAX

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "chunk",
    "error_body",
    "parse",
    "response",
    "status_of",
    "usage",
]


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`include_usage` adds a last chunk with the usage and no choices."""

    include_usage: bool | None = None


class _Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fields that both endpoints share. Ranges are OpenAI's, but for `n`; `ignore_eos` and
    `return_token_ids` are vLLM's extensions.
    """

    model: str
    max_tokens: Annotated[int, Meta(ge=1, le=TOKENS_PER_REQUEST_MAX)] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=STOP_STRINGS_MAX)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=1)] | None = None
    user: str | None = None
    ignore_eos: bool = False
    return_token_ids: bool = False

    @property
    def stops(self) -> Sequence[str]:
        return [self.stop] if isinstance(self.stop, str) else (self.stop or [])

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class CompletionRequest(_Body, frozen=True, kw_only=True):
    """POST /v1/completions. `prompt` is text or token ids."""

    prompt: str | Annotated[list[Annotated[int, Meta(ge=0)]], Meta(max_length=TOKENS_PER_REQUEST_MAX)]


class TextPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a message's content; only text is served."""

    type: Annotated[str, Meta(pattern=r"^text\Z")]
    text: str


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A turn of a chat."""

    role: Annotated[str, Meta(pattern=r"^(system|user|assistant|developer)\Z")]
    content: str | list[TextPart]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """As a chat template takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(_Body, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MESSAGES_PER_CHAT_MAX)]
    max_completion_tokens: Annotated[int, Meta(ge=1, le=TOKENS_PER_REQUEST_MAX)] | None = None


BodyT = TypeVar("BodyT", bound=_Body)


def parse(data: bytes, kind: type[BodyT]) -> BodyT:
    """Parse a body. Raises BadInput naming the field and what would be right."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        message = str(error)
        said, _, path = message.partition(" - at `$")
        field = path.rstrip("`").lstrip(".")
        unknown = re.search(r"unknown field `(.+?)`", said)
        missing = re.search(r"missing required field `(.+?)`", said)
        if unknown:
            said = f"unknown field; known here: {', '.join(_fields_at(kind, field))}"
            field = f"{field}.{unknown[1]}".lstrip(".")
        elif missing:
            field = f"{field}.{missing[1]}".lstrip(".")
            said = "missing, and required"
        raise BadInput(f"{field or 'body'}: {said}", field=field or "body") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"body: not JSON: {error}", field="body") from None


def _fields_at(kind: type[_Body], path: str) -> list[str]:
    """What the object at `path` of a body may have, `messages[0]` for one."""
    found: tuple[inspect.Type, ...] = (inspect.type_info(kind),)
    for part in re.findall(r"\w+", path):
        if part.isdigit():
            inner = [each.item_type for each in found if isinstance(each, inspect.ListType)]
        else:
            inner = [field.type for field in _fields(found) if field.encode_name == part]
        found = tuple(one for each in inner for one in (each.types if isinstance(each, inspect.UnionType) else (each,)))
    return sorted(field.encode_name for field in _fields(found))


def _fields(types: Sequence[inspect.Type]) -> list[inspect.Field]:
    return [field for each in types if isinstance(each, inspect.StructType) for field in each.fields]


def response(kind: str, id_: str, created: int, model: str, choice: dict[str, Any], used: dict[str, int]) -> Any:
    """A whole answer."""
    return {
        "id": id_,
        "object": kind,
        "created": created,
        "model": model,
        "choices": [{"index": 0, "logprobs": None, **choice}],
        "usage": used,
    }


def chunk(
    kind: str, id_: str, created: int, model: str, choice: dict[str, Any] | None, used: dict[str, int] | None = None
) -> dict[str, Any]:
    """One event of a stream; without a choice it carries the usage."""
    body: dict[str, Any] = {"id": id_, "object": kind, "created": created, "model": model}
    body["choices"] = [] if choice is None else [{"index": 0, "logprobs": None, **choice}]
    if used is not None:
        body["usage"] = used
    return body


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Token counts."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def status_of(error: IsthmusError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, Rejected):
        return error.http_status
    return 503 if isinstance(error, Lost) else 500


def error_body(error: IsthmusError) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    status = status_of(error)
    kind = "invalid_request_error" if status < 500 else "service_unavailable" if status == 503 else "server_error"
    if isinstance(error, CapacityExceeded):
        kind = "rate_limit_error" if isinstance(error, QuotaExceeded) else "overloaded"
    return {"error": {"message": str(error), "type": kind, "param": error.field or None, "code": error.code}}
