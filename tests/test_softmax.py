"""The tiled softmax cross-entropy against a float64 loop, in every tiling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import backend, normaliser, score_tiles, softmax
from jaxrec.softmax import Positions

NUM_POSITIONS, NUM_ROWS, WIDTH = 70, 53, 3
Sizes = functools.partial(softmax._Sizes, fewest_positions=64)
TILINGS = {
    # Positions and rows of a tile of 53 rows, and the sizes that make it.
    "whole": (
        (64, 64),
        Sizes(scores=64 * 64, positions=1, most_rows=1, most_kept=1),
    ),
    "whole, one chunk": (
        (80, 64),
        Sizes(scores=10_000, positions=1, most_rows=1, most_kept=1),
    ),
    "kept": (
        (16, 16),
        Sizes(scores=64, positions=16, most_rows=16, most_kept=4),
    ),
    "kept, one chunk": (
        (80, 32),
        Sizes(scores=64, positions=99, most_rows=40, most_kept=2),
    ),
    "twice": (
        (16, 16),
        Sizes(scores=64, positions=16, most_rows=16, most_kept=3),
    ),
    "twice, one chunk": (
        (80, 32),
        Sizes(scores=64, positions=99, most_rows=40, most_kept=1),
    ),
}
# Some ten float32 roundings of 6e-8 a position, and sums of 70 of them.
TOLERANCE = {"rtol": 1e-5, "atol": 2e-6}


@pytest.fixture(params=[*TILINGS])
def tiling(request, monkeypatch):
    shape, sizes = TILINGS[request.param]
    monkeypatch.setattr(softmax, "_CPU", sizes)
    monkeypatch.setattr(softmax, "_GPU", sizes)
    assert softmax.tile_shape(NUM_ROWS, NUM_POSITIONS) == shape
    return request.param


def problem(*, excluded: bool, count=67, scale=1.0, num_rows=NUM_ROWS):
    rng = np.random.default_rng(3)
    hidden_ND = scale * rng.normal(size=(NUM_POSITIONS, WIDTH)).astype(np.float32)
    table_VD = rng.normal(size=(num_rows, WIDTH)).astype(np.float32)
    has_target_N = np.arange(NUM_POSITIONS) < count
    positions = Positions(
        np.where(has_target_N, rng.integers(1, num_rows, NUM_POSITIONS), 0),
        np.where(has_target_N, rng.uniform(0.1, 3, NUM_POSITIONS), 0),
        np.arange(NUM_POSITIONS) // 9 * 2 % 15,  # 8 sequences, not in order
        np.int32(count),
    )
    positions = Positions(
        *(x.astype(d) for x, d in zip(positions, ("i4", "f4", "i4", "i4"), strict=True))
    )
    allowed_V = (np.arange(num_rows) > 0) & (np.arange(num_rows) % 7 != 5)
    excluded_BX = rng.integers(0, num_rows, (15, 4)).astype(np.int32)
    return hidden_ND, table_VD, positions, allowed_V, excluded_BX if excluded else None


def oracle(
    hidden_ND, table_VD, positions, allowed_V, excluded_BX, *, sizes: bool = False
):
    """(sum, dhidden, dtable), position by position in float64.

    Args:
      sizes: sum the absolute values of a gradient's terms.
    """
    hidden_ND, table_VD = hidden_ND.astype(float), table_VD.astype(float)
    total, hidden_grad_ND, table_grad_VD = 0.0, 0 * hidden_ND, 0 * table_VD
    for n in range(positions.count):
        target, weight = positions.target_N[n], float(positions.weight_N[n])
        candidates = set(np.flatnonzero(allowed_V))
        if excluded_BX is not None:
            candidates -= set(excluded_BX[positions.sequence_N[n]]) - {0}
        chosen = sorted(candidates | {target})
        score_C = table_VD[chosen] @ hidden_ND[n]
        share_C = np.exp(score_C - score_C.max())
        total += weight * (np.log(share_C.sum()) + score_C.max())
        total -= weight * (table_VD[target] @ hidden_ND[n])
        grad_C = weight * share_C / share_C.sum()
        if sizes:
            grad_C[chosen.index(target)] += weight
            hidden_grad_ND[n] = grad_C @ abs(table_VD[chosen])
            table_grad_VD[chosen] += np.outer(grad_C, abs(hidden_ND[n]))
            continue
        grad_C[chosen.index(target)] -= weight
        hidden_grad_ND[n] = grad_C @ table_VD[chosen]
        table_grad_VD[chosen] += np.outer(grad_C, hidden_ND[n])
    return total, hidden_grad_ND, table_grad_VD


@pytest.fixture(params=["cpu", "another device"])
def device(request, monkeypatch):
    """The other way that scores and roundings are made in, on whatever there is."""
    monkeypatch.setattr(backend, "is_cpu", lambda: request.param == "cpu")


@pytest.mark.usefixtures("tiling", "device")
@pytest.mark.parametrize("excluded", [False, True])
def test_loss_and_gradients_are_those_of_the_loop(excluded):
    # Functions of its own: what was traced of another tiling would be found again.
    step = jax.jit(jax.value_and_grad(lambda *x: softmax.loss_sum(*x), (0, 1)))
    alone = jax.jit(lambda *arrays: softmax.loss_sum(*arrays))
    for count in (67, 70, 1, 0):
        arrays = problem(excluded=excluded, count=count)
        total, gradients = step(*arrays)
        expected, *expected_gradients = oracle(*arrays)
        np.testing.assert_allclose(total, expected, **TOLERANCE)
        assert alone(*arrays) == pytest.approx(float(total), rel=1e-6)
        for mine, other in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_allclose(mine, other, **TOLERANCE)


@pytest.mark.usefixtures("tiling", "device")
def test_dense_positions_have_the_same_loss():
    """Chunks beyond the count are gone through on a GPU, and add nothing."""
    dense = functools.partial(softmax.loss_sum, is_dense=True)
    step = jax.jit(jax.value_and_grad(lambda *x: dense(*x), (0, 1)))
    for count in (67, 3, 0):
        arrays = problem(excluded=True, count=count)
        total, gradients = step(*arrays)
        for mine, other in zip((total, *gradients), oracle(*arrays), strict=True):
            np.testing.assert_allclose(mine, other, **TOLERANCE)


@pytest.mark.parametrize("is_dense", [False, True])
@pytest.mark.usefixtures("tiling")
def test_a_gpu_need_not_be_asked_how_many_positions_are_dense(
    is_dense, tiling, monkeypatch
):
    """A loop whose turns are known is a scan; the host of a GPU waits for a while."""
    monkeypatch.setattr(backend, "is_cpu", lambda: False)
    step = jax.value_and_grad(
        lambda *x: softmax.loss_sum(*x, is_dense=is_dense), (0, 1)
    )
    jaxpr = jax.make_jaxpr(step)(*problem(excluded=False))
    assert ("while[" in str(jaxpr)) == (not is_dense and "one chunk" not in tiling)
    # And one condition, for a target far below other scores, not one in every chunk.
    assert [of.primitive.name for of in jaxpr.eqns].count("cond") == 1
    assert str(jaxpr).count("cond[") == 1


bfloat16_sum = functools.partial(softmax.loss_sum, dtype="bfloat16")


def bfloat16_fn(*arrays):
    """Value and gradients; traced anew, since what it is made of is exchanged."""
    return jax.jit(lambda *x: jax.value_and_grad(bfloat16_sum, (0, 1))(*x))(*arrays)


@pytest.mark.usefixtures("tiling", "device")
@pytest.mark.parametrize("excluded", [False, True])
def test_bfloat16_rounds_what_is_multiplied_and_no_more(excluded):
    """A term of a gradient has three factors that are off by 2^-8 at the most: the
    exponential, what it is multiplied with, and the normaliser."""
    arrays = problem(excluded=excluded)
    total, gradients = bfloat16_fn(*arrays)
    expected, *expected_gradients = oracle(*arrays)
    assert abs(total - expected) < 2**-8 * arrays[2].weight_N.sum()
    assert all(grad.dtype == jnp.float32 for grad in gradients)
    _, *size_of_terms = oracle(*arrays, sizes=True)
    for mine, other, size in zip(
        gradients, expected_gradients, size_of_terms, strict=True
    ):
        error = abs(mine - other)
        assert (error <= 3.1 * 2**-8 * size + 1e-6).all()
        assert error.max() > 2**-12 * size.max()  # it was bfloat16


def nearest(x):
    """The nearest numbers of bfloat16."""
    return x.astype(jnp.bfloat16).astype(np.float32)


@pytest.mark.usefixtures("tiling", "device")
@pytest.mark.parametrize("excluded", [False, True])
def test_scores_of_bfloat16_are_of_rounded_states_and_rows(excluded):
    arrays = problem(excluded=excluded)
    expected = oracle(*map(nearest, arrays[:2]), *arrays[2:])
    for dtype, of_terms in (("float32", 1e-6), ("bfloat16", 3.1 * 2**-8)):
        loss_sum = functools.partial(
            softmax.loss_sum, dtype=dtype, score_dtype="bfloat16"
        )
        step = jax.jit(lambda *x, fn=loss_sum: jax.value_and_grad(fn, (0, 1))(*x))
        total, gradients = step(*arrays)
        assert abs(total - oracle(*arrays)[0]) > 1e-3  # it was rounded
        most = 1e-4 if dtype == "float32" else 2**-8 * arrays[2].weight_N.sum()
        assert abs(total - expected[0]) < most
        _, *sizes = oracle(*map(nearest, arrays[:2]), *arrays[2:], sizes=True)
        for mine, other, size in zip(gradients, expected[1:], sizes, strict=True):
            assert mine.dtype == jnp.float32
            assert (abs(mine - other) <= of_terms * size + 2e-6).all()


@pytest.mark.usefixtures("device")
def test_scores_that_rounding_raises_are_finite():
    """By 129 nats, above what no score of the unrounded can exceed."""
    up = 1 + 2**-8 + 2**-12  # 1 + 2^-7 in bfloat16
    one_1 = np.ones(1, np.int32)
    positions = Positions(one_1, np.ones(1, np.float32), one_1 - 1, np.int32(1))
    hidden_ND = np.full((1, 64), 256 * up, np.float32)
    table_VD = np.ones((3, 64), np.float32)
    table_VD[2] = up
    loss_sum = functools.partial(softmax.loss_sum, score_dtype="bfloat16")
    step = jax.jit(lambda *x: jax.value_and_grad(loss_sum, (0, 1))(*x))
    allowed_V = np.arange(3) > 0
    total, gradients = step(hidden_ND, table_VD, positions, allowed_V, None)
    assert total == pytest.approx(64 * 256 * (1 + 2**-7) * 2**-7, rel=1e-5)
    assert all(np.isfinite(grad).all() for grad in gradients)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_of_bfloat16_are_one_product(dtype):
    hidden_ND, table_VD, positions, allowed_V, _ = problem(excluded=False)
    hidden = score_tiles.hidden_forms(jnp.asarray(hidden_ND), dtype, "bfloat16")
    table = score_tiles.Table(
        jnp.asarray(table_VD), jnp.asarray(allowed_V), None, 32, dtype, "bfloat16"
    )
    right_KC = score_tiles.tile_of(table, 0).right_KC
    assert hidden.left_NK.shape == hidden_ND.shape
    assert right_KC.shape == (WIDTH, 32)
    assert hidden.left_NK.dtype == right_KC.dtype == jnp.bfloat16


def test_one_position_alone_runs_in_bfloat16():
    """XLA has no matmul of bfloat16 for what it can make of a loop of one step."""
    rng = np.random.default_rng(0)
    hidden_ND, table_VD = (rng.normal(size=(n, 64)).astype("f4") for n in (1, 33))
    one_1 = np.ones(1, np.int32)
    positions = Positions(one_1, np.ones(1, np.float32), one_1 - 1, np.int32(1))
    others = positions, np.ones(33, bool), None

    for score_dtype, most in (("float32", 2**-8), ("bfloat16", 0.5)):

        @jax.jit
        def step(*arrays, score_dtype=score_dtype):
            # Its compiler knows that it is one position.
            fn = lambda *arrays: bfloat16_sum(  # noqa: E731
                *arrays, *others, score_dtype=score_dtype
            )
            return jax.value_and_grad(fn, (0, 1))(*arrays)

        total, gradients = step(hidden_ND, table_VD)
        expected, *_ = oracle(hidden_ND, table_VD, *others)
        assert total == pytest.approx(expected, abs=most)
        assert all(np.isfinite(grad).all() for grad in gradients)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("most_kept", [0, 1])
def test_the_bound_on_a_loss_in_bfloat16_is_reached_and_not_passed(
    most_kept, monkeypatch
):
    """Terms of 1 + 2^-8 and a little more all become 1 + 2^-7: log of their ratio."""
    sizes = softmax._CPU._replace(most_kept=most_kept)
    monkeypatch.setattr(softmax, "_CPU", sizes)
    monkeypatch.setattr(softmax, "_GPU", sizes)
    rival = np.float32(np.log(1 + 2**-8) + 1e-5)
    table_VD = np.array([[0.0], *[[rival]] * 999], np.float32)
    zero_1 = np.zeros(1, np.int32)
    positions = Positions(zero_1, np.ones(1, np.float32), zero_1, np.int32(1))
    arrays = (np.ones((1, 1), np.float32), table_VD, positions, np.ones(1000, bool))
    error = bfloat16_sum(*arrays, None) - np.log(1 + 999 * np.exp(float(rival)))
    assert 0.99 * 2**-8 < error < 2**-8


def sure_targets():
    """A problem in which only the target itself competes, missing or not."""
    hidden_ND, table_VD, positions, *_ = problem(excluded=False)
    yield hidden_ND, table_VD, positions, np.zeros(len(table_VD), bool), None
    target_N = np.where(positions.weight_N > 0, 3, 0).astype(np.int32)
    positions = positions._replace(target_N=target_N)
    yield hidden_ND, table_VD, positions, np.arange(len(table_VD)) == 3, None


@pytest.mark.usefixtures("tiling", "device")
def test_a_sure_target_has_no_gradient_in_bfloat16_either():
    """What is taken off for it is what was added for it, rounded alike."""
    for arrays in sure_targets():
        total, gradients = bfloat16_fn(*arrays)
        assert abs(total) < 2**-8 * arrays[2].weight_N.sum()
        for grad in gradients:
            np.testing.assert_allclose(grad, 0, atol=1e-5)


@pytest.mark.usefixtures("tiling")
def test_a_sure_target_has_no_gradient_where_matmuls_round_to_tf32(monkeypatch):
    """As on a GPU by default. Adam would make whole steps of what is left over."""

    def dot(a, b):
        a, b = (jax.lax.reduce_precision(x, 8, 10) for x in (a, b))
        return jnp.dot(a, b, preferred_element_type=jnp.float32)

    monkeypatch.setattr(backend, "is_cpu", lambda: False)
    monkeypatch.setattr(score_tiles, "_dot", dot)
    step = jax.value_and_grad(lambda *x: softmax.loss_sum(*x), (0, 1))
    for arrays in sure_targets():
        _, gradients = jax.jit(step)(*arrays)
        for grad in gradients:
            np.testing.assert_allclose(grad, 0, atol=1e-5)


@pytest.mark.usefixtures("tiling")
def test_scores_far_apart_are_finite_in_bfloat16():
    arrays = problem(excluded=True, scale=300.0)
    total, gradients = bfloat16_fn(*arrays)
    # Scores of about a thousand, off by 2^-15 of the size of their terms.
    assert total == pytest.approx(oracle(*arrays)[0], rel=1e-3)
    assert all(np.isfinite(grad).all() for grad in gradients)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_are_nearly_float32_in_either_dtype(dtype):
    rng = np.random.default_rng(0)
    hidden_ND = rng.normal(size=(40, 64)).astype(np.float32)
    table_VD = rng.normal(size=(50, 64)).astype(np.float32)
    hidden = score_tiles.hidden_forms(jnp.asarray(hidden_ND), dtype, "float32")
    is_allowed_V = jnp.ones(50, bool)
    table = score_tiles.Table(
        jnp.asarray(table_VD), is_allowed_V, None, 50, dtype, "float32"
    )
    zeros = (jnp.zeros(40, kind) for kind in ("i4", "f4", "i4"))
    positions = Positions(*zeros, jnp.int32(40))

    @jax.jit
    def scores(hidden, positions):
        chunk = score_tiles.chunk_of(hidden, table, positions, 0, 40)
        return score_tiles.scores_of(chunk, score_tiles.tile_of(table, 0)).score_nC

    expected = hidden_ND.astype(float) @ table_VD.T.astype(float)
    size = abs(hidden_ND) @ abs(table_VD).T
    # Halves of 8 bits each lose 2^-16 of a factor; sums of float32 less.
    assert (abs(scores(hidden, positions) - expected) <= 2**-15 * size).all()


def test_rounding_is_to_the_nearest():
    """To 8 bits: from 1 on in steps of 2^-7, halves up; no number is none."""
    x = [1.0, 1 + 2**-8 - 2**-20, 1 + 2**-8, 1 + 2**-7, 0.0, 3e-30, jnp.inf, jnp.nan]
    expected = [1.0, 1.0, 1 + 2**-7, 1 + 2**-7, 0.0, 3e-30, jnp.inf, jnp.nan]
    drawn = score_tiles.rounded(jnp.float32(x), "bfloat16")
    assert drawn.dtype == jnp.bfloat16
    np.testing.assert_allclose(drawn.astype(jnp.float32), expected, rtol=2**-8)
    np.testing.assert_array_equal(drawn[:4].astype(jnp.float32), expected[:4])


@pytest.mark.usefixtures("tiling")
def test_scores_far_apart_neither_overflow_nor_vanish():
    arrays = problem(excluded=True, scale=300.0)
    total, gradients = jax.jit(
        jax.value_and_grad(lambda *x: softmax.loss_sum(*x), (0, 1))
    )(*arrays)
    expected, *expected_gradients = oracle(*arrays)
    assert total == pytest.approx(expected, rel=1e-5)
    for mine, other in zip(gradients, expected_gradients, strict=True):
        # A share of e^-1000 turns on roundings of scores of about 1000.
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=0.3)


@pytest.mark.usefixtures("tiling")
@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize("lowest", [normaliser._LOWEST, np.inf])
def test_every_shift_gives_the_loss_of_the_loop(lowest, excluded, monkeypatch):
    """The target's own score, one nearer to the bound, and the highest.

    A row that no state points along puts the bound that far above all scores.
    """
    monkeypatch.setattr(normaliser, "_LOWEST", lowest)
    step = jax.jit(jax.value_and_grad(lambda *x: softmax.loss_sum(*x), (0, 1)))
    hidden_ND, table_VD, *rest = problem(excluded=excluded)
    hidden_ND[:, 0], table_VD[6] = 1.0, 0.0
    hidden_ND[:, 2] = 0.0
    for longest in (1.0, 35.0, 95.0):
        table_VD[6, 2] = longest
        arrays = (hidden_ND, table_VD, *rest)
        total, gradients = step(*arrays)
        # A large shift is taken off and put back, with a rounding of its size.
        tolerance = {"rtol": 1e-5, "atol": max(2e-6, 1e-6 * longest)}
        for mine, other in zip((total, *gradients), oracle(*arrays), strict=True):
            np.testing.assert_allclose(mine, other, **tolerance)


def test_float32_at_the_size_of_a_large_catalogue_is_within_its_bound():
    """Beauty's table, against float64: see `softmax.loss_sum`."""
    rng = np.random.default_rng(0)
    num_rows, width, num = 54_543, 64, 100
    hidden_ND, table_VD = (rng.normal(size=(n, width)) for n in (num, num_rows))
    hidden_ND, table_VD = (x.astype("f4") for x in (hidden_ND, 0.3 * table_VD))
    target_N = rng.integers(1, num_rows, num).astype(np.int32)
    positions = Positions(
        target_N, np.ones(num, np.float32), np.arange(num, dtype="i4"), np.int32(num)
    )
    allowed_V = np.arange(num_rows) > 0
    total, gradients = jax.jit(jax.value_and_grad(softmax.loss_sum, (0, 1)))(
        hidden_ND, table_VD, positions, allowed_V, None
    )
    score_NV = hidden_ND.astype(float) @ table_VD.T.astype(float)
    score_NV[:, ~allowed_V] = -np.inf
    highest_N1 = score_NV.max(axis=-1, keepdims=True)
    share_NV = np.exp(score_NV - highest_N1)
    sum_N1 = share_NV.sum(axis=-1, keepdims=True)
    n = np.arange(num)
    loss_N = (np.log(sum_N1) + highest_N1)[:, 0] - score_NV[n, target_N]
    assert abs(total - loss_N.sum()) <= 2**-19 * num
    share_NV /= sum_N1
    share_NV[n, target_N] -= 1
    for mine, other, size in (
        (gradients[0], share_NV @ table_VD, abs(share_NV) @ abs(table_VD)),
        (gradients[1], share_NV.T @ hidden_ND, abs(share_NV).T @ abs(hidden_ND)),
    ):
        assert (abs(mine - other) <= 2**-17 * size).all()


