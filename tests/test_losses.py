"""Losses against slow float64 loops, naive implementations and closed forms."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import backend, binary, losses, softmax
from jaxrec.hands import Hands
from jaxrec.losses import Catalogue, Separate, Shared

# 65 positions are a chunk of 64 and one, 5 sequences are a chunk of 4 and one.
SIZE, LENGTH, WIDTH, NUM_ROWS = 5, 13, 3, 9
BETA = 0.3
# Some ten float32 roundings of 6e-8 a position, and sums of 65 of them.
RTOL = 1e-5
LOSSES = {
    "ce": losses.ce,
    "ce_excluded": losses.ce,
    "sampled_ce": losses.sampled_ce,
    "sampled_ce_shared": losses.sampled_ce,
    "sampled_ce_dealt": losses.sampled_ce,
    "bce": losses.bce,
    "gbce": functools.partial(losses.gbce, beta=BETA),
}
FORMS = [*LOSSES]
# One of each implementation, where compiling takes long.
DISTINCT_FORMS = ["ce_excluded", "sampled_ce", "gbce"]


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(autouse=True)
def smallest_chunks(monkeypatch):
    """64 positions a chunk, so that a small test has several."""
    # Of a table of 9 rows a tile has 16.
    sizes = softmax._CPU._replace(scores=64 * 16, fewest_positions=64)
    monkeypatch.setattr(softmax, "_CPU", sizes)
    assert softmax.tile_shape(NUM_ROWS, SIZE * LENGTH) == (64, 16)
    monkeypatch.setattr(binary, "_BLOCK_FLOATS", 1)


def problem(form, *, size=SIZE, seed=0):
    """Arguments of a loss in NumPy: hidden, table, targets, weights of any size."""
    rng = np.random.default_rng(seed)
    shape = (size, LENGTH)
    hidden_BLD = rng.normal(size=(*shape, WIDTH)).astype(np.float32)
    table_VD = rng.normal(size=(NUM_ROWS, WIDTH)).astype(np.float32)
    target_BL = rng.integers(1, NUM_ROWS, shape).astype(np.int32)
    weight_BL = rng.uniform(0.1, 3, shape) * (rng.random(shape) < 0.8)
    allowed_V = np.arange(NUM_ROWS) > 0
    allowed_V[4] = False  # a target nevertheless
    excluded_BX = rng.integers(0, NUM_ROWS, (size, 4)).astype(np.int32)
    negative_GS = rng.integers(1, NUM_ROWS, (size, 4)).astype(np.int32)
    negative_BLS = rng.integers(1, NUM_ROWS, (*shape, 2)).astype(np.int32)
    dropped_BX = rng.integers(0, 5, (size, 3)).astype(np.int32)
    candidates = {
        "ce": Catalogue(allowed_V),
        "ce_excluded": Catalogue(allowed_V, excluded_BX),
        "sampled_ce": Shared(negative_GS),
        # One set for all, of which a sequence drops up to three; 4 is padding.
        "sampled_ce_shared": Shared(negative_GS[:1], dropped_BX),
        "sampled_ce_dealt": hands_of(rng, size),
        "bce": Separate(negative_BLS),
        "gbce": Separate(negative_BLS),
    }[form]
    return hidden_BLD, table_VD, target_BL, weight_BL.astype(np.float32), candidates


def hands_of(rng, size):
    """Hands of one to five places, of which up to two are left out."""
    start_B = (np.arange(size) * 8 // size).astype(np.int32)
    return Hands(
        1 + rng.permutation(8).astype(np.int32),
        rng.permutation(size).astype(np.int32),
        start_B,
        start_B + rng.integers(1, 6, size).astype(np.int32),
        np.where(rng.random((size, 2)) < 0.7, start_B[:, None] + [[1, 3]], -1).astype(
            np.int32
        ),
        longest=5,
    )


def mean_loss(loss_fn, hidden_BLD, table_VD, *rest):
    """The loss as a step takes it: (mean, sums), so that the cotangent is not 1."""
    loss_sum, weight = loss_fn(hidden_BLD, table_VD, *rest)
    return loss_sum / jnp.maximum(weight, 1), (loss_sum, weight)


@functools.cache
def gradients_fn(form):
    """(gradients of the mean, sums), compiled once for all tests of equal shapes."""
    fn = functools.partial(mean_loss, LOSSES[form])
    # Packed states have places, which have no gradient.
    return jax.jit(jax.grad(fn, (0, 1), has_aux=True, allow_int=True))


def gradients(form, *arrays):
    """(gradients of the mean, sums) in NumPy, where nothing has to be compiled."""
    return jax.device_get(gradients_fn(form)(*arrays))


@functools.cache
def compiled(loss_fn):
    return jax.jit(loss_fn)


def sums(loss_fn, *arrays):
    """(sum, weight) in NumPy."""
    return jax.device_get(compiled(loss_fn)(*arrays))


# ---- Oracles


def rivals(candidates, b, place, target):
    """The ids a position's target competes with, by the definition of each form."""
    if isinstance(candidates, Shared) and candidates.dropped_BX is None:
        return candidates.negative_GS[b].tolist()
    if isinstance(candidates, Shared):
        dropped = candidates.dropped_BX[b].tolist()
        return np.delete(candidates.negative_GS[0], [*{*dropped} - {4}]).tolist()
    if isinstance(candidates, Separate):
        return candidates.negative_BLS[b, place].tolist()
    if isinstance(candidates, Hands):
        i = candidates.sequence_B.tolist().index(b)
        places = {*range(candidates.start_B[i], candidates.end_B[i])}
        places -= {*candidates.dropped_BX[i].tolist()}
        return [candidates.item_A[p % 8].item() for p in sorted(places)]
    excluded = set()
    if candidates.excluded_BX is not None:
        excluded = set(candidates.excluded_BX[b].tolist()) - {0}
    allowed = np.flatnonzero(candidates.allowed_V).tolist()
    return [v for v in allowed if v != target and v not in excluded]


