"""Orders and repeats of integers, against NumPy's stable sort and a loop."""

import numpy as np
import pytest

from jaxrec import ordering

WORD = 2**63


def keys(name: str, num_rows: int = 500) -> np.ndarray:
    """Integers with many repeats; of more than a chunk of rows where that is asked."""
    rng = np.random.default_rng(0)
    small = rng.integers(-20, 20, num_rows)
    return {
        "int64": small,
        "int8": small.astype(np.int8) * np.int8(6),
        "uint8": (small + 20).astype(np.uint8),
        "from afar": small + 2**62,
        "the least": small - 2**62,
        # As wide as a word leaves room for beside 500 rows, and one bit wider.
        "just fits": np.where(small > 0, 2**54 - 1, small % 3),
        "just not": np.where(small > 0, 2**54, small % 3),
        "both ends": np.where(small > 0, WORD - 1, -WORD),
        "uint64": np.uint64(WORD) + (small + 20).astype(np.uint64),
        "equal": np.full(num_rows, 7),
        "one": np.array([5]),
        "none": np.array([], np.int64),
    }[name]


NAMES = ["int64", "int8", "uint8", "from afar", "the least", "just fits", "just not"]
NAMES += ["both ends", "uint64", "equal", "one", "none"]


@pytest.mark.parametrize("name", NAMES)
def test_order_and_repeats(name):
    key_I = keys(name)
    before_I = key_I.copy()
    order_I = ordering.stable_order(key_I)
    values = key_I.tolist()
    expected = sorted(range(len(values)), key=values.__getitem__)
    assert order_I.tolist() == expected and order_I.dtype == np.int64
    is_repeat_I = ordering.is_repeat(key_I)
    assert is_repeat_I.tolist() == [x in values[:n] for n, x in enumerate(values)]
    np.testing.assert_array_equal(key_I, before_I)


@pytest.mark.parametrize("num_rows", [ordering._ROWS, 2 * ordering._ROWS + 1])
def test_rows_of_several_chunks(num_rows):
    key_I = keys("int64", num_rows)
    expected_I = np.argsort(key_I, kind="stable")
    np.testing.assert_array_equal(ordering.stable_order(key_I), expected_I)
    _, first = np.unique(key_I, return_index=True)
    assert np.flatnonzero(~ordering.is_repeat(key_I)).tolist() == sorted(first)


@pytest.mark.parametrize("name, fits", [("just fits", True), ("just not", False)])
def test_what_fits_into_a_word_is_sorted_there(name, fits):
    assert (ordering._words(keys(name))[0] is not None) == fits