@pytest.mark.parametrize(
    ("above", "shift"), [(50, 0), (90, 20), (114, 44), (116, "highest")]
)
def test_the_highest_score_is_sought_only_where_the_targets_could_vanish(above, shift):
    own_N, highest_N = jnp.zeros(3), jnp.arange(3.0)
    bound_N = jnp.float32([0, above, 0])
    shift_N = normaliser.shift(own_N, bound_N, lambda: highest_N)
    expected_N = highest_N if shift == "highest" else [0, shift, 0]
    np.testing.assert_array_equal(shift_N, expected_N)


def test_a_sure_target_costs_nothing(tiling):
    """Its score in the sum is the one that is taken off, to the last bit.

    Of several tiles it is lowered by another sum of the same products: what that is off
    by goes through an exponential and a logarithm.
    """
    hidden_ND, table_VD, positions, *_ = problem(excluded=False)
    hidden_ND, table_VD = 15 * hidden_ND, 15 * table_VD
    # Only the target itself competes.
    arrays = (hidden_ND, table_VD, positions, np.zeros(len(table_VD), bool), None)
    loss = jax.jit(lambda *arrays: softmax.loss_sum(*arrays))(*arrays)
    tolerance = 0 if "whole" in tiling else 2**-23 * positions.weight_N.sum()
    assert abs(loss) <= tolerance