def oracle(form, hidden_BLD, table_VD, target_BL, weight_BL, candidates):
    """The weighted sum over positions, one after another in float64."""
    beta = BETA if form == "gbce" else 1.0
    total = 0.0
    for (b, place), weight in np.ndenumerate(weight_BL):
        if weight == 0:
            continue
        target = int(target_BL[b, place])
        others = rivals(candidates, b, place, target)
        score = table_VD[[target, *others]] @ hidden_BLD[b, place]
        if form in ("bce", "gbce"):
            # -log sigmoid(s)^beta and -log(1 - sigmoid(s)), averaged.
            positive = beta * np.logaddexp(0, -score[0])
            negative = np.logaddexp(0, score[1:]).sum()
            total += weight * (positive + negative) / len(score)
        else:
            total += weight * (np.logaddexp.reduce(score) - score[0])
    return total


def float64(arrays):
    hidden, table, *rest = arrays
    return hidden.astype(float), table.astype(float), *rest


def finite_differences(fn, x, step=1e-5):
    """Central differences in float64: exact to step^2, some 1e-10."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (fn(up) - fn(down)) / (2 * step)
    return gradient


def naive(form, hidden_BLD, table_VD, target_BL, weight_BL, candidates):
    """All scores at once, and autodiff of everything."""
    target_BL1 = target_BL[..., None]
    if isinstance(candidates, Catalogue):
        score_BLV = hidden_BLD @ table_VD.T
        id_V = jnp.arange(table_VD.shape[0])
        is_rival_B1V = jnp.broadcast_to(
            candidates.allowed_V, (len(target_BL), 1, len(id_V))
        )
        if candidates.excluded_BX is not None:
            excluded_BX11 = candidates.excluded_BX[..., None, None]
            is_left_out_B1V = (excluded_BX11 == id_V[None, None, None]).any(axis=1)
            is_rival_B1V &= ~is_left_out_B1V | (id_V == 0)[None, None]
        is_rival_BLV = is_rival_B1V | (id_V[None, None] == target_BL1)
        score_BLV = jnp.where(is_rival_BLV, score_BLV, -jnp.inf)
        target_score = jnp.take_along_axis(score_BLV, target_BL1, axis=-1)[..., 0]
        loss_BL = jax.nn.logsumexp(score_BLV, axis=-1) - target_score
    else:
        if isinstance(candidates, Hands):
            ids_BS, is_rival_BS = of_sequences(candidates)
            ids_BLS = jnp.broadcast_to(ids_BS[:, None], (*target_BL.shape, 5))
        elif isinstance(candidates, Shared):
            negative_GS = candidates.negative_GS
            ids_BLS = jnp.broadcast_to(negative_GS[:, None], (*target_BL.shape, 4))
        else:
            ids_BLS = candidates.negative_BLS
        ids_BLC = jnp.concatenate([target_BL1, ids_BLS], axis=-1)
        score_BLC = jnp.einsum("bld,blcd->blc", hidden_BLD, table_VD[ids_BLC])
        if form == "sampled_ce_shared":
            place_11S = jnp.arange(4, dtype=jnp.int32)[None, None]
            is_dropped_BS = (candidates.dropped_BX[..., None] == place_11S).any(axis=1)
            is_dropped_BS = jnp.pad(is_dropped_BS, ((0, 0), (1, 0)))
            score_BLC = jnp.where(is_dropped_BS[:, None], -jnp.inf, score_BLC)
        if form == "sampled_ce_dealt":
            is_rival_BS = jnp.pad(is_rival_BS, ((0, 0), (1, 0)), constant_values=True)
            score_BLC = jnp.where(is_rival_BS[:, None], score_BLC, -jnp.inf)
        if form.startswith("sampled_ce"):
            loss_BL = -jax.nn.log_softmax(score_BLC, axis=-1)[..., 0]
        else:
            beta = BETA if form == "gbce" else 1.0
            positive_BL = -beta * jax.nn.log_sigmoid(score_BLC[..., 0])
            negative_BL = -jax.nn.log_sigmoid(-score_BLC[..., 1:]).sum(axis=-1)
            loss_BL = (positive_BL + negative_BL) / score_BLC.shape[-1]
    return (weight_BL * loss_BL).sum(), weight_BL.sum()


def of_sequences(hands):
    """Ids and whether they compete, [B, 5], in the order of the sequences."""
    place_BS = hands.start_B[:, None] + jnp.arange(5, dtype=jnp.int32)[None]
    is_seen_BS = (place_BS[..., None] == hands.dropped_BX[:, None]).any(axis=-1)
    is_rival_BS = (place_BS < hands.end_B[:, None]) & ~is_seen_BS
    order_B = jnp.argsort(hands.sequence_B)
    return hands.item_A[place_BS % 8][order_B], is_rival_BS[order_B]


def assert_close(x, expected, rtol=RTOL):
    """To rtol of the largest entry: a gradient has entries that cancel."""
    atol = rtol * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(x, float), expected, rtol=0, atol=atol)


def assert_equal_trees(tree, expected):
    for leaf, other in zip(
        jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(leaf, other)


# ---- Every loss


@pytest.mark.parametrize("form", FORMS)
def test_value_and_gradients(form):
    arrays = problem(form)
    grads, (loss_sum, weight) = gradients(form, *arrays)
    assert loss_sum.dtype == weight.dtype == np.float32
    assert loss_sum.shape == weight.shape == ()
    hidden, table, *rest = float64(arrays)
    total_weight = float(rest[1].sum(dtype=float))
    assert_close(weight, total_weight)
    assert_close(loss_sum, oracle(form, hidden, table, *rest))
    for grad, expected in zip(
        grads,
        (
            finite_differences(lambda x: oracle(form, x, table, *rest), hidden),
            finite_differences(lambda x: oracle(form, hidden, x, *rest), table),
        ),
        strict=True,
    ):
        assert grad.dtype == np.float32
        assert_close(grad, expected / total_weight)


@pytest.mark.parametrize("form", FORMS)
def test_agrees_with_the_naive_implementation(form):
    arrays = problem(form, seed=1)
    naive_fn = functools.partial(mean_loss, functools.partial(naive, form))
    naive_gradients_fn = jax.jit(jax.grad(naive_fn, (0, 1), has_aux=True))
    for leaf, expected in zip(
        jax.tree.leaves(gradients(form, *arrays)),
        jax.tree.leaves(naive_gradients_fn(*arrays)),
        strict=True,
    ):
        assert_close(leaf, np.asarray(expected))


@pytest.mark.parametrize("form", FORMS)
def test_masked_is_removed(form):
    hidden, table, target, weight, candidates = problem(form)
    kept = 8
    weight = np.ones_like(weight)
    weight[:, kept:] = 0
    first = gradients(form, hidden, table, target, weight, candidates)
    garbage, no_target = hidden.copy(), target.copy()
    garbage[:, kept:] = 1e3
    no_target[:, kept:] = 0
    other = gradients(form, garbage, table, no_target, weight, candidates)
    assert_equal_trees(first, other)
    (hidden_grad, _), (loss_sum, total_weight) = first
    assert not hidden_grad[:, kept:].any() and hidden_grad[:, :kept].any()
    assert total_weight == SIZE * kept
    if isinstance(candidates, Separate):
        candidates = Separate(candidates.negative_BLS[:, :kept])
    removed = hidden[:, :kept], table, target[:, :kept], weight[:, :kept], candidates
    assert_close(loss_sum, oracle(form, *float64(removed)))


@pytest.mark.parametrize("form", FORMS)
def test_all_masked(form):
    hidden, table, target, weight, candidates = problem(form)
    grads, total = gradients(form, hidden, table, target, 0 * weight, candidates)
    assert total == (0, 0)
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("form", FORMS)
def test_sum_is_linear_in_the_weights(form):
    hidden, table, target, weight, candidates = problem(form)

    def weighted(weight_BL):
        return gradients(form, hidden, table, target, weight_BL, candidates)[1]

    loss_sum, total = weighted(weight)
    # Equal to the bit: a factor of two rounds nothing.
    assert weighted(2 * weight) == (2 * loss_sum, 2 * total)
    is_even = np.arange(LENGTH) % 2 == 0
    parts = [weighted(weight * is_even), weighted(weight * ~is_even)]
    assert_close(np.sum(parts, axis=0), np.array([loss_sum, total]))


@pytest.mark.parametrize("form", FORMS)
def test_jit_equals_eager(form):
    """Of NumPy's arrays, which may be arguments or closed over."""
    hidden, *rest = problem(form)
    _, expected = gradients(form, hidden, *rest)
    # Without gradients.
    eager = LOSSES[form](hidden, *rest)
    closed = jax.jit(lambda hidden: LOSSES[form](hidden, *rest))(hidden)
    for found in jax.device_get((eager, closed)):
        assert_close(np.array(found), np.array(expected), rtol=1e-6)


