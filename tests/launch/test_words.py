"""Whatever words stand in a line, the answer is a description or a refusal."""

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from isthmus.catalogue.rules import engine_commands, engine_file, engine_files
from isthmus.core.errors import Rejected
from isthmus.engines.launch.describe import describe
from isthmus.portability.check import check
from isthmus.state.description import Description

FILES = [engine_file(name) for name in engine_files()]
FLAGS = sorted({flag for file in FILES for flag in (*file.flags, *list(file.ignored)[:20])})
VALUES = sorted({str(value) for file in FILES for flag in file.flags.values() for value in flag.values})
VARIABLES = sorted({name for file in FILES for name in file.environment})
PARTS = ["h100", "b200", "mi300x", "mi355x", "cpu", "cpu-amx", "gaudi2", "910b", "rtx-5090", "tpu-v5e", "x", ""]
MODELS = ["Qwen/Qwen3-32B", "deepseek-ai/DeepSeek-V3.2", "openai/gpt-oss-20b", "Qwen/Qwen3-Next-80B-A3B-Instruct",
          "nvidia/Nemotron-H-8B-Base-8K", "google/gemma-3-12b-it", "deepseek-ai/DeepSeek-V4-Flash"]  # fmt: skip

values = st.sampled_from([*VALUES, *MODELS, "1", "2", "8", "0", "-1", "64", "x", "'", '"', "\\", "=", "--", "-"])
words = st.one_of(
    st.sampled_from(FLAGS),
    values,
    st.builds("{}={}".format, st.sampled_from(FLAGS), values),
    st.builds("{} {}".format, st.sampled_from(FLAGS), values),
    st.text(max_size=12),
)
variables = st.builds("{}={}".format, st.sampled_from(VARIABLES), values)
places = st.one_of(
    st.sampled_from(PARTS).map("@{}".format),
    st.builds("@{},{}={}".format, st.sampled_from(PARTS), st.sampled_from(engine_files()), values),
    st.text(max_size=6),
)
commands = st.sampled_from([command for command, _ in engine_commands()])


def described(line: str) -> Description | None:
    try:
        return describe(line)
    except Rejected:
        return None


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(variables, max_size=2), commands, st.lists(words, max_size=5), places)
@example([], "vllm serve", ["--enable-lora"], "@h100")
def test_any_words_after_a_command_are_described_or_refused(before, command, after, place):
    described(" ".join([*before, command, *after, place]))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(commands, st.sampled_from(MODELS), st.lists(st.tuples(st.sampled_from(FLAGS), values), max_size=2), places)
def test_lines_that_name_a_model_are_described_or_refused_and_a_side_is_read_by_itself(command, model, flags, place):
    named = f"--model-path {model}" if "sglang" in command else f"--model {model}" if "-m " in command else model
    found = described(" ".join([command, named, *(f"{flag} {value}" for flag, value in flags), place]))
    if found is not None and not any(group.opaque for group in found.representation.groups):
        assert check(found, found).verdict.outcome.value in ("direct", "unknown")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_described_or_refused(text):
    described(text)
