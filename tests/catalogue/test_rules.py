"""The engines' rule files: they parse, say where each rule was read, and name only what there is."""

import re

import pytest

from isthmus.catalogue.encodings import encoding_named, row_named
from isthmus.catalogue.models import model_names
from isthmus.catalogue.rules import engine_commands, engine_file, engine_files
from isthmus.core.errors import BadInput, NotCovered, Unsupported
from isthmus.engines.launch.describe import describe
from isthmus.state.representation import GroupKind, KvOrder, Layout

ENGINES = engine_files()
REQUIRED = {
    "vllm", "vllm_gaudi", "vllm_ascend", "sglang", "tensorrt_llm", "lmcache", "llama_cpp", "transformers", "embedded",
}  # fmt: skip
READ_FROM_THE_START = {
    "engine_version", "accelerator", "vendor", "arch", "fp8", "kind", "model", "model_type", "dtype", "num_kv_heads",
    "head_size", "head_size_v", "sliding_window", "is_hybrid", "index_head_dim", "num_attention_heads",
    "num_hidden_layers", "max_position_embeddings", "tokens_per_state",
}  # fmt: skip
CLOSED = {"layout": Layout, "kv_order": KvOrder}
ACCELERATORS = ("h100", "b200", "mi300x", "mi355x", "cpu-amx", "gaudi2", "910b")


def test_the_engines_that_must_be_there_are():
    assert set(ENGINES) >= REQUIRED


@pytest.mark.parametrize("name", ENGINES)
def test_a_file_parses_and_says_where_it_comes_from(name):
    file = engine_file(name)
    assert file.engine == name
    assert file.title
    assert file.source
    assert bool(file.commands) != bool(file.plugin_of)  # a plugin runs under its engine's command
    assert bool(file.plugin_of) == bool(file.archs)
    assert all(rule.source for rule in file.rules)
    assert all(rule.why for rule in file.rules if rule.assume)
    assert all(bool(rule.set) + bool(rule.refuse) + bool(rule.unknown) == 1 for rule in file.rules)
    assert all(set(rule.versions) <= set(file.versions) for rule in file.rules)


@pytest.mark.parametrize("name", ENGINES)
def test_no_path_of_a_workplace_is_a_source(name):
    file = engine_file(name)
    for source in (file.source, *(rule.source for rule in file.rules), *(flag.source for flag in file.flags.values())):
        assert not re.search(r"(^|\s)/|\bshared/", source), source


@pytest.mark.parametrize("name", ENGINES)
def test_every_encoding_row_and_form_that_a_rule_names_exists(name):
    for rule in engine_file(name).rules:
        for setting, value in rule.set.items():
            if str(value).startswith("$"):
                continue
            if setting in ("encoding", "encoding_v"):
                encoding_named(str(value))
            if setting == "row":
                row_named(str(value))
            if setting in CLOSED:
                CLOSED[setting](str(value))


@pytest.mark.parametrize("name", ENGINES)
def test_every_name_in_a_condition_is_set_somewhere(name):
    """A misspelt name would make its rule hold never, or always."""
    file = engine_file(name)
    under = engine_file(file.plugin_of) if file.plugin_of else file
    flags = (*under.flags.values(), *under.environment.values(), *under.config_keys.values())
    known = READ_FROM_THE_START | {flag.setting for flag in flags} | {key for rule in file.rules for key in rule.set}
    for rule in file.rules:
        assert set(rule.when) <= known, rule
        assert {str(v)[1:] for v in rule.set.values() if str(v).startswith("$")} <= known, rule
        kinds = rule.when.get("kind", [])
        for kind in [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else []:
            GroupKind(kind)


@pytest.mark.parametrize("name", ENGINES)
def test_flags_are_either_read_or_ignored_and_aliases_are_nobodys_names(name):
    file = engine_file(name)
    aliases = [alias for flag in file.flags.values() for alias in flag.aliases]
    assert len(set(aliases)) == len(aliases)
    assert not set(aliases) & set(file.flags)
    assert not (set(file.flags) | set(aliases)) & set(file.ignored)
    assert set(file.ignored.values()) <= {"value", "values", "switch", "optional"}
    assert all(flag.setting or flag.unknown for flag in (*file.flags.values(), *file.environment.values()))


def test_no_two_engines_are_started_by_one_command():
    commands = [command for command, _ in engine_commands()]
    assert len(set(commands)) == len(commands)


def _command_of(name: str) -> str:
    return engine_file(name).plugin_of or name


def line(name: str, model: str, part: str) -> str:
    rules = engine_file(name)
    file = engine_file(rules.plugin_of) if rules.plugin_of else rules
    flag = next((flag for flag, said in file.flags.items() if said.setting == "model"), None)
    named = model if file.positional == "model" or flag is None else f"{flag} {model}"
    option = f"{file.engine}={rules.versions[-1]}"
    return f"{file.commands[0]} {named} @{part},{option}"


@pytest.mark.parametrize("name", ENGINES)
def test_every_model_on_every_kind_of_part_is_described_or_refused(name):
    """And where it is described, it is whole: every layer that keeps KV is in a group."""
    described = 0
    for part in ACCELERATORS:
        for model in model_names():
            try:
                found = describe(line(name, model, part))
            except (BadInput, NotCovered, Unsupported):
                continue
            if found.engine != name:
                assert _command_of(found.engine) == _command_of(name)  # the part is a plugin's, or its engine's
                continue
            described += 1
            assert found.representation.bytes_per_token + found.representation.bytes_per_sequence > 0
            assert len(found.attn_backends) == len(found.representation.groups)
    assert described > 0
