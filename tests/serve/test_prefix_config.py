"""What a deployment's file may say of prefixes that are kept, and what it is told when it says something else."""

import re
from typing import Any, get_args

import pytest

from isthmus.core.errors import ConfigInvalid
from isthmus.ownership.residency import RESIDENCIES
from isthmus.ownership.retention import RETENTIONS
from isthmus.serve.config import PoolConfig, PrefixCachingConfig, parse_config

WHERE = "pools.1.prefix_caching"


def pool_with(prefix_caching: dict[str, Any]) -> PoolConfig:
    decode = {"name": "decode", "role": "decode", "prefix_caching": prefix_caching}
    return parse_config({"pools": [{"name": "prefill", "role": "prefill"}, decode]}, where="test").pools[1]


def test_without_a_word_of_it_prefixes_are_kept_in_the_pool_and_nowhere_else() -> None:
    config = pool_with({}).prefix_caching
    assert (config.enabled, config.host_bytes_max, config.files_folder) == (True, None, None)
    assert config.residency == "nearest_that_pays"


@pytest.mark.parametrize(("field", "policies"), [("retention", RETENTIONS), ("residency", RESIDENCIES)])
def test_every_policy_that_there_is_can_be_chosen_by_its_name(field: str, policies: dict[str, type]) -> None:
    assert get_args(PrefixCachingConfig.model_fields[field].annotation) == tuple(policies)
    for name in policies:
        assert getattr(pool_with({field: name}).prefix_caching, field) == name


@pytest.mark.parametrize(
    ("said", "field", "says"),
    [
        ({"residency": "nearest"}, "residency", "'nearest_that_pays', 'nearest_with_room' or 'memory_only'"),
        ({"host_bytes_max": 0}, "host_bytes_max", "greater than or equal to 1"),
        ({"host_bytes_max": 1 << 60}, "host_bytes_max", "less than or equal to"),
        ({"host_bytes": 1}, "host_bytes", "unknown key; known here: blocks_max, enabled, files_bytes_max"),
    ],
)
def test_what_cannot_be_is_refused_with_its_field_and_what_would_be_right(
    said: dict[str, Any], field: str, says: str
) -> None:
    with pytest.raises(ConfigInvalid, match=re.escape(says)) as caught:
        pool_with(said)
    assert f"{WHERE}.{field}: " in str(caught.value)
    assert caught.value.field == f"{WHERE}.{field}"
