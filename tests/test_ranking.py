"""Ranks against a loop that sorts Python lists; one step under three drivers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxrec import batches, data, evaluator, models, ranking
from jaxrec.ranking import Ranks, Rows

NUM_ITEMS = 23


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def dataset_of(logs, num_items=NUM_ITEMS) -> data.Dataset:
    return data.Dataset(
        items=np.array([item for log in logs for item in log], np.int32),
        offsets=np.cumsum([0, *map(len, logs)], dtype=np.int64),
        user_ids=np.arange(len(logs)),
        item_ids=np.arange(num_items),
    )


def slow_ranks(score_V, target, history, num_items=NUM_ITEMS):
    """(filtered, unfiltered, ties) of a row: sort, the target last of its equals."""

    def place(items):
        ordered = sorted(items, key=lambda item: (-score_V[item], item == target))
        return ordered.index(target) + 1

    items = list(range(1, num_items + 1))
    unseen = [item for item in items if item not in history]
    filtered = place(unseen) if target in unseen else num_items + 1
    ties = [score_V[item] for item in items if item != target].count(score_V[target])
    return filtered, place(items), ties


@partial(jax.jit, static_argnames=("capacity", "cuts", "num_items"))
def rank(log, is_first_I, rows, hidden_BD, table_VD, *, capacity, cuts, num_items):
    seen = ranking.seen_items(log, is_first_I, rows, capacity=capacity)
    is_item_V = ranking.item_mask(len(table_VD), num_items)
    return ranking.target_ranks(
        hidden_BD,
        table_VD,
        is_item_V,
        rows.target_B,
        seen,
        row_block=cuts[0],
        item_chunk=cuts[1],
    )


class Case:
    """Rows with these histories and targets; each log goes on after the history."""

    def __init__(self, histories, targets, num_items=NUM_ITEMS):
        self.histories, self.targets, self.num_items = histories, targets, num_items
        tails = [[target, 1, target, 2] for target in targets]
        logs = [[*h, *t] for h, t in zip(histories, tails, strict=True)]
        self.dataset = dataset_of(logs, num_items)
        self.capacity = sum(map(len, histories))

    def arguments(self, *, num_fillers=0):
        start = self.dataset.offsets[:-1]
        end = start + [len(history) for history in self.histories]
        filled = (np.pad(x, (0, num_fillers)) for x in (start, end, self.targets))
        return (
            batches.log_on_device(self.dataset),
            jnp.asarray(self.dataset.is_first_I),
            Rows(*(x.astype(np.int32) for x in filled), slot_B=None),
        )

    def ranks(self, hidden_BD, table_VD, *, cuts=(None, None), num_fillers=0, spare=0):
        """cuts: row_block and item_chunk."""
        ranks, is_finite_B = rank(
            *self.arguments(num_fillers=num_fillers),
            np.pad(hidden_BD, ((0, num_fillers), (0, 0))),
            table_VD,
            capacity=self.capacity + spare,
            cuts=cuts,
            num_items=self.num_items,
        )
        return jax.device_get((ranks, is_finite_B))

    def slow(self, hidden_BD, table_VD):
        score_BV = np.asarray(hidden_BD, float) @ np.asarray(table_VD, float).T
        rows = zip(score_BV, self.targets, self.histories, strict=True)
        return np.array([slow_ranks(*row, self.num_items) for row in rows]).T


ALL = list(range(1, NUM_ITEMS + 1))
CASE = Case(
    histories=[
        [3, 1, 4, 1, 5],  # a repeat
        [7, 9, 7, 7, 9],  # the target is one of them
        [],
        [item for item in ALL if item != 6],  # only the target is left
        [23, 1],
        [2, 2, 2, 2],
        ALL + ALL,  # nothing is left
        [12],
    ],
    targets=[2, 9, 1, 6, 22, 23, 4, 11],
)


def integer_arrays(rng, num_rows, num_items=NUM_ITEMS):
    """Small integers: exact scores and many ties. PAD and MASK would win everywhere."""
    hidden_BD = rng.integers(-2, 3, (num_rows, 3)).astype(np.float32)
    table_VD = rng.integers(-2, 3, (num_items + 2, 3)).astype(np.float32)
    hidden_BD[:, 0] = 1
    table_VD[[0, -1]] = 0
    table_VD[[0, -1], 0] = 1000
    return hidden_BD, table_VD


@pytest.mark.parametrize(
    "cuts",
    [(None, None), (None, 1), (None, 5), (None, 24), (8, 1000), (4, None), (1, 7)],
    ids=str,
)
def test_equals_sorting(cuts):
    rng = np.random.default_rng(0)
    num_tied = 0
    for _ in range(20):
        hidden_BD, table_VD = integer_arrays(rng, len(CASE.targets))
        ranks, is_finite_B = CASE.ranks(hidden_BD, table_VD, cuts=cuts)
        np.testing.assert_array_equal(ranks, CASE.slow(hidden_BD, table_VD))
        assert is_finite_B.all()
        num_tied += (ranks.ties > 0).sum()
        miss = [row in (1, 6) for row in range(len(CASE.targets))]
        np.testing.assert_array_equal(ranks.filtered == NUM_ITEMS + 1, miss)
        assert ranks.filtered[3] == 1
    assert num_tied > 20
    assert (
        ranks.filtered.dtype == ranks.unfiltered.dtype == ranks.ties.dtype == np.int32
    )


@pytest.mark.parametrize(("num_fillers", "spare"), [(5, 0), (0, 17)])
def test_fillers_and_spare_capacity_change_nothing(num_fillers, spare):
    arrays = integer_arrays(np.random.default_rng(1), len(CASE.targets))
    ranks, is_finite_B = CASE.ranks(*arrays, num_fillers=num_fillers, spare=spare)
    assert is_finite_B.all()
    real = [rank_N[: len(CASE.targets)] for rank_N in ranks]
    np.testing.assert_array_equal(real, CASE.slow(*arrays))


@pytest.mark.parametrize(
    "cuts", [(None, None), (None, 64), (16, None), (16, 64)], ids=str
)
def test_float_scores_are_ranked_alike_in_chunks_to_the_last_row(cuts):
    num_items, num_rows = 401, 64
    rng = np.random.default_rng(2)
    logs = [
        rng.integers(1, num_items + 1, rng.integers(1, 30)).tolist()
        for _ in range(num_rows)
    ]
    case = Case(logs, rng.integers(1, num_items + 1, num_rows).tolist(), num_items)
    hidden_BD = rng.normal(size=(num_rows, 16)).astype(np.float32)
    table_VD = rng.normal(size=(num_items + 1, 16)).astype(np.float32)
    score_BV = hidden_BD.astype(float) @ table_VD.T.astype(float)
    own_B1 = np.take_along_axis(score_BV, np.array(case.targets)[:, None], axis=1)
    # No competitor comes so near that float32, good to 5e-6 here, could swap the two.
    assert np.sort(np.abs(score_BV - own_B1), axis=1)[:, 1].min() > 5e-6
    ranks, _ = case.ranks(hidden_BD, table_VD, cuts=cuts)
    np.testing.assert_array_equal(ranks, case.slow(hidden_BD, table_VD))
    assert not ranks.ties.any()


@pytest.mark.parametrize("cuts", [(None, None), (None, 5), (4, None)], ids=str)
def test_a_collapsed_model_ranks_last(cuts):
    """Equal rows of floats: all scores must be equal to the last bit."""
    rng = np.random.default_rng(3)
    hidden_BD = rng.normal(size=(len(CASE.targets), 17)).astype(np.float32)
    table_VD = np.tile(rng.normal(size=17).astype(np.float32), (NUM_ITEMS + 2, 1))
    ranks, _ = CASE.ranks(hidden_BD, table_VD, cuts=cuts)
    num_unseen = [NUM_ITEMS - len(set(history)) for history in CASE.histories]
    num_unseen[1] = num_unseen[6] = NUM_ITEMS + 1  # misses
    np.testing.assert_array_equal(ranks.filtered, num_unseen)
    np.testing.assert_array_equal(ranks.unfiltered, NUM_ITEMS)
    np.testing.assert_array_equal(ranks.ties, NUM_ITEMS - 1)


@pytest.mark.parametrize("cuts", [(None, None), (None, 5), (4, None)], ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_told_by_row(value, cuts):
    hidden_BD, table_VD = integer_arrays(np.random.default_rng(4), len(CASE.targets))
    hidden_BD[5, 1] = value
    _, is_finite_B = CASE.ranks(hidden_BD, table_VD, cuts=cuts)
    np.testing.assert_array_equal(is_finite_B, np.arange(len(CASE.targets)) != 5)
    hidden_BD[5, 1] = 1
    table_VD[[0, -1]] = value  # no items: their scores are nobody's
    _, is_finite_B = CASE.ranks(hidden_BD, table_VD, cuts=cuts)
    assert is_finite_B.all()
    table_VD[17] = value
    _, is_finite_B = CASE.ranks(hidden_BD, table_VD, cuts=cuts)
    assert not is_finite_B.any()


@pytest.mark.parametrize("spare", [0, 3])
def test_seen_items_are_the_distinct_items_of_each_history(spare):
    seen_items = jax.jit(ranking.seen_items, static_argnames="capacity")
    seen = jax.device_get(
        seen_items(*CASE.arguments(num_fillers=2), capacity=CASE.capacity + spare)
    )
    pairs = np.stack([seen.row_H, seen.item_H], axis=1)[seen.is_valid_H]
    assert sorted(map(tuple, pairs.tolist())) == [
        (row, item)
        for row, history in enumerate(CASE.histories)
        for item in sorted(set(history))
    ]
    assert len(seen.is_valid_H) == CASE.capacity + spare


class Sum(nn.Module):
    """The sum of the integer embeddings of a window so far: exact in float32."""

    num_items: int
    width: int = 3

    objective = "next_item"

    def setup(self):
        def integers(key, shape):
            return jax.random.randint(key, shape, -3, 4).astype(jnp.float32)

        self.table_VD = self.param("table", integers, (self.num_items + 1, self.width))

    def table(self):
        return self.table_VD

    def __call__(self, tokens_RT, position_RT, segment_RT, *, train):
        del position_RT, train
        mask_RTM = segment_RT[:, :, None] == segment_RT[:, None, :]
        mask_RTM &= jnp.tri(segment_RT.shape[1], dtype=bool)[None]
        return jnp.einsum(
            "rtm,rmd->rtd", mask_RTM.astype(jnp.float32), self.table_VD[tokens_RT]
        )


NUM_USERS, MAX_LENGTH = 43, 6  # 43 users on 8 devices: 6 a device, 5 fillers


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(6)
    logs = [rng.integers(1, NUM_ITEMS + 1, rng.integers(3, 12)) for _ in range(43)]
    return data.leave_one_out(dataset_of(logs))


def by_jit(step, params, log, is_first_I, rows):
    compiled = jax.jit(step)
    each = [
        compiled(params, log, is_first_I, jax.tree.map(lambda x, c=c: x[c], rows))
        for c in range(8)
    ]
    return jax.tree.map(lambda *x: np.stack(x), *each)


def by_pmap(step, params, log, is_first_I, rows):
    return jax.pmap(step, in_axes=(None, None, None, 0))(params, log, is_first_I, rows)


def by_shard_map(step, params, log, is_first_I, rows):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def shard(params, log, is_first_I, rows):
        rows = jax.tree.map(lambda x: x[0], rows)
        return jax.tree.map(lambda x: x[None], step(params, log, is_first_I, rows))

    specs = (P(), P(), P(), P("data"))
    sharded = jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=P("data"))
    return jax.jit(sharded)(params, log, is_first_I, rows)


def ranked_on_8_devices(split, encoder, params, **cuts) -> list[Ranks]:
    """Ranks in the holdout's order, by each driver."""
    chunks = evaluator.cut(
        split, split.test, batch_size=6, max_length=MAX_LENGTH, is_cloze=False
    )
    assert chunks.rows.start_B.shape == (8, 6)
    assert (chunks.order_N < 0).sum() == 8 * 6 - NUM_USERS
    step = partial(
        ranking.rank_step,
        encoder=encoder,
        max_length=MAX_LENGTH,
        num_rows=chunks.num_rows,
        capacity=chunks.capacity,
        **cuts,
    )
    log = batches.log_on_device(split.dataset)
    is_first_I = jnp.asarray(split.dataset.is_first_I)
    results = []
    for driver in (by_jit, by_pmap, by_shard_map):
        ranks_and_finite = driver(step, params, log, is_first_I, chunks.rows)
        ranks, is_finite_N = jax.tree.map(np.ravel, jax.device_get(ranks_and_finite))
        results.append(evaluator.gather((ranks, is_finite_N), chunks.order_N))
    return results


