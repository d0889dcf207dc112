"""The constants of the logical digest, shared by every implementation. Changing one is a new schema version."""

__all__ = ["MASK64", "SPLIT_A", "SPLIT_B", "mix64", "signed", "word_keys"]

MASK64 = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
SPLIT_A = 0xBF58476D1CE4E5B9
SPLIT_B = 0x94D049BB133111EB


def mix64(value: int) -> int:
    """splitmix64's finaliser (Steele, Lea and Flood 2014), a bijection on 64 bits."""
    value &= MASK64
    value = ((value ^ (value >> 30)) * SPLIT_A) & MASK64
    value = ((value ^ (value >> 27)) * SPLIT_B) & MASK64
    return value ^ (value >> 31)


def word_keys(words: int) -> list[int]:
    """The key of each 64-bit word of a row, by its index."""
    return [mix64((index + 1) * GOLDEN) for index in range(words)]


def signed(value: int) -> int:
    """The int64 with the same bits as an unsigned 64-bit number."""
    return value - (1 << 64) if value >= 1 << 63 else value