def test_no_score_is_above_its_bound():
    hidden_ND, table_VD, *_ = problem(excluded=False, scale=5.0)
    score_NV = hidden_ND @ table_VD.T
    bound_N = normaliser.bound(hidden_ND, table_VD)
    longest = np.argmax(np.linalg.norm(table_VD, axis=-1))
    assert (score_NV.max(axis=-1) <= bound_N * (1 + 1e-6)).all()
    # And it is reached, by a state that points where the longest row does.
    (reached,) = normaliser.bound(table_VD[longest : longest + 1], table_VD)
    assert float(reached) == pytest.approx(float(np.square(table_VD[longest]).sum()))


@pytest.mark.usefixtures("tiling")
def test_gradients_carry_the_cotangent():
    arrays = problem(excluded=False)
    fn = functools.partial(jax.grad, argnums=(0, 1))
    once = fn(softmax.loss_sum)(*arrays)
    thrice = fn(lambda *arrays: 3 * softmax.loss_sum(*arrays))(*arrays)
    for one, three in zip(once, thrice, strict=True):
        np.testing.assert_allclose(3 * one, three, rtol=1e-6)


@pytest.mark.parametrize("num_rows", [2, 3417, 10_922, 10_923, 54_543, 10**6])
@pytest.mark.parametrize("num_positions", [1, 8, 17, 1024, 25_600])
def test_tile_shape_is_bounded_by_scores_and_by_positions(num_rows, num_positions):
    size, tile = softmax.tile_shape(num_rows, num_positions)
    assert size % 16 == tile % 16 == 0
    assert min(192, num_positions) <= size < num_positions + 16
    if size > 192:
        assert tile >= num_rows and size * tile <= 2**21
    else:
        assert tile <= 2**14
    # The tiles are alike but for rounding: few rows are computed for nothing.
    num_tiles = -(-num_rows // tile)
    assert num_tiles * tile - num_rows < 16 * num_tiles


@pytest.mark.usefixtures("tiling")
def test_the_loss_alone_computes_no_gradients():
    arrays = problem(excluded=False)

    def num_matmuls(fn):
        return jax.jit(fn).lower(*arrays).compile().as_text().count(" dot(")

    alone = num_matmuls(lambda *x: softmax.loss_sum(*x))
    both = num_matmuls(lambda *x: jax.value_and_grad(softmax.loss_sum, (0, 1))(*x))
    assert 0 < 2 * alone < both


@pytest.mark.usefixtures("tiling")
def test_problems_side_by_side_are_those_one_by_one():
    """Under vmap, with other numbers of positions."""
    problems = [problem(excluded=True, count=count) for count in (67, 3)]
    together = jax.tree.map(lambda *x: np.stack(x), *problems)
    step = jax.value_and_grad(lambda *x: softmax.loss_sum(*x), (0, 1))
    totals, gradients = jax.jit(jax.vmap(step))(*together)
    for i, arrays in enumerate(problems):
        results = (x[i] for x in (totals, *gradients))
        for mine, other in zip(results, oracle(*arrays), strict=True):
            np.testing.assert_allclose(mine, other, **TOLERANCE)


@pytest.mark.parametrize("num_rows", [3417, 60_000, 163_840, 163_841])
@pytest.mark.parametrize(
    "dtype, score_dtype",
    [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")],
)
def test_memory_is_that_of_some_positions(num_rows, dtype, score_dtype):
    """Whose exponentials are kept, of a table of up to ten tiles; else of two tiles.

    Beside them are the table and the hidden states in other forms, of which bfloat16
    has more, and their gradients.
    """
    width, num_positions = 64, 25_600
    arrays = problem(excluded=True, num_rows=num_rows)
    positions, allowed_V, excluded_BX = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays[2:]
    )
    positions = Positions(
        *(jax.ShapeDtypeStruct((num_positions,), x.dtype) for x in positions[:3]),
        positions.count,
    )
    hidden = jax.ShapeDtypeStruct((num_positions, width), np.float32)
    table = jax.ShapeDtypeStruct((num_rows, width), np.float32)
    loss_sum = functools.partial(softmax.loss_sum, dtype=dtype, score_dtype=score_dtype)
    step = jax.jit(jax.value_and_grad(loss_sum, (0, 1)))
    compiled = step.lower(hidden, table, positions, allowed_V, excluded_BX).compile()
    temp_bytes = compiled.memory_analysis().temp_size_in_bytes
    size, tile = softmax.tile_shape(num_rows, num_positions)
    kept, some_rows = (num_rows, num_rows) if num_rows <= 163_840 else (0, tile)
    hidden_forms = 10 if dtype != score_dtype else 4 if dtype == "float32" else 5
    floats = size * (kept + 2 * tile)
    floats += width * (4 * some_rows + hidden_forms * num_positions)
    assert 0 < temp_bytes < 4 * floats
