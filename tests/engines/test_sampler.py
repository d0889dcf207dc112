"""Sampling is a pure function, and top_p keeps what it says."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isthmus.engines.embedded.sampler import sample, uniform
from isthmus.handoff.request import Sampling


def test_a_uniform_is_decided_by_seed_and_counter_and_spreads_evenly():
    draws = [uniform(seed, counter) for seed in range(40) for counter in range(50)]
    assert len(set(draws)) == len(draws)
    assert all(0.0 <= draw < 1.0 for draw in draws)
    assert sum(draws) / len(draws) == pytest.approx(0.5, abs=0.03)
    assert uniform(3, 4) == 0.7959408468342613  # workers of different builds must draw alike


def test_greedy_takes_the_lowest_of_equals():
    assert sample(torch.tensor([0.0, 2.0, 2.0]), Sampling(), counter=9) == 1


@given(st.integers(0, 1000), st.floats(0.05, 1.0), st.integers(0, 1 << 30))
def test_only_tokens_of_the_smallest_set_that_reaches_top_p_are_drawn(counter, top_p, seed):
    logits = torch.randn(50, generator=torch.Generator().manual_seed(seed)) * 3
    probabilities = torch.softmax(logits.double(), dim=-1)
    order = torch.argsort(probabilities, descending=True, stable=True).tolist()
    kept, total = [], 0.0
    for token in order:
        kept.append(token)
        total += float(probabilities[token])
        if total >= top_p - 1e-12:
            break
    sampling = Sampling(temperature=1.0, top_p=top_p, seed=seed)
    drawn = sample(logits, sampling, counter)
    assert drawn in kept
    assert sample(logits.clone(), sampling, counter) == drawn


def test_draws_follow_the_probabilities_at_their_temperature():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    sampling = Sampling(temperature=0.7, seed=5)
    counts = Counter(sample(logits, sampling, counter) for counter in range(4000))
    wanted = torch.softmax(logits / 0.7, dim=-1)
    for token in range(4):
        assert counts[token] / 4000 == pytest.approx(float(wanted[token]), abs=0.03)


def test_a_tiny_top_p_is_greedy():
    logits = torch.tensor([0.3, 0.9, 0.8])
    assert {sample(logits, Sampling(temperature=2.0, top_p=1e-6), c) for c in range(50)} == {1}


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -0.1), ("temperature", float("nan")), ("top_p", 0.0), ("top_p", 1.5), ("max_tokens", 0)],
)
def test_a_field_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}: "):
        Sampling(**{field: value})


@pytest.mark.parametrize("temperature", [1e-300, 1e-308, 5e-324])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_smallest_temperatures_are_greedy(temperature, top_p):
    logits = torch.zeros(1000)
    logits[17] = 5.0
    assert sample(logits, Sampling(temperature=temperature, top_p=top_p), counter=0) == 17