def init(encoder):
    one_11 = jnp.ones((1, 1), jnp.int32)
    initialise = partial(encoder.init, train=False)
    return jax.jit(initialise)(jax.random.key(0), one_11, one_11 - 1, one_11)["params"]


def test_jit_equals_pmap_equals_shard_map_equals_sorting(split):
    encoder = Sum(NUM_ITEMS)
    params = init(encoder)
    table_VD = np.asarray(params["table"])
    items, offsets = split.dataset.items, split.dataset.offsets
    expected = []
    for user, end, target in zip(*split.test, strict=True):
        history = items[offsets[user] : end]
        score_V = table_VD @ table_VD[history[-MAX_LENGTH:]].sum(axis=0)
        expected.append(slow_ranks(score_V, target, history))
    for ranks in ranked_on_8_devices(split, encoder, params, row_block=4):
        np.testing.assert_array_equal(ranks, np.array(expected).T)


def test_sasrec_ranks_the_same_under_jit_pmap_and_shard_map(split):
    encoder = models.SASRec(NUM_ITEMS, width=8, num_layers=1, num_positions=MAX_LENGTH)
    first, *others = ranked_on_8_devices(split, encoder, init(encoder), item_chunk=7)
    for ranks in others:
        np.testing.assert_array_equal(ranks, first)
    assert len(set(first.filtered.tolist())) > 5
