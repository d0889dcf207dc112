"""What a conversion may lose: a bound per pair of encodings, for elements within the target's range."""

from isthmus.state.encoding import SCALE_MIN, TRAITS, Traits
from isthmus.state.plan import LossBound
from isthmus.state.representation import GroupRepresentation

__all__ = ["loss_bound"]

_F32_UNIT = 2.0**-24


def loss_bound(producer: GroupRepresentation, consumer: GroupRepresentation) -> LossBound:
    """The bound of decoding by one and encoding by the other, relative to the decoded value.

    Rounding to nearest errs by at most half a unit in the last place: 2**-significand_bits of the value, or half the
    subnormal step. A code of an integer encoding errs by at most half a scale, where scale = max|row| / 127.
    """
    source, target = TRAITS[producer.storage_dtype], TRAITS[consumer.storage_dtype]
    if producer.storage_dtype is consumer.storage_dtype and _same_scale(producer, consumer):
        return LossBound()
    if consumer.quant is not None:
        # Half a code, and f32 rounding of the scale, the quotient and the product; half the smallest scale at least.
        return LossBound(per_row_max=0.5 / target.largest + 4 * _F32_UNIT, absolute=SCALE_MIN / 2)
    if producer.quant is None and _holds(source, target):
        return LossBound()
    if producer.quant is not None and target.significand_bits >= 24:
        # Decoding already gives the f32 that is stored.
        return LossBound()
    return LossBound(relative=2.0**-target.significand_bits, absolute=target.smallest_step / 2)


def _same_scale(producer: GroupRepresentation, consumer: GroupRepresentation) -> bool:
    a, b = producer.quant, consumer.quant
    if a is None or b is None:
        return a is b
    return a.granularity == b.granularity and a.scale_dtype is b.scale_dtype


def _holds(source: Traits, target: Traits) -> bool:
    """Whether every value of one floating-point encoding is exactly a value of the other.

    Enough here: subnormals of the narrower are normal numbers of the wider, since exponent bits grow too.
    """
    return source.significand_bits <= target.significand_bits and source.exponent_bits <= target.exponent_bits
