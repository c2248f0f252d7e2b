"""What each loss draws, against sets; and what it costs, against sums over lists."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxrec import batches, losses, negatives, objectives, steps
from jaxrec.errors import InputError
from jaxrec.hands import Hands
from jaxrec.objectives import Items

NUM_ITEMS = 20
NOT_IN_TRAINING = {3, 8}
ALL = set(range(1, NUM_ITEMS + 1))
POOL = ALL - NOT_IN_TRAINING  # A = 18
# Windows of L + 1 = 6 items: full, with repeats, short, a filler; two are the same.
SEEN_BX = np.array(
    [
        [1, 2, 4, 5, 6, 7],
        [9, 9, 10, 9, 10, 11],
        [12, 13, 0, 0, 0, 0],
        [20, 19, 18, 17, 1, 0],
        [0, 0, 0, 0, 0, 0],
        [12, 13, 0, 0, 0, 0],
    ],
    np.int32,
)
TARGET_BL = SEEN_BX[:, 1:]
WEIGHT_BL = (TARGET_BL > 0).astype(np.float32)
SEEN = [set(row) - {0} for row in SEEN_BX.tolist()]
B, L = TARGET_BL.shape
# A few dozen float32 operations on values of order one.
RTOL = 1e-5


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def items_of(num_table_rows=NUM_ITEMS + 1) -> Items:
    row_V = np.arange(num_table_rows)
    pool = negatives.make_pool(np.isin(row_V, list(POOL)))
    return Items(jnp.asarray(np.isin(row_V, list(ALL))), pool)


@functools.cache
def draws(make, **options):
    """The candidates of 40 steps, with a leading axis of steps."""
    objective, items = make(**options), items_of()
    keys = jax.random.split(jax.random.key(0), 40)
    draw = jax.jit(
        jax.vmap(lambda key: objective.candidates(key, TARGET_BL, SEEN_BX, items))
    )
    return jax.device_get(draw(keys))


def loss_of(objective, candidates, num_table_rows=NUM_ITEMS + 1, dtype=np.float32):
    """The loss sum and score_BLV in float64, of random states and a random table.

    dtype: that these are rounded to, before they are float32.
    """
    rng = np.random.default_rng(1)
    hidden_BLD = rng.normal(size=(B, L, 4)).astype(dtype).astype(np.float32)
    table_VD = rng.normal(size=(num_table_rows, 4)).astype(dtype).astype(np.float32)
    loss_sum, weight = jax.jit(objective.loss)(
        hidden_BLD, table_VD, TARGET_BL, WEIGHT_BL, candidates
    )
    assert float(weight) == WEIGHT_BL.sum()
    return float(loss_sum), hidden_BLD.astype(float) @ table_VD.T.astype(float)


def softmax_loss(score_BLV, competitors):
    """sum of log(e^target + sum of e^competitor) - target, over real positions."""
    total = 0.0
    for b, length in np.argwhere(TARGET_BL > 0):
        score_V, target = score_BLV[b, length], TARGET_BL[b, length]
        others = score_V[sorted(set(competitors[b]) - {target})]
        total += (
            np.log(np.exp(score_V[target]) + np.exp(others).sum()) - score_V[target]
        )
    return total


@pytest.mark.parametrize("num_negatives", [5, 9])
def test_sampled_ce_draws_distinct_unseen_items_for_each_sequence(num_negatives):
    drawn = draws(objectives.sampled_ce, num_negatives=num_negatives)
    assert isinstance(drawn, losses.Shared)
    assert drawn.negative_GS.shape == (40, B, num_negatives)
    for of_step in drawn.negative_GS.tolist():
        for negative_S, seen in zip(of_step, SEEN, strict=True):
            assert len(set(negative_S)) == num_negatives
            assert set(negative_S) <= POOL - seen
    for b, seen in enumerate(SEEN):
        # Of 200 draws or more: every candidate comes up.
        assert set(drawn.negative_GS[:, b].ravel()) == POOL - seen
    # Independent draws, of the two equal sequences and of two steps, rarely agree.
    assert (drawn.negative_GS[:, 2] != drawn.negative_GS[:, 5]).mean() > 0.8
    assert (drawn.negative_GS[0] != drawn.negative_GS[1]).mean() > 0.7


@pytest.mark.parametrize("num_negatives", [10, 12])
def test_sampled_ce_above_half_the_pool_leaves_the_others_out(num_negatives):
    """12 is all that the first sequence has not seen of the pool of 18."""
    objective = objectives.sampled_ce(num_negatives=num_negatives)
    drawn = draws(objectives.sampled_ce, num_negatives=num_negatives)
    assert isinstance(drawn, losses.Catalogue)
    left = []
    for allowed_V, excluded_BX in zip(*drawn, strict=True):
        allowed = set(np.flatnonzero(allowed_V))
        left.append([allowed - set(excluded_X) for excluded_X in excluded_BX.tolist()])
        for competitors, seen in zip(left[-1], SEEN, strict=True):
            assert len(competitors) == num_negatives
            assert competitors <= POOL - seen
    assert left[0] != left[1]
    assert any(of_step[2] != of_step[5] for of_step in left)
    assert set().union(*(of_step[1] for of_step in left)) == POOL - SEEN[1]
    for k in (0, 1):
        candidates = jax.tree.map(lambda x, k=k: x[k], drawn)
        loss_sum, score_BLV = loss_of(objective, candidates)
        assert loss_sum == pytest.approx(softmax_loss(score_BLV, left[k]), rel=RTOL)


def test_sampled_ce_shares_a_set_and_drops_what_a_sequence_has_seen():
    """Of the pool of 18, 12 for all six sequences, or for three and three."""
    for share, num_sets in ((6, 1), (3, 2), (100, 1)):
        options = {"num_negatives": 12, "share": share}
        drawn = draws(objectives.sampled_ce, **options)
        assert isinstance(drawn, losses.Shared)
        assert drawn.negative_GS.shape == (40, num_sets, 12)
        competitors = []
        for negative_GS, dropped_BX in zip(*drawn[:2], strict=True):
            for b, seen in enumerate(SEEN):
                negative_S = negative_GS[b * num_sets // B].tolist()
                assert len(set(negative_S)) == 12 and set(negative_S) <= POOL
                dropped = {*dropped_BX[b].tolist()} - {12}
                left = {v for s, v in enumerate(negative_S) if s not in dropped}
                assert left == set(negative_S) - seen
                competitors.append(left)
        assert set().union(*competitors[1::B]) == POOL - SEEN[1]
        candidates = jax.tree.map(lambda x: x[0], drawn)
        loss_sum, score_BLV = loss_of(objectives.sampled_ce(**options), candidates)
        expected = softmax_loss(score_BLV, competitors[:B])
        assert loss_sum == pytest.approx(expected, rel=RTOL)


def test_sampled_ce_deals_a_set_to_each_sequence():
    options = {"num_negatives": 5, "draw": "dealt"}
    drawn = draws(objectives.sampled_ce, **options)
    assert isinstance(drawn, Hands)
    sets = []
    for k in range(40):
        of_step = {}
        for i, b in enumerate(drawn.sequence_B[k].tolist()):
            seen_X = drawn.dropped_BX[k, i].tolist()
            places = range(drawn.start_B[k, i], drawn.end_B[k, i])
            of_step[b] = {drawn.item_A[k, p % 18].item() for p in places} - {
                drawn.item_A[k, p % 18].item() for p in seen_X if p >= 0
            }
            assert len(of_step[b]) == 5 and of_step[b] <= POOL - SEEN[b]
        sets.append(of_step)
    assert set().union(*(of_step[1] for of_step in sets)) == POOL - SEEN[1]
    candidates = jax.tree.map(lambda x: x[0], drawn)
    loss_sum, score_BLV = loss_of(objectives.sampled_ce(**options), candidates)
    assert loss_sum == pytest.approx(softmax_loss(score_BLV, sets[0]), rel=RTOL)


def test_sampled_ce_deals_no_sets_above_half_the_pool():
    """They are the catalogue less the others, drawn apart."""
    apart = draws(objectives.sampled_ce, num_negatives=10)
    dealt = draws(objectives.sampled_ce, num_negatives=10, draw="dealt")
    jax.tree.map(np.testing.assert_array_equal, dealt, apart)


def test_sampled_ce_shares_evenly():
    with pytest.raises(InputError, match=r"must divide train.batch_size, 6: got 4"):
        draws(objectives.sampled_ce, num_negatives=2, share=4)


def test_sampled_ce_costs_the_softmax_over_its_negatives():
    drawn = draws(objectives.sampled_ce, num_negatives=5)
    candidates = jax.tree.map(lambda x: x[0], drawn)
    loss_sum, score_BLV = loss_of(objectives.sampled_ce(num_negatives=5), candidates)
    expected = softmax_loss(score_BLV, candidates.negative_GS.tolist())
    assert loss_sum == pytest.approx(expected, rel=RTOL)


@pytest.mark.parametrize("make", [objectives.bce, objectives.gbce])
def test_bce_draws_unseen_items_for_each_position(make):
    # With replacement, one candidate is enough.
    assert make(num_negatives=4).num_negatives == 1
    drawn = draws(make, num_negatives=4)
    separate = drawn if make is objectives.bce else drawn[0]
    negative_KBLS = separate.negative_BLS
    assert negative_KBLS.shape == (40, B, L, 4)
    for b, seen in enumerate(SEEN):
        assert set(negative_KBLS[:, b].ravel()) == POOL - seen
    for first, second in (
        (negative_KBLS[0], negative_KBLS[1]),
        (negative_KBLS[:, 2], negative_KBLS[:, 5]),
        (negative_KBLS[:, :, 0], negative_KBLS[:, :, 1]),
    ):
        assert (first != second).mean() > 0.8


@pytest.mark.parametrize("calibration", [0.0, 0.75, 1.0])
def test_gbce_is_calibrated_to_the_pool(calibration):
    objective = objectives.gbce(num_negatives=4, calibration=calibration)
    drawn = draws(objectives.gbce, num_negatives=4)
    candidates = jax.tree.map(lambda x: x[0], drawn)
    loss_sum, score_BLV = loss_of(objective, candidates)
    beta = losses.gbce_beta(4, len(POOL) - 1, calibration)
    if calibration == 1.0:
        assert beta == pytest.approx(4 / 17)  # the sampling rate
    negative_BLS = candidates[0].negative_BLS
    expected = 0.0
    for b, length in np.argwhere(TARGET_BL > 0):
        score_V = score_BLV[b, length]
        expected += beta * np.logaddexp(0, -score_V[TARGET_BL[b, length]])
        expected += np.logaddexp(0, score_V[negative_BLS[b, length]]).sum()
    assert loss_sum == pytest.approx(expected / 5, rel=RTOL)
    if calibration == 0.0:
        plain = objectives.bce(num_negatives=4)
        assert loss_of(plain, candidates[0])[0] == loss_sum


@pytest.mark.parametrize(
    "options",
    [{}, {"exclude_window": True}, {"include_padding": True}],
    ids=lambda options: next(iter(options), "default"),
)
def test_ce_competes_with(options):
    """All items, also those never trained on; less the window; PAD and MASK too."""
    num_table_rows = NUM_ITEMS + 2
    objective = objectives.ce(**options)
    candidates = objective.candidates(
        jax.random.key(0), TARGET_BL, jnp.asarray(SEEN_BX), items_of(num_table_rows)
    )
    competitors = [ALL] * B
    if options.get("exclude_window"):
        competitors = [ALL - seen for seen in SEEN]
    if options.get("include_padding"):
        competitors = [set(range(num_table_rows))] * B
    loss_sum, score_BLV = loss_of(objective, candidates, num_table_rows)
    assert loss_sum == pytest.approx(softmax_loss(score_BLV, competitors), rel=RTOL)
    assert objective.num_negatives == 0


class Lookup(nn.Module):
    """The least encoder: the embedding of the item at a position."""

    num_items: int

    objective = "next_item"

    def setup(self):
        self.table_VD = self.param("table", nn.initializers.ones, (NUM_ITEMS + 1, 2))

    def table(self):
        return self.table_VD

    def __call__(self, tokens_RT, position_RT, segment_RT, *, train):
        del position_RT, segment_RT, train
        return self.table_VD[tokens_RT]


@pytest.mark.parametrize("exclude", ["window", "history"])
def test_exclude_says_whose_items_are_no_negatives(exclude):
    """As many negatives as there are candidates, so that the draw is forced."""
    history = [4, 5, 6, 7, 9, 10, 11]
    rules = {"window": set(history[-3:]), "history": set(history)}
    candidates = POOL - rules[exclude]
    objective = objectives.sampled_ce(num_negatives=len(candidates), exclude=exclude)
    left = []

    def spy(*arguments):
        catalogue = objective.candidates(*arguments)
        jax.debug.callback(left.append, catalogue)
        return catalogue

    recipe = steps.Recipe(
        encoder=Lookup(NUM_ITEMS),
        objective=objectives.Objective(
            spy,
            lambda hidden_BLD, *rest: (hidden_BLD.sum(), jnp.float32(1)),
            exclude=objective.exclude,
        ),
        optimiser=optax.sgd(0.0),
        max_length=2,
        history_length=len(history),
        seed=0,
    )
    log = batches.Log(jnp.asarray([*history, 1, 2], jnp.int32), jnp.asarray([0, 9]))
    step = functools.partial(steps.train_steps, recipe=recipe, num_rows=1)
    user_11 = slot_11 = jnp.zeros((1, 1), jnp.int32)
    train_end_1 = jnp.asarray([len(history)])
    state = steps.init_state(recipe)
    jax.jit(step)(state, log, train_end_1, items_of(), user_11, slot_11)
    jax.effects_barrier()
    (catalogue,) = left
    allowed = set(np.flatnonzero(catalogue.allowed_V).tolist())
    assert allowed - set(catalogue.excluded_BX[0].tolist()) == candidates


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (objectives.sampled_ce, {"exclude": "all"}, "'window' or 'history'.*'all'"),
        (objectives.bce, {"exclude": "all"}, "'window' or 'history'.*'all'"),
        (objectives.gbce, {"exclude": "all"}, "'window' or 'history'.*'all'"),
        (objectives.ce, {"dtype": "float16"}, "loss.dtype must be .*'float16'"),
        (objectives.sampled_ce, {"dtype": "half"}, "loss.dtype must be .*'half'"),
        (objectives.ce, {"score_dtype": "tf32"}, "loss.score_dtype must be .*'tf32'"),
        (objectives.bce, {"num_negatives": 0}, "at least 1: got 0"),
        (objectives.gbce, {"num_negatives": 0}, "at least 1: got 0"),
        (objectives.gbce, {"calibration": 1.5}, r"in \[0, 1\]: got 1.5"),
        (objectives.sampled_ce, {"draw": "both"}, "'apart' or 'dealt': got 'both'"),
        (objectives.sampled_ce, {"draw": "dealt", "share": 2}, "both, loss.share=2"),
        (objectives.sampled_ce, {"num_negatives": 0}, "at least 1: got 0"),
        (objectives.sampled_ce, {"num_negatives": 19}, r"in 1\.\.18.*got 19"),
        (objectives.gbce, {"num_negatives": 18}, "below .* 18: got 18"),
    ],
)
def test_a_wrong_option_is_an_input_error(make, options, message):
    with pytest.raises(InputError, match=message):
        draws(make, **options)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (objectives.ce, {}),
        (objectives.sampled_ce, {"num_negatives": 4}),
        (objectives.sampled_ce, {"num_negatives": 10}),  # all but 8 of 18
        (objectives.sampled_ce, {"num_negatives": 4, "share": 2}),
        (objectives.sampled_ce, {"num_negatives": 4, "draw": "dealt"}),
    ],
)
def test_scores_are_of_the_score_dtype(make, options):
    candidates = jax.tree.map(lambda x: x[0], draws(make, **options))
    wide, _ = loss_of(make(**options), candidates)
    narrow, _ = loss_of(make(**options, score_dtype="bfloat16"), candidates)
    expected, _ = loss_of(make(**options), candidates, dtype=jnp.bfloat16)
    assert narrow == pytest.approx(expected, rel=RTOL)
    assert abs(narrow / wide - 1) > 10 * RTOL


def test_a_config_names_them():
    for name, make in objectives.OBJECTIVES.items():
        assert make.__name__ == name
        assert isinstance(make(), objectives.Objective)
