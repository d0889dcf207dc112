"""Conditions on settings, one test each."""

import pytest

from isthmus.catalogue.conditions import Condition, Value, holds
from isthmus.core.errors import Bug

SETTINGS: dict[str, Value] = {"arch": "sm90", "block_size": 32, "tp_size": "4", "shuffle": "true", "version": "0.33"}


@pytest.mark.parametrize(
    ("when", "wanted"),
    [
        ({}, True),
        ({"arch": "sm90"}, True),
        ({"arch": "sm100"}, False),
        ({"arch": ["sm100", "sm90"]}, True),
        ({"arch": []}, False),
        ({"absent": "x"}, False),
        ({"absent": ["x", "y"]}, False),
        ({"arch": "sm90", "block_size": 32}, True),
        ({"arch": "sm90", "block_size": 16}, False),
        ({"arch": {"not": "sm90"}}, False),
        ({"arch": {"not": "sm100"}}, True),
        ({"arch": {"not": ["sm100", "sm90"]}}, False),
        ({"absent": {"not": "x"}}, True),
        ({"arch": {"set": True}}, True),
        ({"arch": {"set": False}}, False),
        ({"absent": {"set": True}}, False),
        ({"absent": {"set": False}}, True),
        ({"absent": {"set": "false"}}, True),
        ({"block_size": {"min": 32}}, True),
        ({"block_size": {"min": 33}}, False),
        ({"block_size": {"max": 32}}, True),
        ({"block_size": {"max": 31}}, False),
        ({"block_size": {"min": 16, "max": 64}}, True),
        ({"block_size": {"min": 16, "max": 31}}, False),
        ({"block_size": {"multiple_of": 16}}, True),
        ({"block_size": {"multiple_of": 64}}, False),
        ({"block_size": {"not_multiple_of": 64}}, True),
        ({"block_size": {"not_multiple_of": 16}}, False),
        ({"absent": {"min": 1}}, False),
        ({"absent": {"not_multiple_of": 16}}, False),
        ({"tp_size": {"min": 4}}, True),  # a number in a string
        ({"arch": {"min": 1}}, False),  # no number
        ({"shuffle": True}, True),  # YAML's true is the word
        ({"shuffle": False}, False),
        ({"shuffle": {"not": False}}, True),
        ({"shuffle": {"set": True, "not": "false"}}, True),
    ],
)
def test_a_condition_holds_where_it_says_so(when: dict[str, Condition], wanted: bool) -> None:
    assert holds(when, SETTINGS) is wanted


@pytest.mark.parametrize("condition", [{"above": 3}, {"min": [1, 2]}])
def test_a_test_that_there_is_not_is_a_bug(condition: Condition) -> None:
    with pytest.raises(Bug):
        holds({"block_size": condition}, SETTINGS)


def test_a_number_and_its_word_are_different_values() -> None:
    assert not holds({"block_size": "32"}, SETTINGS)
    assert not holds({"tp_size": 4}, SETTINGS)
