"""Stable orders of integers, and which of them are repeats, on the host.

NumPy sorts words ten times as fast as it sorts indices by them: so a key and its row
go into one word of 63 bits, where both fit, and the words are sorted.
"""

import numpy as np

_WORD_BITS = 63
_ROWS = 1 << 15  # at a time, which the cache holds


def stable_order(key_I: np.ndarray) -> np.ndarray:
    """np.argsort(key_I, kind="stable"): int64 [I].

    >>> stable_order(np.array([2, 0, 2, 1])).tolist()
    [1, 3, 0, 2]

    Args:
      key_I: integers, of any dtype.
    """
    word_I, row_bits = _words(key_I)
    if word_I is None:
        return np.argsort(key_I, kind="stable")
    word_I.sort()
    word_I &= (1 << row_bits) - 1
    return word_I


def is_repeat(key_I: np.ndarray) -> np.ndarray:
    """Whether an equal key comes before: bool [I].

    >>> is_repeat(np.array([2, 0, 2, 1, 2])).tolist()
    [False, False, True, False, True]

    Args:
      key_I: integers, of any dtype.
    """
    is_repeat_I = np.zeros(len(key_I), bool)
    word_I, row_bits = _words(key_I)
    if word_I is None:
        order_I = np.argsort(key_I, kind="stable")
        sorted_I = key_I[order_I]
        is_repeat_I[order_I[1:]] = sorted_I[1:] == sorted_I[:-1]
        return is_repeat_I
    word_I.sort()
    # Of two words of one key no bit above the rows' differs.
    is_same_I = (word_I[1:] ^ word_I[:-1]) < 1 << row_bits
    is_repeat_I[word_I[1:][is_same_I] & ((1 << row_bits) - 1)] = True
    return is_repeat_I


def _words(key_I: np.ndarray) -> tuple[np.ndarray | None, int]:
    """A key and its row in each word, int64 [I], and the bits of the row; None where
    they do not fit."""
    if not len(key_I):
        return None, 0
    row_bits = (len(key_I) - 1).bit_length()
    low, high = int(key_I.min()), int(key_I.max())
    if (high - low).bit_length() + row_bits > _WORD_BITS or high >= 1 << _WORD_BITS:
        return None, row_bits
    word_I, row_C = np.empty(len(key_I), np.int64), np.arange(_ROWS)
    for first in range(0, len(key_I), _ROWS):
        word_C = word_I[first : first + _ROWS]
        word_C[:] = key_I[first : first + _ROWS]
        word_C -= low
        word_C <<= row_bits
        word_C |= first + row_C[: len(word_C)]
    return word_I, row_bits
