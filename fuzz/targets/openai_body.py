"""What a client sends to the gateway."""

import json

from isthmus.core.errors import BadInput
from isthmus.serve.gateway.openai import ChatRequest, CompletionRequest
from isthmus.serve.gateway.openai import parse as parse_body

REFUSALS = (BadInput,)


def seeds() -> list[bytes]:
    sampling = {"max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["x"], "stream": True}
    return [
        json.dumps({"model": "m", "prompt": "Hello", **sampling}).encode(),
        json.dumps({"model": "m", "prompt": [1, 2, 3], "return_token_ids": True}).encode(),
        json.dumps({"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}).encode(),
    ]


def parse(data: bytes) -> None:
    refused = 0
    for kind in (CompletionRequest, ChatRequest):
        try:
            body = parse_body(data, kind)
            if any(not isinstance(stop, str) for stop in body.stops):
                raise ValueError("a stop that is no text")
        except BadInput:
            refused += 1
