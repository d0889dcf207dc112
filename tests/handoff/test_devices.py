"""Prefill on one kind of device, decode on another: the same bytes. Needs a CUDA device, and is skipped without one."""

import pytest
import torch

from tests.engines.models import random_prompt
from tests.handoff.worlds import World, ask

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

PROMPT = random_prompt(45, seed=1)
UNLIKE = {"kv_layout": "HND", "kv_order": "packed_c", "block_size": 64, "tp_size": 2}


@pytest.mark.parametrize(("producer", "consumer"), [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")])
async def test_what_one_device_filled_is_what_the_other_decodes_from(model, producer, consumer):
    request = ask(PROMPT)
    async with World(model, {"device": producer}, {"device": consumer, **UNLIKE}) as world:
        released = await world.hand_off(request)
        filled, installed = world.offers[0][2], world.installed_rows(request, released)
        for field, rows in filled.fields.items():
            assert torch.equal(installed.fields[field].cpu(), rows.cpu())
        assert len(await world.decode(request, released)) == request.sampling.max_tokens
        await world.drained()
