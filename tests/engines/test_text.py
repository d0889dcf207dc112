"""Streaming text: deltas concatenate to the whole, cut where the first stop string is complete."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from isthmus.core.errors import BadInput, ConfigInvalid
from isthmus.engines.text import Detokenizer, StopStrings, TextStream, load_tokenizer


def byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each byte, by byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [table[byte] for byte in range(256)]


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Ids 0 to 255 are bytes, 256 to 258 words, 259 is special."""
    words = [*byte_characters(), "the", "\u0120stop", "\u0120END"]
    raw = RawTokenizer(models.BPE(vocab={word: n for n, word in enumerate(words)}, merges=[]))
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=raw, clean_up_tokenization_spaces=False)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A decoder that drops the space before the first word, as sentencepiece models do."""
    words = ["\u2581the", "\u2581end", "ing", "\u2581", "é", "。", "\u2581stop"]
    raw = RawTokenizer(models.BPE(vocab={word: n for n, word in enumerate(words)}, merges=[]))
    raw.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, clean_up_tokenization_spaces=False)


BYTES, WORDS = byte_level_tokenizer(), word_tokenizer()
texts = st.text(alphabet=st.sampled_from("ab é€😀\n"), max_size=12)


def truncated(text: str, stops: list[str]) -> str:
    """Up to the first stop string to be completed."""
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return text[: min(ends)[1]] if ends else text


@given(st.lists(st.one_of(st.integers(0, 259), st.sampled_from(list("é😀€".encode()))), max_size=40))
def test_pieces_of_any_tokens_concatenate_to_the_whole_text(ids):
    stream = Detokenizer(BYTES)
    pieces = [stream.push(token) for token in ids] + [stream.finish()]
    assert "".join(pieces) == BYTES.decode(ids, skip_special_tokens=True)


@given(st.lists(st.integers(0, 6), max_size=20))
def test_pieces_keep_spaces_that_a_decoder_drops_at_a_start(ids):
    stream = Detokenizer(WORDS)
    assert "".join([stream.push(token) for token in ids] + [stream.finish()]) == WORDS.decode(ids)


def test_a_character_is_held_back_until_it_is_whole():
    stream = Detokenizer(BYTES)
    assert [stream.push(byte) for byte in "a😀b".encode()] == ["a", "", "", "", "😀", "b"]
    assert stream.push("é".encode()[0]) == ""
    assert stream.finish() == "\ufffd"


@given(texts, st.lists(texts.filter(bool), max_size=4), st.randoms(use_true_random=False))
def test_text_in_any_pieces_is_cut_before_the_first_stop_string_to_be_completed(text, stops, chance):
    stream, given_out, rest = StopStrings(stops), "", text
    while rest:
        length = chance.randint(1, len(rest))
        given_out += stream.push(rest[:length])
        rest = rest[length:]
        assert truncated(text, stops).startswith(given_out)
    assert given_out + stream.finish() == truncated(text, stops)
    assert stream.matched == any(stop in text for stop in stops)


@given(texts, st.lists(texts.filter(bool), max_size=4))
def test_tokens_to_text_cut_at_stop_strings(text, stops):
    stream = TextStream(BYTES, stops)
    pieces = [stream.push(byte) for byte in text.encode()]
    assert "".join([*pieces, stream.finish()]) == truncated(text, stops)
    assert stream.stopped == any(stop in text for stop in stops)


def test_the_beginning_of_a_stop_string_is_held_back_and_given_when_it_was_none():
    stream = StopStrings(["END"])
    assert [stream.push(text) for text in ("a", "E", "N", "d", "EN")] == ["a", "", "", "ENd", ""]
    assert stream.finish() == "EN"


@pytest.mark.parametrize("stops", [[""], ["x"] * 5, ["x" * 1000]])
def test_a_wrong_stop_string_is_refused(stops):
    with pytest.raises(BadInput, match="stop"):
        StopStrings(stops)


def test_a_directory_without_tokenizer_is_named(tmp_path):
    with pytest.raises(ConfigInvalid, match="tokenizer"):
        load_tokenizer(tmp_path)
