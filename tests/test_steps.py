"""The training step against one written out by hand, and what many of them share."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxrec import backend, batches, models, negatives, objectives, optim, steps
from jaxrec.objectives import Items

NUM_ITEMS, MAX_LENGTH = 12, 5
SASREC = models.SASRec(
    NUM_ITEMS, width=4, num_layers=1, dropout=0.0, num_positions=MAX_LENGTH
)
# Training parts shorter than the window of 6, as long, and longer; each log goes on.
HISTORIES = [
    [3, 1, 4],
    [1, 5, 9, 2, 6, 5],
    [3, 5, 8, 9, 7, 9, 3, 2, 3],
    [8, 4],
    [11, 12, 10, 12],
]
LOG = batches.Log(
    jnp.asarray([item for items in HISTORIES for item in [*items, 7, 7]], jnp.int32),
    jnp.asarray(np.cumsum([0, *(len(items) + 2 for items in HISTORIES)]), jnp.int32),
)
TRAIN_END_U = LOG.offset_U1[1:] - 2
LENGTH_U = np.array([min(len(items) - 1, MAX_LENGTH) for items in HISTORIES])
ADAM = {"learning_rate": 0.1, "b1": 0.8, "b2": 0.9, "eps": 0.1}
# A float32 forward and backward pass of a small encoder, its sums in another order.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}
BERT4REC = models.BERT4Rec(
    NUM_ITEMS, width=4, num_layers=1, dropout=0.0, num_positions=MAX_LENGTH
)


def items_of(num_table_rows=NUM_ITEMS + 1) -> Items:
    row_V = np.arange(num_table_rows)
    is_item_V = (row_V > 0) & (row_V <= NUM_ITEMS)
    return Items(jnp.asarray(is_item_V), negatives.make_pool(is_item_V))


RECIPE = steps.Recipe(
    encoder=SASREC,
    objective=objectives.ce(),
    # With this large an epsilon Adam tells a mean from a sum.
    optimiser=optim.adam(**ADAM),
    max_length=MAX_LENGTH,
    history_length=max(map(len, HISTORIES)),
    seed=3,
)


@functools.cache
def jitted(recipe, num_rows):
    return jax.jit(
        functools.partial(steps.train_steps, recipe=recipe, num_rows=num_rows)
    )


def packed(user_SB):
    """slot_SB and the number of rows, by best fit."""
    length_SB = [[LENGTH_U[u] if u >= 0 else 0 for u in user_B] for user_B in user_SB]
    slot_SB, num_rows_S = batches.assign_slots(np.array(length_SB), MAX_LENGTH)
    return slot_SB, int(num_rows_S.max())


def dispatch(recipe, state, user_SB, *, slots=None):
    """The steps of user_SB, by default packed into as few rows as possible."""
    slot_SB, num_rows = slots or packed(user_SB)
    call = jitted(recipe, num_rows)
    is_cloze = recipe.encoder.objective == "cloze"  # then MASK is in the table
    items = items_of(NUM_ITEMS + 1 + is_cloze)
    return call(state, LOG, TRAIN_END_U, items, np.array(user_SB), slot_SB)


def assert_close(trees_a, trees_b):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), trees_a, trees_b
    )


def assert_equal(trees_a, trees_b):
    jax.tree.map(np.testing.assert_array_equal, trees_a, trees_b)


def mean_loss(params):
    """Full cross-entropy a position by its formula, every window alone in its row."""
    window_UX = np.zeros((len(HISTORIES), MAX_LENGTH + 1), np.int32)
    for window_X, items in zip(window_UX, HISTORIES, strict=True):
        last = items[-(MAX_LENGTH + 1) :]
        window_X[: len(last)] = last
    tokens_UL, target_UL = window_UX[:, :-1], window_UX[:, 1:]
    hidden_ULD = SASREC.apply(
        {"params": params},
        tokens_UL,
        np.tile(np.arange(MAX_LENGTH), (len(HISTORIES), 1)),
        (tokens_UL > 0).astype(np.int32),
        train=False,
    )
    score_ULI = hidden_ULD @ params["item_embedding"]["table"][1:].T
    log_probability_ULI = jax.nn.log_softmax(score_ULI)
    places = np.argwhere(target_UL > 0)
    return -sum(
        log_probability_ULI[u, i, target_UL[u, i] - 1] for u, i in places
    ) / len(places)


def adam_by_hand(params, gradients_of_steps):
    """Kingma & Ba, algorithm 1."""
    flat, unravel = ravel_pytree(params)
    value, mean, square = np.asarray(flat, float), 0.0, 0.0
    for t in (1, 2):
        gradient = np.asarray(gradients_of_steps(unravel(jnp.float32(value))), float)
        mean = ADAM["b1"] * mean + (1 - ADAM["b1"]) * gradient
        square = ADAM["b2"] * square + (1 - ADAM["b2"]) * gradient**2
        mean_hat, square_hat = (
            mean / (1 - ADAM["b1"] ** t),
            square / (1 - ADAM["b2"] ** t),
        )
        update = mean_hat / (np.sqrt(square_hat) + ADAM["eps"])
        value = value - ADAM["learning_rate"] * update
    return unravel(jnp.float32(value))


@pytest.fixture(scope="module")
def start():
    return steps.init_state(RECIPE)


@pytest.fixture(scope="module")
def two_steps(start):
    """Two steps on all users, packed."""
    return dispatch(RECIPE, start, [[2, 0, 4, 1, 3]] * 2)


def test_steps_equal_the_ones_by_hand(start, two_steps):
    value_and_grad = jax.jit(jax.value_and_grad(mean_loss))
    losses = []

    def gradients(params):
        loss, gradient = value_and_grad(params)
        losses.append(float(loss))
        return ravel_pytree(gradient)[0]

    state, (loss_sum, weight) = two_steps
    assert_close(state.params, adam_by_hand(start.params, gradients))
    assert float(weight) == 2 * LENGTH_U.sum()
    # float32 sums of a few dozen positions.
    assert float(loss_sum) == pytest.approx(sum(losses) * LENGTH_U.sum(), rel=1e-5)
    assert int(state.step) == 2


def test_packing_order_and_fillers_change_nothing(start, two_steps):
    """The same users in another order, one a row, and between them nobody."""
    user_SB = [[-1, 3, 1, 2, -1, 0, 4, -1]] * 2
    assert packed(user_SB)[1] < len(HISTORIES)
    slot_SB = np.tile(np.arange(8, dtype=np.int32) * MAX_LENGTH, (2, 1))
    assert_close(dispatch(RECIPE, start, user_SB, slots=(slot_SB, 8)), two_steps)


def test_a_batch_of_fillers_changes_no_parameter(start):
    slots = np.zeros((2, 5), np.int32), packed([[0, 1, 2, 3, 4]])[1]
    state, sums = dispatch(RECIPE, start, [[-1] * 5] * 2, slots=slots)
    assert tuple(map(float, sums)) == (0, 0)
    assert_equal(state.params, start.params)


class Traced:
    """An objective with dropout's and the negatives' randomness; counts its traces."""

    def __init__(self):
        self.num_traces = 0
        objective = objectives.sampled_ce(num_negatives=3)

        def candidates(*arguments):
            self.num_traces += 1
            return objective.candidates(*arguments)

        self.recipe = RECIPE._replace(
            encoder=SASREC.clone(dropout=0.3),
            objective=objective._replace(candidates=candidates),
            ema_decay=0.9,
        )


@pytest.fixture(scope="module")
def one_by_one():
    """(traced, states 0..3, sums): three steps, a dispatch each, of one shape."""
    traced = Traced()
    users = [[2, 0, 4], [1, 3, -1], [4, 2, 0]]
    slot_SB, num_rows = packed(users)
    call = jitted(traced.recipe, num_rows)
    states, sums, traces = [steps.init_state(traced.recipe)], [], []
    for user_B, slot_B in zip(users, slot_SB, strict=True):
        plan = np.array([user_B]), slot_B[None]
        state, of_step = call(states[-1], LOG, TRAIN_END_U, items_of(), *plan)
        states.append(state)
        sums.append(of_step)
        traces.append(traced.num_traces)
    return traced.recipe, users, states, sums, traces


def test_dispatches_of_one_shape_are_traced_once(one_by_one):
    *_, traces = one_by_one
    assert traces[0] > 0 and set(traces) == {traces[0]}


def test_a_dispatch_of_many_steps_is_the_steps_one_by_one(one_by_one):
    """To the bit; with jax 0.12 to the last bit.

    XLA takes a loop of one step apart, and from 0.12 on adds in another order then.
    """
    recipe, users, states, sums, _ = one_by_one
    state, (loss_sum, weight) = dispatch(recipe, states[0], users)
    if jax.__version_info__ < (0, 12):
        assert_equal(state, states[-1])
    # 3e-8: two roundings of the largest value, .17.
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=3e-8),
        state,
        states[-1],
    )
    assert float(weight) == sum(float(w) for _, w in sums)
    # The sums of the steps are added in another order.
    total = sum(float(loss) for loss, _ in sums)
    assert float(loss_sum) == pytest.approx(total, rel=1e-6)
    assert int(state.step) == 3


def test_moving_average_follows_its_formula(one_by_one):
    _, _, states, _, _ = one_by_one
    assert_equal(states[0].ema, states[0].params)
    for before, after in zip(states[:-1], states[1:], strict=True):
        expected = jax.tree.map(
            lambda e, p: 0.9 * e + 0.1 * p, before.ema, after.params
        )
        # Two roundings of float32 on values of order one.
        jax.tree.map(
            lambda e, a: np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-7),
            expected,
            after.ema,
        )
        assert (after.ema["position_table"] != before.ema["position_table"]).any()


def test_init_is_the_draw_of_the_stream_of_params(start):
    key = jax.random.fold_in(jax.random.key(3), zlib.crc32(b"params"))
    one_11 = jnp.ones((1, 1), jnp.int32)
    params = SASREC.init(key, one_11, one_11 - 1, one_11, train=False)["params"]
    assert_equal(start.params, params)
    assert start.step.dtype == jnp.int32 and int(start.step) == 0
    assert start.ema is None
    again = steps.init_state(RECIPE._replace(objective=objectives.bce(), max_length=2))
    assert_equal(again.params, params)
    other = steps.init_state(RECIPE._replace(seed=4))
    for ours, others in zip(*map(jax.tree.leaves, (params, other.params)), strict=True):
        is_constant = len(np.unique(ours)) == 1  # norms and biases
        assert is_constant or (ours != others).any()


def test_cloze_batches_are_drawn_anew_each_step():
    encoder = models.BERT4Rec(NUM_ITEMS, width=4)
    recipe = RECIPE._replace(encoder=encoder, mask_probability=0.4)
    batch_of = jax.jit(
        lambda step: steps.training_batch(
            recipe, LOG, LOG.offset_U1[:-1], TRAIN_END_U, step
        )
    )
    window_BL = np.zeros((len(HISTORIES), MAX_LENGTH), int)
    for row_L, items in zip(window_BL, HISTORIES, strict=True):
        row_L[: len(items)] = items[-MAX_LENGTH:]
    hidden = []
    for step in [0, 1, 2, 1]:
        batch = jax.device_get(batch_of(jnp.int32(step)))
        is_hidden_BL = batch.tokens_BL == NUM_ITEMS + 1
        np.testing.assert_array_equal(batch.seen_BX, window_BL)
        np.testing.assert_array_equal(
            np.where(is_hidden_BL, batch.target_BL, batch.tokens_BL), window_BL
        )
        np.testing.assert_array_equal(batch.weight_BL, is_hidden_BL)
        np.testing.assert_array_equal(batch.target_BL > 0, is_hidden_BL)
        hidden.append(is_hidden_BL.tolist())
    assert hidden[1] == hidden[3]
    assert hidden[0] != hidden[1] != hidden[2] != hidden[0]
    other = recipe._replace(seed=4)
    batch = steps.training_batch(
        other, LOG, LOG.offset_U1[:-1], TRAIN_END_U, jnp.int32(0)
    )
    assert (batch.weight_BL > 0).tolist() != hidden[0]


@pytest.mark.parametrize("part_tokens, num_parts", [(10**6, 1), (2 * MAX_LENGTH, 3)])
def test_parts_of_the_rows_are_encoded_as_the_whole(
    start, monkeypatch, part_tokens, num_parts
):
    """7 rows in one part, and in three: 2, 2 and 3 rows."""
    monkeypatch.setattr(steps, "_PART_TOKENS", part_tokens)
    rng = np.random.default_rng(0)
    rows = (
        rng.integers(1, SASREC.num_items + 1, (7, MAX_LENGTH)).astype(np.int32),
        np.tile(np.arange(MAX_LENGTH, dtype=np.int32), (7, 1)),
        np.ones((7, MAX_LENGTH), np.int32),
    )
    rows = tuple(map(jnp.asarray, rows))
    calls = []
    apply = SASREC.apply

    class Counted:
        def apply(self, variables, *args, **options):
            calls.append(len(args[0]))
            return apply(variables, *args, **options)

    key = jax.random.key(0)
    hidden_RTD = steps.encode_rows(start.params, Counted(), rows, key)
    expected = apply({"params": start.params}, *rows, train=False)
    np.testing.assert_allclose(hidden_RTD, expected, **TOLERANCE)
    assert len(calls) == num_parts and sum(calls) == 7


# bfloat16 is rounded in other places on another device.
BFLOAT16 = TOLERANCE | {"atol": 1e-3}


@pytest.mark.parametrize(
    "objective, tolerance",
    [
        (objectives.ce(), TOLERANCE),
        (objectives.ce(exclude_window=True), TOLERANCE),
        (objectives.ce(dtype="bfloat16"), BFLOAT16),
        (objectives.sampled_ce(num_negatives=2), TOLERANCE),
        (objectives.sampled_ce(num_negatives=2, draw="dealt"), TOLERANCE),
        (objectives.sampled_ce(num_negatives=2, dtype="bfloat16"), BFLOAT16),
        (objectives.bce(), TOLERANCE),
        (objectives.gbce(num_negatives=2), TOLERANCE),
    ],
    ids="ce ce_excluded ce_bfloat16 sampled dealt sampled_bfloat16 bce gbce".split(),
)
def test_what_is_chosen_for_another_device_trains_alike(
    objective, tolerance, start, monkeypatch
):
    """Its sizes and ways, on this one: gradients by SGD, to the losses' tolerance."""
    recipe = RECIPE._replace(objective=objective, optimiser=optax.sgd(1.0))
    start = start._replace(opt_state=recipe.optimiser.init(start.params))
    user_SB = np.array([[2, 0, 4, 1, 3]])
    found = []
    for is_cpu in (True, False):
        monkeypatch.setattr(backend, "is_cpu", lambda is_cpu=is_cpu: is_cpu)
        jitted.cache_clear()
        found.append(dispatch(recipe, start, user_SB))
    jitted.cache_clear()
    (mine, mine_sums), (other, other_sums) = found
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance),
        (mine.params, mine_sums),
        (other.params, other_sums),
    )


