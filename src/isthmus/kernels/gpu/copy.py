"""Rows that cross unchanged, and their digest as they pass."""

import triton
import triton.language as tl

from isthmus.kernels.gpu.digest import places, position, row_hashes, words_of

__all__ = ["copy_rows"]


@triton.jit
def copy_rows(
    base,
    jobs,
    token_tables,
    tokens,
    unit_tables,
    keys,
    sums,
    num_tokens,
    source_head,
    target_head,
    HEADS: tl.constexpr,
    UNITS: tl.constexpr,
    WIDTH: tl.constexpr,
    PER: tl.constexpr,
    EACH: tl.constexpr,
    TABLES: tl.constexpr,
    TILE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    SLOTS: tl.constexpr,
    DIGEST: tl.constexpr,
):
    """One program: TILE tokens of one job, all its heads.

    `base` is any address; all others are counted from it, in steps of PER units, so that alignment is known. A row is
    UNITS units, padded to WIDTH; EACH units are a word of the digest. TABLES: where source and target have the places
    of units in `unit_tables`, -1 where they follow each other. `jobs` int64 [jobs, 6]: where source and target begin,
    the first entry of either's token table, what `digest.position` wants, and the first head's number.
    """
    job = jobs + tl.program_id(1) * 6
    row = tl.arange(0, TILE * HEAD_TILE)
    token = tl.program_id(0) * TILE + row // HEAD_TILE
    head = row % HEAD_TILE
    here = token < num_tokens
    live = here & (head < HEADS)
    ours = tl.load(job) + tl.load(token_tables + tl.load(job + 2) + token, mask=here, other=0) + head * source_head
    theirs = tl.load(job + 1) + tl.load(token_tables + tl.load(job + 3) + token, mask=here, other=0)
    theirs += head * target_head
    unit = tl.arange(0, WIDTH)
    mask = live[:, None]
    if UNITS != WIDTH:
        mask = mask & (unit < UNITS)[None, :]
    from_unit, to_unit = places(unit_tables, unit, TABLES[0], UNITS, 1), places(unit_tables, unit, TABLES[1], UNITS, 1)
    units = tl.load(base + (ours * PER)[:, None] + from_unit[None, :], mask=mask, other=0)
    tl.store(base + (theirs * PER)[:, None] + to_unit[None, :], units, mask=mask)
    if DIGEST:
        number = tl.load(tokens + token, mask=here, other=0)
        place = position(number, tl.load(job + 5) + head, tl.load(job + 4))
        words: tl.constexpr = (UNITS + EACH - 1) // EACH
        width: tl.constexpr = (WIDTH + EACH - 1) // EACH
        word_keys = tl.load(keys + tl.arange(0, width)).to(tl.uint64, bitcast=True)
        hashes = row_hashes(words_of(units, TILE * HEAD_TILE, width, EACH), word_keys, place, live, words, width)
        total = tl.sum(hashes, axis=0).to(tl.int64, bitcast=True)
        tl.atomic_add(sums + (tl.program_id(0) + tl.program_id(1)) % SLOTS, total, sem="relaxed")
