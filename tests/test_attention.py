"""Attention against a slow float64 loop, and its backward pass against autodiff."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import attention, backend, dropout

ROWS, LENGTH, HEADS, WIDTH = 2, 11, 2, 3
SEGMENTS = np.array([[1] * 4 + [2] * 5 + [0] * 2, [1] * 1 + [2] * 10], np.int32)
# Roundings of 6e-8 in sums of eleven terms of size one.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """About 4 queries a block: the 11 positions take three, cut amid segments."""
    monkeypatch.setattr(attention, "_QUERIES", 4)
    monkeypatch.setattr(attention, "_MULTIPLE", 2)


def operands(seed=0):
    """Query, key and value, and the gradient of the output: float32 [R, T, H, K]."""
    rng = np.random.default_rng(seed)
    shape = (4, ROWS, LENGTH, HEADS, WIDTH)
    return list(rng.normal(size=shape).astype(np.float32))


def looped(query, key, value, *, is_causal):
    """Position by position, in float64."""
    out = np.zeros(query.shape)
    for r, t, h in itertools.product(range(ROWS), range(LENGTH), range(HEADS)):
        last = t + 1 if is_causal else LENGTH
        seen = [m for m in range(last) if SEGMENTS[r, m] == SEGMENTS[r, t]]
        score_M = key[r, seen, h].astype(float) @ query[r, t, h] / WIDTH**0.5
        share_M = np.exp(score_M - score_M.max())
        out[r, t, h] = share_M / share_M.sum() @ value[r, seen, h]
    return out


def with_scores(arrays, kind):
    """Scores of about one; far apart; or all of them some 300 below 0."""
    query, key, value = arrays
    if kind == "far apart":
        return 1000 * query, key, value
    if kind == "low":
        query[..., 0], key[..., 0] = 30.0, -17.0
    return query, key, value


KINDS = ["near", "far apart", "low"]


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_attend_is_the_loop(is_causal, kind):
    *arrays, _ = operands()
    arrays = with_scores(arrays, kind)
    out = attention.attend(*arrays, SEGMENTS, is_causal=is_causal)
    expected = looped(*arrays, is_causal=is_causal)
    # Scores of 300 are rounded by 3e-5, those of thousands by 3e-4.
    tolerance = {"near": TOLERANCE, "low": {"atol": 2e-4}, "far apart": {"atol": 5e-3}}
    np.testing.assert_allclose(out, expected, **tolerance[kind])


def by_autodiff(query, key, value, keep_RHTM, *, is_causal, rate):
    """The textbook's formula with a given mask of the dropout."""
    is_seen_RTM = SEGMENTS[:, :, None] == SEGMENTS[:, None, :]
    if is_causal:
        is_seen_RTM = is_seen_RTM & np.tri(LENGTH, dtype=bool)
    score = jnp.einsum("rthk,rmhk->rhtm", query, key) / jnp.sqrt(WIDTH)
    score = jnp.where(is_seen_RTM[:, None], score, -jnp.inf)
    share = jax.nn.softmax(score, axis=-1) * keep_RHTM / (1 - rate)
    return jnp.einsum("rhtm,rmhk->rthk", share, value)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_gradients_are_those_of_autodiff(is_causal, rate):
    *arrays, grad = operands(seed=1)
    dropout_key = jax.random.key(7)
    shape = (ROWS, HEADS, LENGTH, LENGTH)
    keep = np.ones(shape, bool)
    blocks = attention.query_blocks(LENGTH, is_causal=is_causal)
    assert len(blocks) == (3 if is_causal else 1)
    if rate:
        for i, (first, last) in enumerate(blocks):
            num_keys = last if is_causal else LENGTH
            block = (ROWS, HEADS, last - first, num_keys)
            key = jax.random.fold_in(dropout_key, i)
            keep[:, :, first:last, :num_keys] = dropout.keep_mask(key, block, rate)
        assert not keep.all()
    ours = functools.partial(
        attention.attend,
        segment_RT=SEGMENTS,
        is_causal=is_causal,
        rate=rate,
        dropout_key=dropout_key if rate else None,
    )
    theirs = functools.partial(
        by_autodiff, keep_RHTM=keep, is_causal=is_causal, rate=rate
    )
    out, vjp = jax.vjp(ours, *arrays)
    expected, expected_vjp = jax.vjp(theirs, *arrays)
    np.testing.assert_allclose(out, expected, **TOLERANCE)
    for mine, other in zip(vjp(grad), expected_vjp(grad), strict=True):
        np.testing.assert_allclose(mine, other, **TOLERANCE)


def test_bfloat16_is_close_and_stays_bfloat16():
    *arrays, grad = (jnp.asarray(x, jnp.bfloat16) for x in operands(seed=2))
    attend = functools.partial(
        attention.attend, segment_RT=SEGMENTS, is_causal=True, rate=0.0
    )
    out, vjp = jax.vjp(attend, *arrays)
    assert {x.dtype for x in (out, *vjp(grad))} == {jnp.bfloat16.dtype}
    expected = looped(*(np.asarray(x, np.float32) for x in arrays), is_causal=True)
    # Three roundings of 2^-9 on a mean of values below 4.
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=0.03)
    *wide, wide_grad = (x.astype(jnp.float32) for x in (*arrays, grad))
    keep = np.ones((ROWS, HEADS, LENGTH, LENGTH), bool)
    formula = functools.partial(by_autodiff, keep_RHTM=keep, is_causal=True, rate=0.0)
    expected_gradients = jax.vjp(formula, *wide)[1](wide_grad)
    for mine, other in zip(vjp(grad), expected_gradients, strict=True):
        # A few roundings of 2^-9 of each of eleven terms, which add up like noise.
        error = np.linalg.norm(np.asarray(mine, np.float32) - other)
        assert error < 2**-6 * np.linalg.norm(other)


@pytest.mark.parametrize("queries, multiple", [(4, 2), (64, 8)])
@pytest.mark.parametrize("length", [1, 4, 5, 8, 11, 50, 95, 97, 200, 1000])
def test_query_blocks_cover_every_position_once(length, queries, multiple, monkeypatch):
    monkeypatch.setattr(attention, "_QUERIES", queries)
    monkeypatch.setattr(attention, "_MULTIPLE", multiple)
    blocks = attention.query_blocks(length, is_causal=True)
    assert [t for first, last in blocks for t in range(first, last)] == [*range(length)]
    assert all(first % multiple == 0 for first, _ in blocks)
    assert max(last - first for first, last in blocks) <= 1.5 * queries + multiple
    assert attention.query_blocks(length, is_causal=False) == [(0, length)]


def test_a_gpu_has_few_blocks(monkeypatch):
    monkeypatch.setattr(backend, "is_cpu", lambda: False)
    monkeypatch.setattr(attention, "_GPU_QUERIES", 100)
    monkeypatch.setattr(attention, "_MULTIPLE", 8)
    assert attention.query_blocks(149, is_causal=True) == [(0, 149)]
    # 1.5 rounds to 2; halves of 200 begin at a multiple of 8.
    assert attention.query_blocks(200, is_causal=True) == [(0, 96), (96, 200)]
