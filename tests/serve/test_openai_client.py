"""The official client, unchanged, against the gateway."""

import asyncio

import openai
import pytest
import pytest_asyncio

pytestmark = [pytest.mark.processes, pytest.mark.model, pytest.mark.asyncio(loop_scope="session")]


@pytest_asyncio.fixture(loop_scope="session")
async def client(pair):
    async with openai.AsyncOpenAI(base_url=f"{pair.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="session")
async def model(client) -> str:
    return (await client.models.list()).data[0].id


CHAT = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


async def test_models_lists_the_one_that_is_served(client):
    models = (await client.models.list()).data
    assert [model.id for model in models] == ["HuggingFaceTB/SmolLM2-135M-Instruct"]


async def test_a_chat_is_answered_whole(client, model):
    answer = await client.chat.completions.create(model=model, messages=CHAT, temperature=0, max_tokens=20)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (ANSWER, "stop")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens == 8  # seven of text, and the end of the turn


async def test_a_chat_streams_and_ends_with_its_usage(client, model):
    stream = await client.chat.completions.create(
        model=model,
        messages=CHAT,
        temperature=0,
        max_completion_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len(chunks) > 5
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == ANSWER
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 8
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_stream_has_no_usage_unless_it_is_asked_for(client, model):
    stream = await client.chat.completions.create(model=model, messages=CHAT, max_tokens=2, stream=True)
    chunks = [chunk async for chunk in stream]
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


async def test_text_and_token_ids_are_the_same_prompt(client, model, reference):
    one = reference[1]
    fields = {"model": model, "temperature": 0, "max_tokens": 8, "extra_body": {"return_token_ids": True}}
    by_text = await client.completions.create(prompt=one.text, **fields)
    by_ids = await client.completions.create(prompt=list(one.prompt), **fields)
    assert by_text.choices[0].token_ids == by_ids.choices[0].token_ids == list(one.answer[:8])
    assert by_text.choices[0].text == by_ids.choices[0].text
    assert by_ids.usage.prompt_tokens == len(one.prompt)
    assert by_ids.choices[0].finish_reason == "length"


@pytest.mark.parametrize("stop", ["Paris", ["zebra", " Paris"], "capital of Fr"])
async def test_a_stop_string_is_never_part_of_the_text(client, model, stop):
    fields = {"model": model, "messages": CHAT, "temperature": 0, "max_tokens": 20, "stop": stop}
    whole = await client.chat.completions.create(**fields)
    stream = [chunk async for chunk in await client.chat.completions.create(stream=True, **fields)]
    cut = min(ANSWER.find(each) for each in ([stop] if isinstance(stop, str) else stop) if each in ANSWER)
    assert whole.choices[0].message.content == ANSWER[:cut]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == ANSWER[:cut]
    assert whole.choices[0].finish_reason == stream[-1].choices[0].finish_reason == "stop"


async def test_a_seed_decides_every_draw(client, model):
    async def draw(seed: int | None) -> str:
        answer = await client.completions.create(
            model=model, prompt="Once upon a time", temperature=1.2, top_p=0.95, seed=seed, max_tokens=8
        )
        return answer.choices[0].text

    first, again, *others = await asyncio.gather(*(draw(seed) for seed in (7, 7, 1, 2, None)))
    assert first == again
    assert len({first, *others}) == 4


async def test_errors_arrive_as_the_client_names_them(client, model):
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.chat.completions.create(model="gpt-17", messages=CHAT)
    assert unknown.value.param == "model"
    assert model in str(unknown.value)
    with pytest.raises(openai.BadRequestError) as several:
        await client.chat.completions.create(model=model, messages=CHAT, n=2)
    assert several.value.param == "n"
    with pytest.raises(openai.BadRequestError) as hot:
        await client.completions.create(model=model, prompt="x", temperature=3, stream=True)
    assert (hot.value.param, hot.value.type) == ("temperature", "invalid_request_error")


async def test_nothing_is_held_afterwards(pair):
    assert await pair.held_blocks() == 0