@pytest.mark.parametrize(
    ("encoder", "objective"),
    [
        (SASREC, objectives.ce(exclude_window=True)),
        (SASREC, objectives.sampled_ce(num_negatives=2)),
        (SASREC, objectives.sampled_ce(num_negatives=2, share=5)),
        (SASREC, objectives.sampled_ce(num_negatives=2, draw="dealt")),
        (SASREC, objectives.gbce(num_negatives=2)),
        (BERT4REC, objectives.ce()),
    ],
    ids="ce sampled shared dealt gbce cloze".split(),
)
def test_packed_states_train_as_those_of_the_padded_batch(encoder, objective):
    """What a loss that does not take them packed is given; gradients by SGD."""
    recipe = RECIPE._replace(
        encoder=encoder, objective=objective, optimiser=optax.sgd(1.0)
    )
    shapes = []

    def padded(hidden_BLD, *rest):
        shapes.append(hidden_BLD.shape)
        return objective.loss.loss(hidden_BLD, *rest)

    start = steps.init_state(recipe)
    slot_SB = MAX_LENGTH * np.array([[4, 2, 0, 5, 1], [0, 1, 3, 4, 5]], np.int32)
    mine, other = (
        dispatch(one, start, [[2, 0, 4, 1, 3]] * 2, slots=(slot_SB, 6))
        for one in (
            recipe,
            recipe._replace(objective=objective._replace(loss=padded)),
        )
    )
    assert set(shapes) == {(5, MAX_LENGTH, 4)}
    assert_close((mine[0].params, mine[1]), (other[0].params, other[1]))


@pytest.mark.parametrize(
    "objective",
    [objectives.ce(), objectives.sampled_ce(num_negatives=2), objectives.bce()],
    ids="ce sampled bce".split(),
)
def test_a_step_makes_nothing_wide_for_padding(objective):
    """Two rows for 256 windows: no hidden states of all of their positions."""
    size, length, width = 256, 200, 64
    encoder = models.SASRec(
        NUM_ITEMS, width=width, num_layers=1, dropout=0.0, num_positions=length
    )
    recipe = RECIPE._replace(encoder=encoder, objective=objective, max_length=length)
    user_1B = jax.ShapeDtypeStruct((1, size), np.int32)
    state = jax.eval_shape(lambda: steps.init_state(recipe))
    step = jax.jit(functools.partial(steps.train_steps, recipe=recipe, num_rows=2))
    program = step.lower(state, LOG, TRAIN_END_U, items_of(), user_1B, user_1B)
    num_bytes = program.compile().memory_analysis().temp_size_in_bytes
    assert 0 < num_bytes < 4 * size * length * width / 2
