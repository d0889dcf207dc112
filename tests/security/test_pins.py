"""A client does not choose its workers, unless the deployment lets it."""

import pytest

from isthmus.core.clock import SystemClock
from isthmus.core.errors import NotAuthorised
from isthmus.serve.config import GatewayConfig
from isthmus.serve.gateway.answers import Answerer
from isthmus.serve.gateway.metrics import Metrics
from isthmus.serve.gateway.openai import CompletionRequest, status_of


class Tokenizer:
    """As much of one as a prompt of token ids needs."""

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0}


def answerer(**fields) -> Answerer:
    return Answerer(
        None,
        Tokenizer(),
        SystemClock(),
        Metrics(),
        model="m",
        context_length=64,
        vocab_size=8,
        max_tokens_default=4,
        **fields,
    )


BODY = CompletionRequest(model="m", prompt=[1, 2, 3])


@pytest.mark.parametrize("header", ["x-isthmus-producer", "x-isthmus-consumer"])
def test_a_pin_is_refused_by_default_and_the_message_names_header_and_setting(header):
    assert GatewayConfig().allow_pins is False
    with pytest.raises(NotAuthorised) as refused:
        answerer().prepare(BODY, {header: "decode-0"})
    assert refused.value.field == header
    assert "allow_pins" in str(refused.value)
    assert status_of(refused.value) == 403


def test_without_a_pin_nothing_is_refused_and_where_pins_are_allowed_they_count():
    assert answerer().prepare(BODY, {}).ask.pin_consumer is None
    assert answerer().prepare(BODY, {"x-isthmus-consumer": ""}).ask.pin_consumer is None
    ask = answerer(allow_pins=True).prepare(BODY, {"x-isthmus-consumer": "decode-0"}).ask
    assert (ask.pin_consumer, ask.pin_producer) == ("decode-0", None)
