"""Nonsense from clients: each an error in OpenAI's shape that names the field and what would be right."""

import json
from typing import Any

import pytest

from isthmus.core.limits import HTTP_BODY_BYTES_MAX
from tests.serve.shapes import CONTEXT_LENGTH

pytestmark = [pytest.mark.processes, pytest.mark.model, pytest.mark.asyncio(loop_scope="session")]

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]

BODIES: dict[str, tuple[str, dict[str, Any], int, str, str]] = {
    # case: (endpoint, fields, status, param, what the message says of what would be right)
    "a prompt longer than the context": (COMPLETION, {"prompt": [5] * 600}, 400, "prompt", str(CONTEXT_LENGTH)),
    "a chat longer than the context": (
        CHAT,
        {"messages": [{"role": "user", "content": "word " * 600}]},
        400,
        "messages",
        str(CONTEXT_LENGTH),
    ),
    "max_tokens too large": (COMPLETION, {"prompt": [5] * 12, "max_tokens": 501}, 400, "max_tokens", "500"),
    "max_completion_tokens too large": (
        CHAT,
        {"messages": HELLO, "max_completion_tokens": 512},
        400,
        "max_completion_tokens",
        "room for",
    ),
    "max_tokens of zero": (COMPLETION, {"prompt": "x", "max_tokens": 0}, 400, "max_tokens", ">= 1"),
    "an unknown model": (CHAT, {"messages": HELLO, "model": "gpt-17"}, 404, "model", MODEL),
    "no model": (CHAT, {"messages": HELLO, "model": None}, 400, "model", "str"),
    "an unknown field": (CHAT, {"messages": HELLO, "temprature": 1}, 400, "temprature", "temperature"),
    "an unknown field further down": (
        CHAT,
        {"messages": [{"role": "user", "content": "x", "mood": 1}]},
        400,
        "messages[0].mood",
        "content",
    ),
    "a wrong type": (COMPLETION, {"prompt": "x", "temperature": "hot"}, 400, "temperature", "float"),
    "a wrong type further down": (CHAT, {"messages": [{"role": "user"}]}, 400, "messages[0].content", "required"),
    "a wrong role": (CHAT, {"messages": [{"role": "boss", "content": "x"}]}, 400, "messages[0].role", "user"),
    "several answers": (CHAT, {"messages": HELLO, "n": 2}, 400, "n", "<= 1"),
    "an empty prompt": (COMPLETION, {"prompt": ""}, 400, "prompt", "at least one"),
    "no token ids": (COMPLETION, {"prompt": []}, 400, "prompt", "at least one"),
    "no messages": (CHAT, {"messages": []}, 400, "messages", ">= 1"),
    "a token id out of range": (COMPLETION, {"prompt": [1, 49152]}, 400, "prompt", "less than 49152"),
    "an empty stop string": (COMPLETION, {"prompt": "x", "stop": ""}, 400, "stop", "1 to"),
    "too many stop strings": (COMPLETION, {"prompt": "x", "stop": list("abcde")}, 400, "stop", "<= 4"),
    "a seed below zero": (COMPLETION, {"prompt": "x", "seed": -1}, 400, "seed", ">= 0"),
    "a picture": (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        "messages[0].content[0].type",
        "text",
    ),
}


@pytest.mark.parametrize("case", BODIES)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_bad_body_is_refused_with_its_field(pair, case, stream):
    endpoint, fields, status, param, said = BODIES[case]
    body = {"model": MODEL, "stream": stream, **fields}
    answer = await pair.client.post(endpoint, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert said in error["message"]
    assert error["message"].startswith(f"{param}:")
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[1]", b'{"model": ' + b"[" * 5000], ids=range(5))
async def test_a_body_that_is_not_a_json_object_is_refused(pair, content):
    answer = await pair.client.post(CHAT, content=content)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] in ("body", "model")


async def test_a_body_that_is_too_large_is_refused_whatever_its_headers_say(pair):
    async def parts():
        for _ in range(HTTP_BODY_BYTES_MAX // (1 << 20) + 2):
            yield b" " * (1 << 20)

    answer = await pair.client.post(COMPLETION, content=parts())
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "body"
    assert str(HTTP_BODY_BYTES_MAX) in answer.json()["error"]["message"]


async def test_an_unknown_endpoint_and_a_wrong_method_say_what_there_is(pair):
    unknown = await pair.client.get("/v1/embeddings")
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "path")
    assert CHAT in unknown.json()["error"]["message"]
    wrong = await pair.client.get(CHAT)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"]["param"] == "method"
    assert "wanted POST" in wrong.json()["error"]["message"]


async def test_a_pinned_worker_that_is_not_there_is_named(pair):
    answer = await pair.client.post(
        COMPLETION,
        json={"model": MODEL, "prompt": "x", "max_tokens": 1},
        headers={"x-isthmus-consumer": "decode-9"},
    )
    assert answer.status_code == 503
    assert "decode-9" in answer.json()["error"]["message"]
    assert int(answer.headers["retry-after"]) >= 1


async def test_the_processes_have_lived_through_all_of_this(pair):
    assert set(pair.pids()) == {"gateway", "prefill-0", "decode-0"}
    answer = await pair.client.post(COMPLETION, json={"model": MODEL, "prompt": "Hello", "max_tokens": 2})
    assert answer.status_code == 200
    assert json.loads(answer.content)["usage"]["completion_tokens"] == 2
    assert await pair.held_blocks() == 0