@pytest.mark.parametrize("form", DISTINCT_FORMS)
def test_a_table_of_another_dtype_is_float32(form):
    hidden, table, *rest = problem(form)
    half = table.astype(jnp.bfloat16)
    (hidden_grad, half_grad), half_sums = gradients(form, hidden, half, *rest)
    expected, expected_sums = gradients(form, hidden, half.astype(np.float32), *rest)
    assert_close(np.array(half_sums), np.array(expected_sums), rtol=1e-6)
    assert_close(hidden_grad, expected[0], rtol=1e-6)
    assert half_grad.dtype == jnp.bfloat16
    assert_close(half_grad, expected[1], rtol=2**-8)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_empty_is_named(form):
    hidden, table, target, weight, candidates = problem(form)
    no_rows = (x[:0] for x in (hidden, target, weight))
    hidden_0LD, target_0L, weight_0L = no_rows
    with pytest.raises(AssertionError, match=r"no positions: weights .* \(0, 13\)"):
        LOSSES[form](hidden_0LD, table, target_0L, weight_0L, candidates)
    if isinstance(candidates, Shared | Separate):
        candidates = candidates._replace(
            **{candidates._fields[0]: candidates[0][..., :0]}
        )
        with pytest.raises(AssertionError, match="no negatives"):
            LOSSES[form](hidden, table, target, weight, candidates)


