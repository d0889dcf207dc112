"""What a deployment's file may say of admission, and what it is told when it says something else."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from isthmus.core.errors import ConfigInvalid
from isthmus.core.ids import TenantId
from isthmus.serve.admission_config import blocks_of
from isthmus.serve.config import PoolConfig, parse_config

DOCS = Path(__file__).parents[2] / "docs" / "capacity.md"


def pool_with(admission: dict[str, Any], num_blocks: int = 100) -> PoolConfig:
    decode = {"name": "decode", "role": "decode", "num_blocks": num_blocks, "admission": admission}
    return parse_config({"pools": [{"name": "prefill", "role": "prefill"}, decode]}, where="test").pools[1]


def test_without_a_word_of_it_nobody_is_limited_and_half_a_pool_in_quarantine_is_too_much() -> None:
    admission = pool_with({}).admission
    quotas = admission.quotas_for(100)
    assert quotas.blocks_max(TenantId("anybody")) == 100
    assert blocks_of(admission.quarantine_max, 100) == 50


def test_amounts_are_blocks_or_shares_of_the_pool() -> None:
    quotas = pool_with(
        {"quotas": {"alice": {"min": "25%", "max": 60, "weight": 2}, "*": {"max": "12.5%"}}}
    ).admission.quotas_for(100)
    alice, other = TenantId("alice"), TenantId("bob")
    assert (quotas.of(alice).blocks_min, quotas.blocks_max(alice), quotas.of(alice).weight) == (25, 60, 2.0)
    assert quotas.blocks_max(other) == 12
    assert quotas.kept_from(other, lambda _: 5) == 20
    assert quotas.kept_from(alice, lambda _: 5) == 0


@pytest.mark.parametrize(
    ("admission", "field", "says"),
    [
        ({"quotes": {}}, "pools.1.admission.quotes", "quarantine_max, quotas, waiting_max"),
        ({"quotas": {"a": {"mim": 1}}}, "pools.1.admission.quotas.a.mim", "max, min, weight"),
        ({"quotas": {"a": {"min": 0.5}}}, "pools.1.admission.quotas.a.min", "valid integer"),
        ({"quotas": {"a": {"min": "101%"}}}, "pools.1.admission.quotas.a.min", "pattern"),
        ({"quotas": {"a": {"weight": 0}}}, "pools.1.admission.quotas.a.weight", "greater than 0"),
        ({"quotas": {"a": {"min": "60%"}, "b": {"min": 41}}}, "pools.1", "minimums add up to 101 blocks"),
        ({"quotas": {"a": {"min": 9, "max": 8}}}, "pools.1", "quotas.a: min 9, max 8 blocks"),
        ({"quotas": {"a": {"max": 101}}}, "pools.1", "num_blocks = 100"),
        ({"quotas": {"*": {"min": 1}}}, "pools.1", "quotas.*.min: got 1, wanted 0"),
        ({"waiting_max": 0}, "pools.1.admission.waiting_max", "greater than or equal to 1"),
        ({"quarantine_max": "all"}, "pools.1.admission.quarantine_max", "pattern"),
    ],
)
def test_what_cannot_be_is_refused_with_its_field_and_what_would_be_right(
    admission: dict[str, Any], field: str, says: str
) -> None:
    with pytest.raises(ConfigInvalid, match=re.escape(says)) as caught:
        pool_with(admission)
    assert field in str(caught.value)


def test_the_page_on_capacity_shows_a_file_that_is_one() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    raw = yaml.safe_load(text)
    raw["pools"].append({"name": "prefill", "role": "prefill"})
    config = parse_config(raw, where="docs/capacity.md")
    assert config.pools[0].admission.quotas["alice"].weight == 2.0
    assert config.gateway.retry_burst == 100
