"""Rows whose elements change: decoded, scaled, perhaps reordered, encoded, in one pass, with both digests.

    source row ─► digest ─► f32 ─► (scale found: max of what shares it) ─► codes ─► target row, read back ─► digest

A tile is held as [rows, groups, block]: what shares a scale lies along the last axis. Whatever is beyond range or no
number is counted, and rounded in integers; hardware rounds tiles of ordinary numbers.
"""

import triton
import triton.language as tl

from isthmus.kernels.gpu.codecs import (
    decode,
    decode_fast,
    divide_fast,
    encode,
    encode_fast,
    scale_up,
    scale_value,
)
from isthmus.kernels.gpu.digest import mix, places, position, row_sums, words_of

__all__ = ["JOB", "STATS", "recode_rows"]

JOB = 14
"""Numbers of a job: where source, target, source scales and target scales begin (in each one's steps), the first entry
of each one's token table, what `digest.position` wants of elements and of scales, the first static scale of either
side, the first head's number, and where the component's sums begin.
"""
STATS = 6
"""Sums: digest before, digest after, saturated, no numbers, outside the bound, and the largest error's bits."""

_JOB = tl.constexpr(JOB)


@triton.jit
def _scales_sum(codes, keys, GROUPS: tl.constexpr, COUNT: tl.constexpr, BYTES: tl.constexpr):
    """int64 [ROWS]: the mixed words of rows [ROWS, GROUPS] of COUNT short units."""
    each: tl.constexpr = 8 // BYTES
    unit = tl.arange(0, GROUPS)
    words: tl.constexpr = (COUNT + each - 1) // each
    mask: tl.constexpr = (1 << (8 * BYTES)) - 1
    wide = (codes.to(tl.int64) & mask).to(tl.uint64, bitcast=True) << ((unit % each) * 8 * BYTES).to(tl.uint64)[None, :]
    wide = tl.where((unit < COUNT)[None, :], wide, 0)
    total = tl.zeros([codes.shape[0]], tl.uint64)
    for word in tl.static_range(words):
        value = tl.sum(tl.where((unit // each == word)[None, :], wide, 0), axis=1)
        total += mix(value ^ tl.load(keys + word).to(tl.uint64, bitcast=True))
    return total.to(tl.int64, bitcast=True)


@triton.jit
def _words_sum(
    base,
    at,
    unit_tables,
    keys,
    live,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    WIDTH: tl.constexpr,
    EACH: tl.constexpr,
    TABLE: tl.constexpr,
):
    """int64 [ROWS]: the mixed words of rows of UNITS units that begin at units `at`; EACH units are a word."""
    unit = tl.arange(0, WIDTH)
    mask = live[:, None]
    if UNITS != WIDTH:
        mask = mask & (unit < UNITS)[None, :]
    where = places(unit_tables, unit, TABLE, UNITS, 1)
    units = tl.load(base + at[:, None] + where[None, :], mask=mask, other=0)
    words: tl.constexpr = (UNITS + EACH - 1) // EACH
    width: tl.constexpr = (WIDTH + EACH - 1) // EACH
    word_keys = tl.load(keys + tl.arange(0, width)).to(tl.uint64, bitcast=True)
    return row_sums(words_of(units, ROWS, width, EACH), word_keys, words, width).to(tl.int64, bitcast=True)


@triton.jit
def _hashed(sums, place, live):
    """The sum of the hashes of rows whose mixed words sum up to int64 `sums`."""
    hashes = tl.where(live, mix(sums.to(tl.uint64, bitcast=True) + place), 0)
    return tl.sum(hashes, axis=0).to(tl.int64, bitcast=True)


@triton.jit
def _load(base, at, mask, BITS: tl.constexpr, SUB: tl.constexpr):
    """int32 codes of BITS, each of SUB units one after another: as many as rows' alignment takes."""
    bits: tl.constexpr = BITS // SUB
    found = tl.load(base + at, mask=mask, other=0).to(tl.int32)
    if bits < 32:
        found = found & ((1 << bits) - 1)
    for more in tl.static_range(1, SUB):
        part = tl.load(base + at + more, mask=mask, other=0).to(tl.int32) & ((1 << bits) - 1)
        found = found | (part << (more * bits))
    return found


@triton.jit
def _store(base, at, codes, mask, BITS: tl.constexpr, SUB: tl.constexpr):
    """The inverse of `_load`."""
    for more in tl.static_range(0, SUB):
        tl.store(base + at + more, codes >> (more * (BITS // SUB)), mask=mask)


@triton.jit
def _codes(
    base,
    at,
    unit_tables,
    element,
    mask,
    BITS: tl.constexpr,
    HIGH_FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    TABLE: tl.constexpr,
    SUB: tl.constexpr,
):
    """int32 codes [ROWS, WIDTH] of elements of rows that begin at units `at`."""
    if BITS == 4:
        unit = places(unit_tables, element // 2, TABLE, COUNT // 2, 1)
        pair = tl.load(base + at[:, None] + unit[None, :], mask=mask, other=0).to(tl.int32)
        return (pair >> (((element % 2) ^ HIGH_FIRST) * 4)[None, :]) & 15
    unit = places(unit_tables, element, TABLE, COUNT, SUB)
    return _load(base, at[:, None] + unit[None, :], mask, BITS, SUB)


@triton.jit
def _packed(codes, ROWS: tl.constexpr, WIDTH: tl.constexpr, HIGH_FIRST: tl.constexpr):
    """Two 4-bit codes a byte: [ROWS, WIDTH // 2]."""
    pairs = tl.reshape(codes & 15, [ROWS, WIDTH // 2, 2])
    shifts = (tl.arange(0, 2) ^ HIGH_FIRST) * 4
    return tl.sum(pairs << shifts[None, None, :], axis=2)


@triton.jit
def _spread(groups, ROWS: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr):
    """[ROWS, GROUPS] to [ROWS, WIDTH]."""
    if GROUPS == 1:
        return tl.broadcast_to(groups, [ROWS, WIDTH])
    wide = tl.broadcast_to(groups[:, :, None], [ROWS, GROUPS, WIDTH // GROUPS])
    return tl.reshape(wide, [ROWS, WIDTH])


@triton.jit
def _magnitude(values):
    return values.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _nan_first(one, other):
    return tl.maximum(one, other, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _any(rows):
    """Of int1 [ROWS, n]: whether one of a row's is."""
    return tl.max(rows.to(tl.int32), axis=1) > 0


@triton.jit
def _widest(values, ROWS: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr):
    """The largest magnitude of each group: f32 [ROWS, GROUPS], NaN where one is."""
    if GROUPS == 1:
        return tl.reduce(tl.abs(values), 1, _nan_first)[:, None]
    return tl.reduce(tl.reshape(tl.abs(values), [ROWS, GROUPS, WIDTH // GROUPS]), 2, _nan_first)


@triton.jit
def _careful(
    values,
    scale,
    slot,
    SCALED: tl.constexpr,
    OUT: tl.constexpr,
    LARGEST: tl.constexpr,
    BEYOND: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """int32 codes of values, whatever they are; what saturates and what is no number is counted."""
    scaled = tl.div_rn(values, scale) if SCALED else values
    magnitude = _magnitude(scaled)
    nan = magnitude > 0x7F800000
    saturated = (magnitude >= BEYOND) & (magnitude <= 0x7F800000)
    tl.atomic_add(slot + 2 * SLOTS, tl.sum(tl.sum(saturated.to(tl.int64), axis=1), axis=0), sem="relaxed")
    tl.atomic_add(slot + 3 * SLOTS, tl.sum(tl.sum(nan.to(tl.int64), axis=1), axis=0), sem="relaxed")
    return encode(scaled, OUT[0], OUT[1], OUT[2], OUT[3], LARGEST)


@triton.jit
def recode_rows(
    source,
    target,
    source_words,
    target_words,
    source_scales,
    target_scales,
    jobs,
    token_tables,
    tokens,
    static_source,
    static_target,
    unit_tables,
    keys,
    stats,
    scratch,
    num_tokens,
    source_head,
    target_head,
    source_scale_head,
    target_scale_head,
    HEADS: tl.constexpr,
    COUNT: tl.constexpr,
    WIDTH: tl.constexpr,
    ORDER: tl.constexpr,
    RAW: tl.constexpr,
    IN: tl.constexpr,
    IN_BITS: tl.constexpr,
    IN_HIGH: tl.constexpr,
    IN_SCALES: tl.constexpr,
    IN_SCALE: tl.constexpr,
    IN_SCALE_BITS: tl.constexpr,
    IN_BLOCK: tl.constexpr,
    IN_STATIC: tl.constexpr,
    OUT: tl.constexpr,
    OUT_BITS: tl.constexpr,
    OUT_HIGH: tl.constexpr,
    OUT_SCALES: tl.constexpr,
    OUT_SCALE: tl.constexpr,
    OUT_SCALE_BITS: tl.constexpr,
    OUT_GROUPS: tl.constexpr,
    OUT_COUNT: tl.constexpr,
    OUT_STATIC: tl.constexpr,
    OUT_LARGEST: tl.constexpr,
    OUT_BEYOND: tl.constexpr,
    SCALE_LARGEST: tl.constexpr,
    SCALE_SMALLEST: tl.constexpr,
    FACTOR: tl.constexpr,
    PERS: tl.constexpr,
    SUBS: tl.constexpr,
    TABLES: tl.constexpr,
    IN_WORDS: tl.constexpr,
    OUT_WORDS: tl.constexpr,
    BOUND: tl.constexpr,
    DIGEST: tl.constexpr,
    FAST: tl.constexpr,
    SPECIAL: tl.constexpr,
    OUT_FIRST_BEYOND: tl.constexpr,
    OUT_TYPE: tl.constexpr,
    TILE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """One program: TILE tokens of one job, all its heads. Constants are those of `launch.Recoding`.

    IN and OUT are (kind, exponent, mantissa, bias); IN_SCALES and OUT_SCALES: 0 none, 1 static, 2 stored; IN_STATIC and
    OUT_STATIC: static scales a head, 0 for none. Of source, target, source scales and target scales: PERS, units in a
    step of an address; SUBS, units in an element; TABLES, theirs in `unit_tables`, -1 where units follow each other.
    IN_WORDS and OUT_WORDS: rows as digests read them: units, units padded, units in a word, units in a step, table.
    BOUND: `lowered.Bound`'s terms, or empty. RAW: 1 swaps nibbles, 2 changes nothing. FAST: numbers are ordinary, and
    rows that are in doubt are counted; SPECIAL tells codes that are none (`recoding`).
    """
    ROWS: tl.constexpr = TILE * HEAD_TILE
    job = jobs + tl.program_id(1) * _JOB
    slot = stats + tl.load(job + 13) + (tl.program_id(0) + tl.program_id(1)) % SLOTS
    row = tl.arange(0, ROWS)
    token = tl.program_id(0) * TILE + row // HEAD_TILE
    head = row % HEAD_TILE
    here = token < num_tokens
    live = here & (head < HEADS)
    element = tl.arange(0, WIDTH)
    mask = live[:, None]
    if COUNT != WIDTH:
        mask = mask & (element < COUNT)[None, :]
    if ORDER == 1:
        element = (element % 2) * (COUNT // 2) + element // 2
    if ORDER == 2:
        element = (element % (COUNT // 2)) * 2 + element // (COUNT // 2)
    ours = tl.load(job) + tl.load(token_tables + tl.load(job + 4) + token, mask=here, other=0) + head * source_head
    theirs = tl.load(job + 1) + tl.load(token_tables + tl.load(job + 5) + token, mask=here, other=0)
    theirs += head * target_head
    at = ours * PERS[0]
    if FAST == 1:
        unit = places(unit_tables, element, TABLES[0], COUNT, 1)
        raw = tl.load(source + at[:, None] + unit[None, :], mask=mask, other=0)
    else:
        codes = _codes(source, at, unit_tables, element, mask, IN_BITS, IN_HIGH, COUNT, TABLES[0], SUBS[0])
    if RAW == 1:
        out = ((codes << 4) | (codes >> 4)) & 255
    if RAW == 2:
        out = codes
    if RAW == 0:
        if FAST == 1:
            values = decode_fast(raw, raw, IN[0], IN[1], IN[2], IN[3])
            if SPECIAL > 0.0:
                doubt = tl.max(tl.abs(values), axis=1) >= SPECIAL
            elif SPECIAL < 0.0:
                doubt = tl.min(raw.to(tl.int8, bitcast=True).to(tl.int32), axis=1) == -128
            else:
                doubt = token < 0
        else:
            values = decode(codes, IN[0], IN[1], IN[2], IN[3])
        if IN_SCALES >= 2:
            at = tl.load(job + 2) + tl.load(token_tables + tl.load(job + 6) + token, mask=here, other=0)
            at = (at + head * source_scale_head) * PERS[2]
            if IN_BLOCK == COUNT:
                stored = _load(source_scales, at, live, IN_SCALE_BITS, SUBS[2])[:, None]
            else:
                scales_in: tl.constexpr = (COUNT + IN_BLOCK - 1) // IN_BLOCK
                group_of = places(unit_tables, element // IN_BLOCK, TABLES[2], scales_in, SUBS[2])
                stored = _load(source_scales, at[:, None] + group_of[None, :], mask, IN_SCALE_BITS, SUBS[2])
            scale = scale_value(stored, IN_SCALE)
        if IN_STATIC > 0:
            at = (tl.load(job + 10) + head) * IN_STATIC
            if IN_STATIC == 1:
                static = tl.load(static_source + at, mask=live, other=1.0)[:, None]
            else:
                static = tl.load(static_source + at[:, None] + element[None, :], mask=mask, other=1.0)
            if IN_SCALES == 1:
                scale = static
            else:
                scale = scale * static
        if FACTOR != 1.0:
            values = values * (1.0 / FACTOR)
        elif IN_SCALES > 0:
            values = values * scale
        if FACTOR == 1.0 and OUT_SCALES >= 2:
            widest = _widest(values, ROWS, WIDTH, OUT_GROUPS)
            wanted = tl.div_rn(widest, tl.full([1, 1], OUT_LARGEST, tl.float32))
        if OUT_STATIC > 0:
            at = (tl.load(job + 11) + head) * OUT_STATIC
            if OUT_STATIC == 1:
                whole = tl.load(static_target + at, mask=live, other=1.0)[:, None]
            else:
                place = tl.arange(0, WIDTH)[None, :]
                whole = tl.load(static_target + at[:, None] + place, mask=mask, other=1.0)
        if FACTOR == 1.0 and OUT_SCALES >= 2:
            if OUT_STATIC > 0:
                wanted = tl.div_rn(wanted, whole)
            scale_codes, found = scale_up(wanted, OUT_SCALE, SCALE_LARGEST, SCALE_SMALLEST)
            if OUT_STATIC > 0:
                whole = found * whole
            else:
                whole = found
        SCALED: tl.constexpr = FACTOR == 1.0 and (OUT_STATIC > 0 or OUT_SCALES >= 2)
        if FAST == 1:
            if SCALED:
                reciprocal = tl.div_rn(tl.full([1, 1], 1.0, tl.float32), whole)
                scaled = divide_fast(
                    values, _spread(whole, ROWS, WIDTH, OUT_GROUPS), _spread(reciprocal, ROWS, WIDTH, OUT_GROUPS)
                )
                doubt = doubt | _any(tl.where(whole > 1.0, whole, reciprocal) > 1e18)
            else:
                scaled = values
            if SCALED and OUT_SCALES >= 2:
                doubt = doubt | _any(~(widest <= whole * (OUT_LARGEST * 1.001)))
            else:
                doubt = doubt | ~(tl.reduce(tl.abs(scaled), 1, _nan_first) < OUT_FIRST_BEYOND)
            out = encode_fast(scaled, OUT[0], OUT[1], OUT[2], OUT[3], OUT_LARGEST).to(OUT_TYPE)
            doubtful = tl.sum((doubt & live).to(tl.int64), axis=0)
            tl.atomic_add(slot + 2 * SLOTS, doubtful, sem="relaxed")
        else:
            out = _careful(
                values,
                _spread(whole, ROWS, WIDTH, OUT_GROUPS) if SCALED else values,
                slot,
                SCALED,
                OUT,
                OUT_LARGEST,
                OUT_BEYOND,
                SLOTS,
            )
        if SCALED:
            whole = _spread(whole, ROWS, WIDTH, OUT_GROUPS)
        if FACTOR == 1.0 and len(BOUND) > 0:
            plain = out.to(tl.int32) & ((1 << OUT_BITS) - 1) if OUT_BITS < 32 else out
            again = decode(plain, OUT[0], OUT[1], OUT[2], OUT[3])
            if OUT_STATIC > 0 or OUT_SCALES >= 2:
                again = again * whole
            error = tl.abs(again - values)
            allowed = tl.abs(values) * BOUND[0] + BOUND[1]
            if BOUND[2] > 0.0:
                largest = tl.max(tl.reshape(tl.abs(values), [ROWS, OUT_GROUPS, WIDTH // OUT_GROUPS]), axis=2)
                allowed += _spread(largest, ROWS, WIDTH, OUT_GROUPS) * BOUND[2]
            if BOUND[3] > 0.0:
                if OUT_STATIC > 0 or OUT_SCALES >= 2:
                    allowed += whole * BOUND[3]
                else:
                    allowed += BOUND[3]
            outside = mask & ((error > allowed) | (error != error))
            worst = tl.max(tl.max(tl.where(mask, _magnitude(error), 0), axis=1), axis=0)
            tl.atomic_add(slot + 4 * SLOTS, tl.sum(tl.sum(outside.to(tl.int64), axis=1), axis=0), sem="relaxed")
            tl.atomic_max(slot + 5 * SLOTS, worst.to(tl.int64), sem="relaxed")
    place = tl.arange(0, WIDTH)
    if OUT_BITS == 4:
        half = tl.arange(0, WIDTH // 2)
        pair_mask = live[:, None] & (half < COUNT // 2)[None, :]
        packed = _packed(out, ROWS, WIDTH, OUT_HIGH)
        unit = places(unit_tables, half, TABLES[1], COUNT // 2, 1)
        tl.store(target + (theirs * PERS[1])[:, None] + unit[None, :], packed.to(tl.int8), mask=pair_mask)
    else:
        unit = places(unit_tables, place, TABLES[1], COUNT, SUBS[1])
        _store(target, (theirs * PERS[1])[:, None] + unit[None, :], out, mask, OUT_BITS, SUBS[1])
    if DIGEST:
        # Sums of words are of many threads a row; what is made of each sum is made once a row, by way of memory.
        mine = scratch + (tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)) * (4 * ROWS)
        at = ours * IN_WORDS[3]
        sums = _words_sum(
            source_words, at, unit_tables, keys, live, ROWS, IN_WORDS[0], IN_WORDS[1], IN_WORDS[2], IN_WORDS[4]
        )
        tl.store(mine + row, sums)
        tl.debug_barrier()  # what is digested is what memory holds
        at = theirs * OUT_WORDS[3]
        sums = _words_sum(
            target_words, at, unit_tables, keys, live, ROWS, OUT_WORDS[0], OUT_WORDS[1], OUT_WORDS[2], OUT_WORDS[4]
        )
        tl.store(mine + ROWS + row, sums)
    if OUT_SCALES >= 2:
        at = tl.load(job + 3) + tl.load(token_tables + tl.load(job + 7) + token, mask=here, other=0)
        at = (at + head * target_scale_head) * PERS[3]
        group = tl.arange(0, OUT_GROUPS)
        scale_mask = live[:, None] & (group < OUT_COUNT)[None, :]
        if FACTOR != 1.0:
            origin = tl.load(job + 2) + tl.load(token_tables + tl.load(job + 6) + token, mask=here, other=0)
            origin = (origin + head * source_scale_head) * PERS[2]
            old_unit = places(unit_tables, group, TABLES[2], OUT_COUNT, SUBS[2])
            old = _load(source_scales, origin[:, None] + old_unit[None, :], scale_mask, 32, SUBS[2])
            scale_codes = (old.to(tl.float32, bitcast=True) * FACTOR).to(tl.int32, bitcast=True)
        unit = places(unit_tables, group, TABLES[3], OUT_COUNT, SUBS[3])
        where_scales = at[:, None] + unit[None, :]
        _store(target_scales, where_scales, scale_codes, scale_mask, OUT_SCALE_BITS, SUBS[3])
    if DIGEST:
        if IN_SCALES >= 2:
            many: tl.constexpr = (COUNT + IN_BLOCK - 1) // IN_BLOCK
            wide: tl.constexpr = triton.next_power_of_2(many)
            at = tl.load(job + 2) + tl.load(token_tables + tl.load(job + 6) + token, mask=here, other=0)
            at = (at + head * source_scale_head) * PERS[2]
            one = tl.arange(0, wide)
            read = live[:, None] & (one < many)[None, :]
            unit = places(unit_tables, one, TABLES[2], many, SUBS[2])
            stored_codes = _load(source_scales, at[:, None] + unit[None, :], read, IN_SCALE_BITS, SUBS[2])
            tl.store(mine + 2 * ROWS + row, _scales_sum(stored_codes, keys, wide, many, IN_SCALE_BITS // 8))
        if OUT_SCALES >= 2:
            tl.store(mine + 3 * ROWS + row, _scales_sum(scale_codes, keys, OUT_GROUPS, OUT_COUNT, OUT_SCALE_BITS // 8))
        tl.debug_barrier()
        line = tl.arange(0, ROWS)
        at_token = tl.program_id(0) * TILE + line // HEAD_TILE
        counts = (at_token < num_tokens) & (line % HEAD_TILE < HEADS)
        number = tl.load(tokens + at_token, mask=counts, other=0)
        at_head = tl.load(job + 12) + line % HEAD_TILE
        where = position(number, at_head, tl.load(job + 8))
        before = _hashed(tl.load(mine + line), where, counts)
        after = _hashed(tl.load(mine + ROWS + line), where, counts)
        if IN_SCALES >= 2 or OUT_SCALES >= 2:
            where = position(number, at_head, tl.load(job + 9))
        if IN_SCALES >= 2:
            before += _hashed(tl.load(mine + 2 * ROWS + line), where, counts)
        if OUT_SCALES >= 2:
            after += _hashed(tl.load(mine + 3 * ROWS + line), where, counts)
        tl.atomic_add(slot, before, sem="relaxed")
        tl.atomic_add(slot + SLOTS, after, sem="relaxed")
