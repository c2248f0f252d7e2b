"""The exact top k: a sort of what is left, in whatever chunks, in bounded memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.ranking import Seen
from jaxrec.topk import top_items

NOTHING = Seen(jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32), jnp.zeros(1, bool))


def integers(*shape):
    """Small integers: scores are exact, and many are equal."""
    return np.random.default_rng(sum(shape)).integers(-2, 3, shape).astype(np.float32)


@pytest.mark.parametrize("k", [1, 5, 12])
@pytest.mark.parametrize(
    ("item_chunk", "row_block"),
    [*((size, None) for size in (None, 4, 7, 29, 30, 100)), (None, 4), (7, 4)],
)
def test_is_a_sort_of_what_is_left(item_chunk, row_block, k):
    num_rows, num_columns = 6, 30
    rng = np.random.default_rng(0)
    hidden_BD, table_VD = integers(num_rows, 4), integers(num_columns, 4)
    is_allowed_V = (np.arange(num_columns) > 0) & (rng.random(num_columns) < 0.8)
    pairs = [(b, int(v)) for b in range(num_rows) for v in rng.choice(29, 8) + 1]
    seen = Seen(
        jnp.array([b for b, _ in pairs], jnp.int32),
        jnp.array([v for _, v in pairs], jnp.int32),
        jnp.array([i % 5 != 0 for i in range(len(pairs))]),
    )
    best = jax.jit(top_items, static_argnames=("k", "row_block", "item_chunk"))
    score_BK, item_BK = best(
        hidden_BD,
        table_VD,
        is_allowed_V,
        seen,
        k=k,
        row_block=row_block,
        item_chunk=item_chunk,
    )
    for b in range(num_rows):
        left_out = {v for i, (row, v) in enumerate(pairs) if row == b and i % 5}
        scores = {
            v: float(hidden_BD[b] @ table_VD[v])
            for v in np.flatnonzero(is_allowed_V).tolist()
            if v not in left_out
        }
        expected = sorted(scores, key=lambda v: (-scores[v], v))[:k]
        assert item_BK[b].tolist() == expected
        assert score_BK[b].tolist() == [scores[v] for v in expected]


@pytest.mark.parametrize("item_chunk", [None, 3])
def test_equal_scores_are_in_the_order_of_ids(item_chunk):
    _, item_BK = top_items(
        jnp.zeros((1, 2)),
        jnp.ones((11, 2)),
        jnp.arange(11) > 0,
        NOTHING,
        k=10,
        item_chunk=item_chunk,
    )
    assert item_BK[0].tolist() == list(range(1, 11))


@pytest.mark.parametrize("item_chunk", [None, 3])
def test_places_without_an_item_score_minus_infinity(item_chunk):
    score_BK, _ = top_items(
        jnp.ones((1, 2)),
        jnp.ones((8, 2)),
        jnp.arange(8) > 5,
        NOTHING,
        k=4,
        item_chunk=item_chunk,
    )
    assert score_BK[0].tolist() == [2.0, 2.0, -np.inf, -np.inf]


def test_a_large_catalogue_is_never_scored_whole():
    """No array of B x V, and no copy of the table: 1/10 of either."""
    num_rows, num_items, width = 8, 200_001, 16

    def temporary_bytes(item_chunk):
        step = jax.jit(top_items, static_argnames=("k", "item_chunk"))
        compiled = step.lower(
            jax.ShapeDtypeStruct((num_rows, width), jnp.float32),
            jax.ShapeDtypeStruct((num_items, width), jnp.float32),
            jax.ShapeDtypeStruct((num_items,), bool),
            NOTHING,
            k=10,
            item_chunk=item_chunk,
        ).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    scores = 4 * num_rows * num_items
    assert temporary_bytes(4096) < scores / 10
    assert temporary_bytes(None) >= scores  # the number means what it should
