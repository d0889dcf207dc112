"""What a conversion may lose: a bound per pair of encodings, for values within the target's range."""

from isthmus.state.encoding import INTEGERS, SCALE_MIN, TRAITS, Encoding, Quant, StorageDtype, Traits
from isthmus.state.plan import LossBound

__all__ = ["cast_bound", "quantise_bound", "rebias_bound"]

_F32_UNIT = 2.0**-24


def cast_bound(source: Traits | None, target: Encoding) -> LossBound:
    """To an encoding without scales. `source` is None where the value is an f32 product of code and scale.

    Rounding to nearest errs by at most half a unit in the last place: 2**-significand_bits of the value, or half the
    subnormal step.
    """
    traits = target.traits
    if target.storage_dtype is StorageDtype.F32:
        return LossBound()
    wide = source is not None and source.significand_bits <= traits.significand_bits
    deep = source is not None and source.smallest_step >= traits.smallest_step
    return LossBound(
        relative=0.0 if wide else 2.0**-traits.significand_bits, absolute=0.0 if deep else traits.smallest_step / 2
    )


def quantise_bound(target: Encoding, quant: Quant) -> LossBound:
    """To codes with a scale. Integers err by half a code; floating-point codes as in a cast, in units of the scale.

    Found on the way, scale <= max|row| / largest, rounded up to its own encoding; at least that one's smallest.
    The f32 roundings of scale, quotient and product are counted in.
    """
    traits = target.traits
    step = 0.5 if target.storage_dtype in INTEGERS else traits.smallest_step / 2
    relative = 0.0 if target.storage_dtype in INTEGERS else 2.0**-traits.significand_bits + 4 * _F32_UNIT
    if quant.static:
        # Also where found scales are scaled once more by a figure of the layer: in units of the whole scale.
        return LossBound(relative=relative + 4 * _F32_UNIT, per_scale=step)
    scale = TRAITS[quant.scale_dtype]
    up = 2.0 if quant.scale_dtype is StorageDtype.UE8M0 else 1.0 + 2.0 ** (1 - scale.significand_bits)
    smallest = max(SCALE_MIN, scale.smallest_step)
    return LossBound(
        relative=relative, per_row_max=step / traits.largest * up + 4 * _F32_UNIT, absolute=step * smallest
    )


def rebias_bound(source: Traits, target: Traits, exponent: int) -> LossBound:
    """The same codes under another bias: only what falls between two of the target's subnormals is rounded."""
    if target.smallest_step <= source.smallest_step * 2.0**-exponent:
        return LossBound()
    return LossBound(per_scale=target.smallest_step / 2)