BFLOAT16 = {"dtype": "bfloat16"}
ALL_BFLOAT16 = {**BFLOAT16, "score_dtype": "bfloat16"}


@pytest.mark.parametrize("dtypes", [BFLOAT16, ALL_BFLOAT16], ids=["some", "all"])
@pytest.mark.parametrize("form", ["ce_excluded", "sampled_ce"])
def test_bfloat16_under_vmap_is_that_of_each(form, dtypes):
    fn = functools.partial(mean_loss, functools.partial(LOSSES[form], **dtypes))
    both = jax.jit(jax.value_and_grad(fn, (0, 1), has_aux=True))
    cases = [problem(form, seed=seed) for seed in (2, 3)]
    hidden, table, target, weight, candidates = cases[1]
    cases[1] = hidden, table, target, 0 * weight, candidates  # none to compute
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *cases)
    mapped = jax.tree.leaves(jax.vmap(both)(*stacked))
    for i, case in enumerate(cases):
        for leaf, expected in zip(mapped, jax.tree.leaves(both(*case)), strict=True):
            assert_close(np.asarray(leaf)[i], np.asarray(expected), rtol=1e-5)


@pytest.mark.parametrize("form", DISTINCT_FORMS)
def test_vmap(form):
    cases = [problem(form, seed=seed) for seed in (2, 3)]
    # Batches with another number of positions take another number of chunks.
    hidden, table, target, weight, candidates = cases[1]
    cases[1] = hidden, table, target, np.ones_like(weight), candidates
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *cases)
    mapped = jax.tree.leaves(jax.jit(jax.vmap(gradients_fn(form)))(*stacked))
    for i, case in enumerate(cases):
        expected = jax.tree.leaves(gradients(form, *case))
        for leaf, expected_leaf in zip(mapped, expected, strict=True):
            assert_close(np.asarray(leaf)[i], expected_leaf)


@pytest.mark.parametrize("form", DISTINCT_FORMS)
def test_shards_of_a_batch_sum_to_the_whole(form):
    arrays = problem(form, size=2 * SIZE)

    def shard(index):
        return jax.tree.map(lambda x: x[index] if len(x) == 2 * SIZE else x, arrays)

    parts = [gradients(form, *shard(i))[1] for i in (slice(SIZE), slice(SIZE, None))]
    _, whole = gradients(form, *arrays)
    assert_close(np.sum(parts, axis=0), np.array(whole))


