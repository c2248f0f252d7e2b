"""The kernel of benchmarks.gpu_suite, by Pallas' interpreter of kernels for a GPU.

It runs the warpgroups as threads, finds the barriers that nobody waits for, and what
two of them read and write without one.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu

from benchmarks import measure
from benchmarks.gpu_suite import fused, fused_softmax, oracles, score_kernel
from jaxrec import losses, softmax

BFLOAT16 = 2.0**-8  # it rounds by so much of a number at the most


@pytest.fixture
def interpret():
    if not hasattr(mosaic_gpu, "InterpretGPUParams"):
        pytest.skip("jax 0.10 cannot interpret such kernels")
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    yield mosaic_gpu.InterpretGPUParams(detect_races=True)
    assert not interpret_pallas_call.get_races().races_found


@pytest.mark.parametrize(
    "sizes",
    [(5, 3, 64, 1), (200, 1_500, 64, 2), (130, 2_100, 128, 2), (20, 400, 192, 2)],
)
def test_sums(sizes, interpret, monkeypatch):
    # More tiles to a block than are in the ring.
    monkeypatch.setattr(score_kernel, "MOST_SPLITS", 2)
    row = fused.sums_row(fused.Sums(*sizes), interpret)
    # Terms are rounded; 1e-5 is for sums in float32.
    assert row["error"] <= BFLOAT16 + 1e-5
    assert "failed" not in row


@pytest.mark.parametrize("wrong", [0, jnp.nan, 1.02])
@pytest.mark.parametrize("name", ["sums", "weighted_sums"])
def test_wrong_sums_fail(name, wrong, interpret, monkeypatch):
    right = getattr(score_kernel, name)

    def worse(*sides, **options):
        return jax.tree.map(lambda x: x * wrong, right(*sides, **options))

    monkeypatch.setattr(score_kernel, name, worse)
    assert "failed" in fused.sums_row(fused.Sums(5, 3, 64, 1), interpret)


@pytest.mark.parametrize("sizes", [(5, 30, 64, 1), (20, 1_500, 64, 1)])
def test_sums_that_leave_nothing_out_fail(sizes, interpret, monkeypatch):
    kernel = score_kernel._call

    def keyless(rows, columns, *arguments, **options):
        columns = columns._replace(key_N=columns.key_N - 10)
        return kernel(rows, columns, *arguments, **options)

    monkeypatch.setattr(score_kernel, "_call", keyless)
    assert "failed" in fused.sums_row(fused.Sums(*sizes), interpret)


@pytest.mark.parametrize(
    ("sizes", "about"),
    [
        ((128 * 132, 128 * 8, 64), (8, 1)),  # all are at work: no split
        ((128, 128 * 8, 64), (1, 8)),
        ((128, 64 * 8, 384), (1, 8)),
    ],
)
def test_splits(sizes, about):
    how = score_kernel.cut(*sizes)
    assert (how.tiles, how.splits) == about


@pytest.mark.parametrize("sizes", [(1, 3_417, 128), (800, 54_543, 384), (9, 1, 64)])
def test_every_column_is_in_one_tile(sizes):
    how = score_kernel.cut(*sizes)
    assert 0 <= how.num_columns - sizes[1] < how.splits * how.tile


@pytest.mark.parametrize("num_factors", [320, 512])
def test_what_does_not_fit_is_refused(num_factors):
    wide_NK = jnp.zeros((8, num_factors), jnp.bfloat16)
    side = score_kernel.Side(wide_NK, jnp.zeros((8,)), jnp.zeros((8,), jnp.int32))
    width = num_factors if num_factors == 320 else 256
    with pytest.raises(AssertionError, match=r"width 320|512 do not fit"):
        score_kernel.sums(side, side, width=width)


def problem(rng, num_positions: int, num_rows: int, width: int):
    """States, table, positions (the last without a weight) and what competes."""
    target_N = jnp.asarray(rng.integers(1, num_rows, num_positions), jnp.int32)
    weight_N = rng.uniform(0.5, 2, num_positions)
    weight_N[-3:] = 0
    return (
        jnp.asarray(rng.normal(size=(num_positions, width)), jnp.float32),
        jnp.asarray(rng.normal(size=(num_rows, width)), jnp.float32),
        softmax.Positions(
            target_N,
            jnp.asarray(weight_N, jnp.float32),
            jnp.zeros((num_positions,), jnp.int32),
            jnp.int32(num_positions - 3),
        ),
        # Not PAD, and not one of the targets, which competes nevertheless.
        (jnp.arange(num_rows) > 0).at[target_N[4]].set(False),
    )


def expected(hidden_ND, table_VD, positions, allowed_V):
    """Loss and gradients in float64."""
    competes_NV = np.tile(allowed_V, (len(hidden_ND), 1))
    competes_NV[np.arange(len(hidden_ND)), positions.target_N] = True
    arrays = hidden_ND, table_VD, positions.target_N, positions.weight_N
    kinds = np.float64, np.float64, np.int64, np.float64
    arguments = map(np.asarray, arrays, kinds)
    return oracles.softmax(*arguments, is_candidate_NV=competes_NV)


def with_gradients(arguments, **options):
    def total(hidden_ND, table_VD, *rest):
        return fused_softmax.loss_sum(hidden_ND, table_VD, *rest, None, **options)

    return jax.jit(jax.value_and_grad(total, (0, 1)))(*arguments)


@pytest.mark.parametrize(
    ("score_dtype", "most"), [("float32", 2.0**-8), ("bfloat16", 2.0**-6)]
)
def test_loss_and_gradients(score_dtype, most, interpret):
    """A width that is no multiple of 64, nor the positions and rows of 8."""
    arguments = problem(np.random.default_rng(0), 77, 301, 24)
    loss, gradients = with_gradients(
        arguments, score_dtype=score_dtype, interpret=interpret
    )
    true_loss, *true_gradients = expected(*arguments)
    assert float(loss) == pytest.approx(true_loss, rel=most / 4)
    for ours, theirs in zip(gradients, true_gradients, strict=True):
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert error < most
    assert not np.any(gradients[0][-3:])  # of positions without a weight


def test_a_target_competes_even_if_its_row_may_not(interpret):
    """Of equal scores: the logarithm of how many there are."""
    table_VD = jnp.arange(15, dtype=jnp.float32).reshape(5, 3)  # exact in bfloat16
    positions = softmax.Positions(
        jnp.int32([2, 3]), jnp.ones((2,)), jnp.zeros((2,), jnp.int32), jnp.int32(2)
    )
    allowed_V = jnp.asarray([False, True, False, True, True])  # 2 targets row 2
    arguments = jnp.zeros((2, 3)), table_VD, positions, allowed_V
    loss, (hidden_grad_ND, _) = with_gradients(arguments, interpret=interpret)
    assert float(loss) == pytest.approx(np.log(4) + np.log(3), abs=1e-6)
    means = (table_VD[1:].mean(0), table_VD[jnp.asarray([1, 3, 4])].mean(0))
    true_ND = np.stack(means) - table_VD[positions.target_N]
    np.testing.assert_allclose(hidden_grad_ND, true_ND, atol=1e-5)


def test_a_target_far_below_the_others(interpret):
    """200 nats: beside the highest score it is nothing, and its loss is a number."""
    hidden_ND, table_VD, positions, allowed_V = problem(
        np.random.default_rng(0), 20, 30, 8
    )
    table_VD = table_VD.at[positions.target_N[0]].set(-25 * hidden_ND[0])
    hidden_ND = hidden_ND.at[0].multiply(200 / (25 * jnp.sum(hidden_ND[0] ** 2)))
    arguments = hidden_ND, table_VD, positions, allowed_V
    loss, gradients = with_gradients(arguments, interpret=interpret)
    true_loss, *true_gradients = expected(*arguments)
    assert true_loss > 200
    assert float(loss) == pytest.approx(true_loss, rel=BFLOAT16)
    for ours, theirs in zip(gradients, true_gradients, strict=True):
        assert np.linalg.norm(ours - theirs) < BFLOAT16 * np.linalg.norm(theirs)


@pytest.mark.parametrize(
    ("scale", "score_dtype"),
    [(0.15, "float32"), (0.3, "float32"), (0.15, "bfloat16")],
)
def test_fitted_targets(scale, score_dtype, interpret, monkeypatch):
    """What is left of a probability of nearly one is not a rounding of one.

    Nor of the target's score, which a device sums in another order than the kernel.
    """
    score = fused_softmax._score
    monkeypatch.setattr(fused_softmax, "_score", lambda *x: score(*x) * (1 + 3e-6))
    hidden_ND, table_VD, positions, allowed_V = problem(
        np.random.default_rng(0), 40, 60, 64
    )
    # In bfloat16, so that rounding them is not what is seen.
    table_VD = table_VD.astype(jnp.bfloat16).astype(jnp.float32)
    hidden_ND = scale * table_VD[positions.target_N]
    hidden_ND = hidden_ND.astype(jnp.bfloat16).astype(jnp.float32)
    arguments = hidden_ND, table_VD, positions, allowed_V.at[:].set(True)
    _, gradients = with_gradients(
        arguments, score_dtype=score_dtype, interpret=interpret
    )
    true_loss, *true_gradients = expected(*arguments)
    assert true_loss / 40 < 0.2
    for ours, theirs in zip(gradients, true_gradients, strict=True):
        assert np.linalg.norm(ours - theirs) < BFLOAT16 * np.linalg.norm(theirs)


@pytest.mark.parametrize(
    ("scale", "score_dtype"), [(2e3, "bfloat16"), (2e3, "float32"), (5e4, "float32")]
)
def test_huge_scores(scale, score_dtype, interpret):
    """Numbers, as the shipped loss has them, where float32 has any digits left."""
    hidden_ND, *rest = problem(np.random.default_rng(0), 40, 60, 24)
    arguments = scale * hidden_ND, *rest
    loss, gradients = with_gradients(
        arguments, score_dtype=score_dtype, interpret=interpret
    )
    true_loss, *true_gradients = expected(*arguments)
    assert float(loss) == pytest.approx(true_loss, rel=2.0**-7)
    for ours, theirs in zip(gradients, true_gradients, strict=True):
        assert np.all(np.isfinite(ours))
        if score_dtype == "float32":
            error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
            assert error < 2.0**-6


def test_scores_that_rounding_raises(interpret):
    """By 129 nats, above what no score of the unrounded can exceed."""
    up = 1 + 2**-8 + 2**-12  # 1 + 2^-7 in bfloat16
    positions = softmax.Positions(
        jnp.int32([1]), jnp.ones((1,)), jnp.zeros((1,), jnp.int32), jnp.int32(1)
    )
    hidden_ND, table_VD = jnp.full((1, 64), 256 * up), jnp.ones((3, 64))
    table_VD = table_VD.at[2].set(up)
    arguments = hidden_ND, table_VD, positions, jnp.arange(3) > 0
    loss, gradients = with_gradients(
        arguments, score_dtype="bfloat16", interpret=interpret
    )
    assert float(loss) == pytest.approx(64 * 256 * (1 + 2**-7) * 2**-7, rel=1e-5)
    assert all(np.all(np.isfinite(x)) for x in gradients)


def test_no_weights(interpret):
    hidden_ND, table_VD, positions, allowed_V = problem(
        np.random.default_rng(0), 20, 30, 8
    )
    positions = positions._replace(weight_N=jnp.zeros((20,)), count=jnp.int32(0))
    arguments = hidden_ND, table_VD, positions, allowed_V
    loss, gradients = with_gradients(arguments, interpret=interpret)
    assert loss == 0
    assert all(np.all(np.asarray(x) == 0) for x in gradients)


def test_a_loss_is_traced_with_it(interpret, monkeypatch):
    """In its setting `losses.ce` gives what the shipped one does."""
    hidden_ND, table_VD, positions, allowed_V = problem(
        np.random.default_rng(0), 20, 30, 8
    )
    rest = table_VD, positions.target_N[None], positions.weight_N[None]
    arguments = hidden_ND[None], *rest, losses.Catalogue(allowed_V)
    interpreted = partial(fused_softmax.loss_sum, interpret=interpret)
    monkeypatch.setattr(fused_softmax, "loss_sum", interpreted)
    with fused.THREE_PRODUCTS.setting():
        found, weight = losses.ce(*arguments, dtype="bfloat16")
    theirs, _ = losses.ce(*arguments)
    assert found != theirs  # another program
    assert float(found) == pytest.approx(float(theirs), rel=BFLOAT16 / 4)
    assert float(weight) == pytest.approx(float(positions.weight_N.sum()))


def test_excluded_items_are_refused():
    arguments = problem(np.random.default_rng(0), 20, 30, 8)
    with pytest.raises(AssertionError, match="excluded"):
        fused_softmax.loss_sum(*arguments, jnp.zeros((1, 2), jnp.int32))


# What the suite makes of it.


@pytest.mark.parametrize("reason", [None, "needs another device"])
def test_a_kernel_that_raises_fails_where_it_can_run(reason, monkeypatch):
    monkeypatch.setattr(fused, "why_not", lambda: reason)

    def make(way):
        if way in (fused.THREE_PRODUCTS, fused.Way("bfloat16")):
            raise ValueError("wrong")
        return measure.Variant({}, lambda: jnp.zeros(()))

    rows = fused.in_turn(make, {"loss": "tiny"})
    found = {row["candidate"]: row for row in rows}
    assert {*found} == {*fused.WAYS}
    assert found["shipped, dtype=bfloat16"]["not_run"] == "ValueError: wrong"
    three, one = found["fused, three products"], found["fused, one product"]
    if reason is None:
        assert three["failed"] == "ValueError: wrong" and "ms" in one
    else:
        assert three["not_run"] == one["not_run"] == reason
    assert not any("failed" in row for row in rows if row is not three)


def test_errors_of_a_loss():
    target_N = jnp.int32([1])
    true = 2.0, (jnp.ones((1, 2)), jnp.asarray([[3.0], [4.0]]))
    ours = 1.0, (jnp.ones((1, 2)), jnp.asarray([[0.0], [4.0]]))
    errors = fused.loss_errors(ours, true, target_N)
    assert errors == (0.5, 0.0, pytest.approx(3 / 5), 1.0)
