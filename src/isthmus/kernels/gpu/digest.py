"""The logical digest, inside kernels. `reference.row_hashes` is the definition, `mixing` has the constants."""

import triton
import triton.language as tl

from isthmus.kernels import mixing

__all__ = ["mix", "places", "position", "row_hashes", "row_sums", "words_of"]

_A = tl.constexpr(mixing.SPLIT_A)
_B = tl.constexpr(mixing.SPLIT_B)


@triton.jit
def mix(value):
    """splitmix64's finaliser, of uint64."""
    value = (value ^ (value >> 30)) * _A
    value = (value ^ (value >> 27)) * _B
    return value ^ (value >> 31)


@triton.jit
def position(number, head, rest):
    """What rows at tokens `number` and the model's heads `head` add to their words. `rest`: all other bits, the key."""
    place = (number << 24) ^ (head.to(tl.int64) << 4) ^ rest
    return mix(place.to(tl.uint64, bitcast=True))


@triton.jit
def places(unit_tables, unit, START: tl.constexpr, UNITS: tl.constexpr, STEP: tl.constexpr):
    """Where units of a row lie: every STEP one after another, or as the table from entry START on says."""
    if START < 0:
        return unit * STEP
    return tl.load(unit_tables + START + unit, mask=unit < UNITS, other=0)


@triton.jit
def words_of(units, ROWS: tl.constexpr, WORDS: tl.constexpr, EACH: tl.constexpr):
    """uint64 [ROWS, WORDS] of integers [ROWS, WORDS * EACH], little-endian: the words of rows of short units."""
    bits: tl.constexpr = 64 // EACH
    mask: tl.constexpr = (1 << bits) - 1
    if EACH == 1:
        return units.to(tl.uint64, bitcast=True)
    if units.shape[1] < EACH:
        narrow = (units.to(tl.int64) & mask).to(tl.uint64, bitcast=True)
        shift = (tl.arange(0, units.shape[1]) * bits).to(tl.uint64)
        return tl.sum(narrow << shift[None, :], axis=1)[:, None]
    wide = tl.reshape((units.to(tl.int64) & mask).to(tl.uint64, bitcast=True), [ROWS, WORDS, EACH])
    shifts = (tl.arange(0, EACH) * bits).to(tl.uint64)
    return tl.sum(wide << shifts[None, None, :], axis=2)


@triton.jit
def row_sums(words, keys, WORDS: tl.constexpr, WIDTH: tl.constexpr):
    """uint64 [ROWS]: words [ROWS, WIDTH], of which the first WORDS count, each mixed under its key."""
    mixed = mix(words ^ keys[None, :])
    if WORDS != WIDTH:
        mixed = tl.where((tl.arange(0, WIDTH) < WORDS)[None, :], mixed, 0)
    return tl.sum(mixed, axis=1)


@triton.jit
def row_hashes(words, keys, place, live, WORDS: tl.constexpr, WIDTH: tl.constexpr):
    """uint64 [ROWS], 0 where a row is not `live`. `place` is what `position` makes of each row's place."""
    return tl.where(live, mix(row_sums(words, keys, WORDS, WIDTH) + place), 0)