@pytest.mark.parametrize("form", FORMS)
def test_extreme_scores_are_exact_and_finite(form):
    """Scores of some 1e4 in either direction: exp of them is 0 or infinite."""
    hidden, table, *rest = problem(form, seed=4)
    arrays = 100 * hidden, 100 * table, *rest
    assert abs(arrays[0] @ arrays[1].T).max() > 1e4
    grads, (loss_sum, _) = gradients(form, *arrays)
    assert_close(loss_sum, oracle(form, *float64(arrays)))
    assert all(np.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("form", FORMS)
def test_a_sure_target_costs_what_it_should(form):
    """A high score of all candidates swallows no small loss: 5000 + 0.095 would."""
    hidden, weight = np.ones((1, 1, 1), np.float32), np.ones((1, 1), np.float32)
    target = np.ones((1, 1), np.int32)
    table = np.array([[5000], [5003], [5000], [5000]], np.float32)
    allowed = np.arange(4) > 0
    if form in ("bce", "gbce"):
        table = np.array([[0], [3], [-3], [-3]], np.float32)
        candidates = Separate(np.array([[[2, 3]]], np.int32))
        beta = BETA if form == "gbce" else 1.0
        expected = (beta + 2) * math.log1p(math.exp(-3)) / 3
    elif form == "sampled_ce":
        candidates = Shared(np.array([[2, 3]], np.int32))
        expected = math.log1p(2 * math.exp(-3))
    elif form == "ce":
        candidates = Catalogue(allowed)
        expected = math.log1p(2 * math.exp(-3))
    else:
        candidates = Catalogue(allowed, np.array([[3]], np.int32))
        expected = math.log1p(math.exp(-3))
    loss_sum, total = sums(LOSSES[form], hidden, table, target, weight, candidates)
    assert loss_sum == pytest.approx(expected, rel=1e-6)
    assert total == 1


@pytest.mark.parametrize("form", DISTINCT_FORMS)
def test_bfloat16_states_are_scored_in_float32(form):
    hidden, *rest = problem(form)
    half = hidden.astype(jnp.bfloat16)
    (half_grad, table_grad), half_sums = gradients(form, half, *rest)
    (hidden_grad, expected_grad), expected_sums = gradients(
        form, half.astype(np.float32), *rest
    )
    assert_close(np.array(half_sums), np.array(expected_sums), rtol=1e-6)
    assert_close(table_grad, expected_grad, rtol=1e-6)
    assert half_grad.dtype == jnp.bfloat16
    # One rounding to 8 bits, at the very end.
    assert_close(half_grad, hidden_grad, rtol=2**-8)


@pytest.mark.parametrize("form", ["ce_excluded", "sampled_ce", "sampled_ce_shared"])
def test_bfloat16_gradients_are_near_and_the_loss_is_nearer(form):
    arrays = problem(form)
    expected_gradients, expected_sums = gradients(form, *arrays)
    fn = functools.partial(mean_loss, functools.partial(LOSSES[form], dtype="bfloat16"))
    found, found_sums = jax.jit(jax.grad(fn, (0, 1), has_aux=True))(*arrays)
    # Off by 2^-8 nats a position at the most; the sampled forms not at all.
    assert_close(np.array(found_sums), np.array(expected_sums), rtol=2**-8)
    for mine, other in zip(found, expected_gradients, strict=True):
        assert mine.dtype == jnp.float32
        assert_close(mine, other, rtol=2**-6)
        assert abs(mine - other).max() > 2**-14 * abs(other).max()  # it was bfloat16


@pytest.mark.parametrize("form", ["ce_excluded", "sampled_ce", "sampled_ce_shared"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_of_bfloat16_are_of_rounded_states_and_rows(form, dtype):
    """The loss of the formula at the nearest bfloat16 numbers, and its gradients."""
    hidden, table, *rest = problem(form)
    loss = functools.partial(LOSSES[form], dtype=dtype, score_dtype="bfloat16")
    fn = functools.partial(mean_loss, loss)
    step = jax.jit(jax.grad(fn, (0, 1), has_aux=True))
    found, (loss_sum, _) = step(hidden, table, *rest)
    near = [x.astype(jnp.bfloat16).astype(np.float32) for x in (hidden, table)]
    expected, (expected_sum, _) = gradients(form, *near, *rest)
    assert abs(loss_sum / gradients(form, hidden, table, *rest)[1][0] - 1) > 1e-5
    rtol = 1e-5 if dtype == "float32" else 2**-6
    assert_close(loss_sum, np.asarray(expected_sum), rtol=min(rtol, 2**-8))
    for mine, other in zip(found, expected, strict=True):
        assert mine.dtype == jnp.float32
        assert_close(mine, np.asarray(other), rtol=rtol)


# ---- Full cross-entropy: chunks and candidates


@pytest.mark.parametrize(
    "dtypes, rtol", [({}, 1e-5), (BFLOAT16, 2**-5), (ALL_BFLOAT16, 2**-4)]
)
def test_ce_of_one_chunk_can_be_differentiated_again(dtypes, rtol):
    """The Hessian times a direction, in the hidden states and the table."""
    *arrays, target, weight, candidates = problem("ce", size=2)
    rng = np.random.default_rng(7)
    direction = [rng.normal(size=x.shape).astype(np.float32) for x in arrays]

    def product(loss_fn):
        def slope(*arrays):
            fn = lambda *x: loss_fn(*x, target, weight, candidates)[0]  # noqa: E731
            gradients = jax.grad(fn, (0, 1))(*arrays)
            return sum(map(jnp.vdot, gradients, direction))

        return jax.jit(jax.grad(slope, (0, 1)))(*arrays)

    found = product(functools.partial(losses.ce, **dtypes))
    expected = product(functools.partial(naive, "ce"))
    for mine, other in zip(found, expected, strict=True):
        assert_close(mine, np.asarray(other), rtol)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 127, 128, 129, 130])
def test_ce_for_any_number_of_positions(count):
    """130 places, of which any number is taken, in chunks of 64."""
    hidden, table, target, weight, candidates = problem("ce_excluded", size=2 * SIZE)
    is_taken = np.random.default_rng(count).permutation(target.size) < count
    is_taken = is_taken.reshape(target.shape)
    arrays = hidden, table, target, is_taken.astype(np.float32), candidates
    (hidden_grad, _), (loss_sum, total) = gradients("ce_excluded", *arrays)
    assert total == count
    assert_close(loss_sum, oracle("ce", *float64(arrays)))
    np.testing.assert_array_equal(hidden_grad.any(axis=-1), is_taken)


def test_ce_of_full_chunks():
    """All of 64 x 13 positions: no chunk is short, and none may be taken twice."""
    hidden, table, target, weight, candidates = problem("ce", size=64)
    arrays = hidden, table, target, np.ones_like(weight), candidates
    loss_sum, total = sums(losses.ce, *arrays)
    assert total == 64 * LENGTH
    assert_close(loss_sum, oracle("ce", *float64(arrays)))


def test_ce_of_sequences_far_apart():
    """The sequences of one chunk need not be neighbours: most here have no position."""
    size = 200
    hidden, table, target, weight, candidates = problem("ce_excluded", size=size)
    weight = np.zeros_like(weight)
    weight[::3, 2] = 1
    assert 64 < weight.sum() < 128  # two chunks, the first over 192 sequences
    arrays = hidden, table, target, weight, candidates
    loss_sum, _ = sums(losses.ce, *arrays)
    assert_close(loss_sum, oracle("ce", *float64(arrays)))


@pytest.mark.parametrize("num_rows", [2, 63, 64, 65])
def test_ce_has_no_phantom_candidates(num_rows):
    """Equal scores: the loss is the logarithm of the number of candidates, V - 1."""
    loss_sum, total = sums(
        losses.ce,
        np.zeros((3, 43, 2), np.float32),
        np.ones((num_rows, 2), np.float32),
        np.ones((3, 43), np.int32),
        np.ones((3, 43), np.float32),
        Catalogue(np.arange(num_rows) > 0),
    )
    assert total == 129
    assert loss_sum / total == pytest.approx(math.log(num_rows - 1), rel=1e-6)


@pytest.mark.parametrize(
    "target, allowed, excluded, num_candidates",
    [
        (1, range(1, 6), None, 5),
        (1, range(1, 6), [], 5),
        (1, range(1, 6), [2, 3], 3),
        (1, range(1, 6), [1, 2], 4),  # the target stays
        (1, range(1, 6), [2, 2, 0, 2], 4),  # repeats count once, 0 is padding
        (1, range(1, 6), [1, 2, 3, 4, 5], 1),  # nothing but the target: no loss
        (4, [1, 2], [1], 2),  # a target that is not allowed stays too
        (1, [], None, 1),
        (1, range(6), None, 6),  # PAD competes where it is allowed
        (1, range(6), [2, 0], 5),  # and the padding of a list does not leave it out
    ],
)
def test_ce_candidates_by_hand(target, allowed, excluded, num_candidates):
    if excluded is not None:
        excluded = np.array([excluded + [0] * (5 - len(excluded))], np.int32)
    loss_sum, _ = sums(
        losses.ce,
        np.zeros((1, 1, 2), np.float32),
        np.ones((6, 2), np.float32),
        np.full((1, 1), target, np.int32),
        np.ones((1, 1), np.float32),
        Catalogue(np.isin(np.arange(6), [*allowed]), excluded),
    )
    assert loss_sum == pytest.approx(math.log(num_candidates), rel=1e-6, abs=1e-7)


def test_ce_by_hand():
    # Scores 0, log 2, log 3 of the items; PAD's is log 100 and does not count.
    loss_sum, total = sums(
        losses.ce,
        np.ones((1, 3, 1), np.float32),
        np.log(np.array([[100], [1], [2], [3]], np.float32)),
        np.array([[1, 2, 3]], np.int32),
        np.array([[1, 0.5, 2]], np.float32),
        Catalogue(np.arange(4) > 0),
    )
    assert total == 3.5
    expected = math.log(6 / 1) + 0.5 * math.log(6 / 2) + 2 * math.log(6 / 3)
    assert loss_sum == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("form", ["ce", "ce_excluded"])
def test_pad_is_a_candidate_only_where_it_is_allowed(form):
    hidden, table, target, weight, candidates = problem(form)
    (_, table_grad), (loss_sum, _) = expected = gradients(
        form, hidden, table, target, weight, candidates
    )
    assert not table_grad[0].any() and table_grad[1:].any()
    moved = table.copy()
    moved[0] += 7
    assert_equal_trees(
        gradients(form, hidden, moved, target, weight, candidates), expected
    )
    candidates = candidates._replace(allowed_V=candidates.allowed_V.copy())
    candidates.allowed_V[0] = True
    arrays = hidden, table, target, weight, candidates
    (_, table_grad), (larger_sum, _) = gradients(form, *arrays)
    assert larger_sum > loss_sum and table_grad[0].any()
    assert_close(larger_sum, oracle(form, *float64(arrays)))


@pytest.mark.parametrize("most", [3, 6, 7])
def test_compact_puts_positions_with_a_weight_first(most):
    weight_BL = np.array([[0, 0.5, 1], [0, 0, 2]], np.float32)
    index_N, count = jax.jit(losses.compact, static_argnums=1)(weight_BL, most)
    assert index_N.tolist() == [1, 2, 5, 6, 6, 6, 6][:most] and count == 3
    assert index_N.dtype == count.dtype == jnp.int32


def packed(hidden_BLD, weight_BL, num_rows, row_length):
    """The states with a weight, anywhere in the rows; NaN in the rest of them."""
    rng = np.random.default_rng(1)
    num_places = num_rows * row_length
    place_BL = np.full(weight_BL.shape, num_places, np.int32)
    has_weight_BL = weight_BL > 0
    places = rng.permutation(num_places)[: has_weight_BL.sum()]
    place_BL[has_weight_BL] = places
    hidden_ND = np.full((num_places, WIDTH), np.nan, np.float32)
    hidden_ND[places] = hidden_BLD[has_weight_BL]
    return losses.Packed(hidden_ND.reshape(num_rows, row_length, WIDTH), place_BL)


@pytest.mark.parametrize("num_rows", [6, 11], ids=["fewer", "more"])
@pytest.mark.parametrize("form", FORMS)
def test_packed_states_have_the_same_loss_and_gradients(form, num_rows):
    """In fewer places than the batch has positions, or in more."""
    hidden_BLD, *rest = problem(form)
    hidden = packed(hidden_BLD, rest[2], num_rows, row_length=10)
    (grad, table_grad_VD), (loss_sum, weight) = gradients(form, hidden, *rest)
    assert_close(loss_sum, oracle(form, *float64((hidden_BLD, *rest))))
    assert_close(weight, rest[2].sum())
    (expected_BLD, expected_VD), _ = gradients(form, hidden_BLD, *rest)
    assert_close(table_grad_VD, expected_VD)
    place_N = hidden.place_BL.ravel()
    grad_ND = np.zeros((10 * num_rows + 1, WIDTH), np.float32)
    grad_ND[place_N] = expected_BLD.reshape(-1, WIDTH)
    assert_close(grad.hidden_RTD.reshape(-1, WIDTH), grad_ND[:-1])


def test_dense_states_have_the_same_loss_on_a_gpu(monkeypatch):
    """Through jit, vmap and grad, in several chunks, of which some have no target."""
    monkeypatch.setattr(backend, "is_cpu", lambda: False)
    sizes = softmax._GPU._replace(scores=256, fewest_positions=16)
    monkeypatch.setattr(softmax, "_GPU", sizes)
    hidden_BLD, *rest = problem("ce_excluded")
    hidden = packed(hidden_BLD, rest[2], 11, row_length=10)
    assert softmax.tile_shape(NUM_ROWS, hidden.most)[0] < hidden.most
    dense = dataclasses.replace(hidden, is_dense=True)
    step = jax.value_and_grad(lambda x: losses.ce(x, *rest)[0], allow_int=True)
    two = jax.tree.map(lambda x: np.stack([x, x]), dense)
    loss_2, grad = jax.jit(jax.vmap(step))(two)
    expected = oracle("ce_excluded", *float64((hidden_BLD, *rest)))
    np.testing.assert_allclose(loss_2, [expected, expected], rtol=RTOL)
    assert grad.is_dense
    (of_mean, _), (_, weight) = gradients("ce_excluded", hidden, *rest)
    for one in grad.hidden_RTD / weight:
        assert_close(one, of_mean.hidden_RTD)
    eagerly = losses.ce(dense, *rest)[0]  # of NumPy's arrays
    np.testing.assert_allclose(eagerly, expected, rtol=RTOL)
    with pytest.raises(AssertionError, match="no states"):
        losses.ce(losses.Packed(np.zeros((0, 10, WIDTH)), hidden.place_BL), *rest)


@pytest.mark.parametrize("form", FORMS)
def test_memory_of_packed_states_is_that_of_their_rows(form):
    """Nothing as wide as a state is made for padding: two rows for 100 windows."""
    size, length, width = 100, 400, 256
    candidates = problem(form, size=size)[-1]
    if isinstance(candidates, Separate):
        candidates = Separate(np.ones((size, length, 2), np.int32))
    shape_BL = (size, length)
    hidden = losses.Packed(
        jax.ShapeDtypeStruct((2, length, width), np.float32),
        jax.ShapeDtypeStruct(shape_BL, np.int32),
    )
    program = gradients_fn(form).lower(
        hidden,
        jax.ShapeDtypeStruct((NUM_ROWS, width), np.float32),
        jax.ShapeDtypeStruct(shape_BL, np.int32),
        jax.ShapeDtypeStruct(shape_BL, np.float32),
        candidates,
    )
    num_bytes = program.compile().memory_analysis().temp_size_in_bytes
    assert 0 < num_bytes < 4 * size * length * width / 4


# Dealt, positions are in another order, and others would be left out.
@pytest.mark.parametrize("form", [x for x in FORMS if x != "sampled_ce_dealt"])
def test_more_weights_than_states_are_not_read_past_the_end(form):
    """A caller's mistake costs the positions without a place, and nothing else: 520 of
    them and 260 states, which are some chunks and a part of one."""
    hidden_BLD, table_VD, target_BL, weight_BL, candidates = problem(form, size=40)
    weight_BL = np.maximum(weight_BL, 0.1)
    rest = table_VD, target_BL, weight_BL, candidates
    place_BL = np.arange(weight_BL.size, dtype=np.int32).reshape(weight_BL.shape)
    first_BL = place_BL < 260
    hidden = losses.Packed(
        hidden_BLD[first_BL].reshape(26, 10, WIDTH), np.minimum(place_BL, 260)
    )
    (grad, table_grad_VD), (loss_sum, _) = gradients(form, hidden, *rest)
    first = table_VD, target_BL, np.where(first_BL, weight_BL, 0), candidates
    expected, (expected_sum, weight) = gradients(form, hidden_BLD, *first)
    scale = weight / weight_BL.sum()  # of means over all weights
    assert_close(loss_sum, expected_sum)
    assert_close(grad.hidden_RTD, scale * expected[0][first_BL].reshape(26, 10, WIDTH))
    assert_close(table_grad_VD, scale * expected[1])


@pytest.mark.parametrize("form", DISTINCT_FORMS)
def test_memory_is_that_of_a_few_chunks(form, monkeypatch):
    """No array of all scores, nor of all negatives' embeddings, is ever stored."""
    monkeypatch.setattr(softmax, "_CPU", softmax._CPU._replace(scores=2**18))
    monkeypatch.setattr(binary, "_BLOCK_FLOATS", 2**18)
    size, length, width, num_negatives = 64, 64, 16, 512
    num_rows = 5001 if form == "ce_excluded" else 100

    def shape(*axes, dtype=np.float32):
        return jax.ShapeDtypeStruct(axes, dtype)

    candidates, largest = {
        "ce_excluded": (
            Catalogue(shape(num_rows, dtype=bool), shape(size, 65, dtype=np.int32)),
            shape(size, length, num_rows),
        ),
        "sampled_ce": (
            Shared(shape(size, num_negatives, dtype=np.int32)),
            shape(size, length, num_negatives),
        ),
        "gbce": (
            Separate(shape(size, length, num_negatives, dtype=np.int32)),
            shape(size, length, num_negatives, width),
        ),
    }[form]
    arrays = (
        shape(size, length, width),
        shape(num_rows, width),
        shape(size, length, dtype=np.int32),
        shape(size, length),
        candidates,
    )
    fn = functools.partial(mean_loss, LOSSES[form])
    program = jax.jit(jax.grad(fn, (0, 1), has_aux=True)).lower(*arrays).compile()
    num_bytes = 4 * largest.size
    assert 0 < program.memory_analysis().temp_size_in_bytes < num_bytes / 4


# ---- Sampled losses


def test_sampled_ce_by_hand():
    # The target's score is log 3, those of its negatives log 2, log 2 and 0.
    loss_sum, _ = sums(
        losses.sampled_ce,
        np.ones((1, 1, 1), np.float32),
        np.log(np.array([[9], [3], [2], [1]], np.float32)),
        np.array([[1]], np.int32),
        np.ones((1, 1), np.float32),
        Shared(np.array([[2, 2, 3]], np.int32)),
    )
    assert loss_sum == pytest.approx(math.log(8 / 3), rel=1e-6)


def test_sampled_ce_of_a_catalogue_is_ce():
    arrays = problem("ce_excluded")
    expected = sums(losses.ce, *arrays)
    assert_equal_trees(sums(losses.sampled_ce, *arrays), expected)


def test_sampled_ce_of_a_list_is_that_of_the_catalogue_less_the_rest():
    hidden, table, target, weight, _ = problem("ce")
    target = 1 + target % 3  # targets 1..3, none of them among the negatives
    negative_GS = np.tile(np.int32([4, 6, 7, 8]), (SIZE, 1))
    excluded_BX = np.tile(np.int32([1, 2, 3, 5]), (SIZE, 1))
    arrays = hidden, table, target, weight
    drawn = gradients("sampled_ce", *arrays, Shared(negative_GS))
    allowed_V = np.arange(NUM_ROWS) > 0
    left = gradients("ce_excluded", *arrays, Catalogue(allowed_V, excluded_BX))
    for leaf, expected in zip(
        jax.tree.leaves(drawn), jax.tree.leaves(left), strict=True
    ):
        assert_close(leaf, expected)


@pytest.mark.parametrize("beta", [1.0, 0.5, 0.01])
def test_gbce_by_hand(beta):
    # Odds of 3 for the target, of 1 and 1/3 for the negatives.
    arrays = (
        np.ones((1, 1, 1), np.float32),
        np.log(np.array([[9], [3], [1], [1 / 3]], np.float32)),
        np.array([[1]], np.int32),
        np.full((1, 1), 2, np.float32),
        Separate(np.array([[[2, 3]]], np.int32)),
    )
    loss_sum, total = sums(functools.partial(losses.gbce, beta=beta), *arrays)
    expected = 2 * (beta * math.log(4 / 3) + math.log(2) + math.log(4 / 3)) / 3
    assert loss_sum == pytest.approx(expected, rel=1e-6)
    assert total == 2
    if beta == 1:
        assert_equal_trees(sums(losses.bce, *arrays), (loss_sum, total))


@pytest.mark.parametrize("num_negatives, num_candidates", [(1, 100), (256, 3415)])
def test_gbce_beta_closed_form(num_negatives, num_candidates):
    rate = num_negatives / num_candidates
    beta = functools.partial(losses.gbce_beta, num_negatives, num_candidates)
    assert beta(0.0) == 1 and beta(1.0) == pytest.approx(rate, rel=1e-12)
    for calibration in (0.25, 0.75):
        expected = rate * (calibration * (1 - 1 / rate) + 1 / rate)
        assert beta(calibration) == pytest.approx(expected, rel=1e-12)
