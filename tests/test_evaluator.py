"""The evaluator against one user at a time, popularity against counting."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import backend, batches, data, evaluator, models, popularity
from jaxrec.data import Holdout
from jaxrec.errors import InputError
from jaxrec.ranking import Ranks

NUM_ITEMS, MAX_LENGTH = 31, 3
ENCODERS = {
    "sasrec": models.SASRec(NUM_ITEMS, width=8, num_layers=1, num_positions=MAX_LENGTH),
    "bert4rec": models.BERT4Rec(
        NUM_ITEMS, width=8, num_layers=1, inner_width=8, num_positions=MAX_LENGTH
    ),
}


@pytest.fixture(scope="module")
def split():
    """Histories of 1 to 12 items, so shorter and longer than the window."""
    rng = np.random.default_rng(0)
    lengths = rng.permutation(np.arange(37) % 12 + 2)
    lengths[0] = 2  # trains only
    dataset = data.Dataset(
        items=rng.integers(1, NUM_ITEMS + 1, lengths.sum()).astype(np.int32),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        user_ids=np.arange(len(lengths)),
        item_ids=np.arange(NUM_ITEMS),
        name="tiny",
    )
    return data.leave_one_out(dataset)


def with_empty_history(split) -> Holdout:
    """The test rows, and user 5 asked for its first item."""
    dataset, test = split.dataset, split.test
    first = dataset.offsets[5]
    return Holdout(
        np.append(test.user, np.int32(5)),
        np.append(test.end, first),
        np.append(test.target, dataset.items[first]),
    )


@pytest.fixture(scope="module")
def evaluators(split):
    """By name and batch size, compiled once."""
    log = batches.log_on_device(split.dataset)

    @functools.cache
    def evaluator_of(name, batch_size):
        return evaluator.Evaluator(
            ENCODERS[name], split, log, max_length=MAX_LENGTH, batch_size=batch_size
        )

    return evaluator_of


@functools.cache
def params_of(name):
    """Large weights, so that scores differ between positions, items and users."""
    one_11 = jnp.ones((1, 1), jnp.int32)
    initialise = functools.partial(ENCODERS[name].init, train=False)
    params = jax.jit(initialise)(jax.random.key(1), one_11, one_11 - 1, one_11)
    return jax.tree.map(lambda x: x * 5, params["params"])


def histories(split, holdout):
    items, offsets = split.dataset.items, split.dataset.offsets
    for user, end, target in zip(*holdout, strict=True):
        yield items[offsets[user] : end], target


def ranks_of_scores(score_V, history, target) -> tuple[int, int, int]:
    score_I = score_V[1 : NUM_ITEMS + 1]
    is_other_I = np.arange(1, NUM_ITEMS + 1) != target
    beats_I = (score_I >= score_V[target]) & is_other_I
    is_seen_I = np.isin(np.arange(1, NUM_ITEMS + 1), history)
    filtered = 1 + (beats_I & ~is_seen_I).sum()
    return (
        NUM_ITEMS + 1 if target in history else filtered,
        1 + beats_I.sum(),
        (is_other_I & (score_I == score_V[target])).sum(),
    )


def one_user_at_a_time(name, split, holdout):
    """The encoder on each unpadded window, alone in its row."""
    encoder, params = ENCODERS[name], params_of(name)

    @jax.jit
    def scores(window_1L):
        length = window_1L.shape[1]
        position_1L = jnp.arange(length, dtype=jnp.int32)[None]
        hidden_1LD = encoder.apply(
            {"params": params},
            window_1L,
            position_1L,
            jnp.ones_like(position_1L),
            train=False,
        )
        return encoder.apply({"params": params}, method="table") @ hidden_1LD[0, -1]

    ranks = []
    for history, target in histories(split, holdout):
        if name == "bert4rec":
            window = [*history[-(MAX_LENGTH - 1) :], NUM_ITEMS + 1]
        else:
            window = history[-MAX_LENGTH:]
        score_V = np.zeros(NUM_ITEMS + 2)
        if len(window):
            window_1L = np.asarray(window, np.int32)[None]
            score_V = np.asarray(scores(window_1L))
        ranks.append(ranks_of_scores(score_V, history, target))
    return np.array(ranks).T


@pytest.mark.parametrize("name", ENCODERS)
def test_equals_one_user_at_a_time_whatever_the_batch_size(name, split, evaluators):
    holdout = with_empty_history(split)
    expected = one_user_at_a_time(name, split, holdout)
    for batch_size in (5, 64):
        evaluator = evaluators(name, batch_size)
        ranks = evaluator.ranks(params_of(name), evaluator.cut(holdout))
        np.testing.assert_array_equal(ranks, expected)
        assert all(rank_N.dtype == np.int32 for rank_N in ranks)
    assert len(set(expected[0])) > 10  # the rows tell a right model from a wrong one


def test_all_chunks_are_one_dispatch(split, evaluators, monkeypatch):
    evaluator = evaluators("sasrec", 5)
    chunks = evaluator.cut(split.test)
    program, calls = evaluator._program(chunks), []

    def counted(rows, *shared):
        calls.append(rows.start_B.shape)
        return program(rows, *shared)

    monkeypatch.setattr(evaluator, "_program", lambda chunks: counted)
    evaluator.ranks(params_of("sasrec"), chunks)
    (shape,) = calls
    assert shape == chunks.rows.start_B.shape and shape[0] > 5


def test_ranking_may_be_compiled_ahead(split, monkeypatch):
    """For parameters that are not there yet; chunks of other shapes as ever."""
    log = batches.log_on_device(split.dataset)
    one = evaluator.Evaluator(
        ENCODERS["sasrec"], split, log, max_length=MAX_LENGTH, batch_size=5
    )
    holdout, params = with_empty_history(split), params_of("sasrec")
    chunks = one.cut(holdout)
    one.compile(jax.eval_shape(lambda: params), chunks)
    program_of, asked = one._program, []

    def counted(chunks):
        asked.append(chunks)
        return program_of(chunks)

    monkeypatch.setattr(one, "_program", counted)
    expected = one_user_at_a_time("sasrec", split, holdout)
    np.testing.assert_array_equal(one.ranks(params, chunks), expected)
    assert not asked
    few = Holdout(*(x[:4] for x in holdout))
    np.testing.assert_array_equal(one.ranks(params, one.cut(few)), expected[:, :4])
    assert len(asked) == 1


def test_signals_are_answered_while_ranks_are_waited_for(
    split, evaluators, monkeypatch
):
    """A `backend.wait`, not one inside the runtime, comes before they are fetched."""
    evaluator, events = evaluators("sasrec", 5), []
    fetch = jax.device_get

    def fetched(x):
        events.append("fetched")
        return fetch(x)

    monkeypatch.setattr(backend, "wait", lambda arrays: events.append(len(arrays)))
    monkeypatch.setattr(jax, "device_get", fetched)
    evaluator.ranks(params_of("sasrec"), evaluator.cut(split.test))
    assert events == [4, "fetched"]  # three ranks, and whether scores are finite


def test_no_history_ranks_last(split, evaluators):
    """A causal model that has read nothing has no opinion: all scores are equal."""
    evaluator = evaluators("sasrec", 64)
    chunks = evaluator.cut(with_empty_history(split))
    ranks = evaluator.ranks(params_of("sasrec"), chunks)
    assert [rank_N[-1] for rank_N in ranks] == [NUM_ITEMS, NUM_ITEMS, NUM_ITEMS - 1]


def test_not_a_number_is_an_input_error(split, evaluators):
    evaluator = evaluators("sasrec", 64)
    chunks = evaluator.cut(with_empty_history(split))
    broken = jax.tree.map(lambda x: x * jnp.nan, params_of("sasrec"))
    with pytest.raises(InputError, match="33 of 33 held-out rows .* not finite"):
        evaluator.ranks(broken, chunks)


@pytest.mark.parametrize("is_cloze", [False, True])
@pytest.mark.parametrize("batch_size", [1, 5, 7, 32, 100])
def test_cut_deals_every_row_once(split, batch_size, is_cloze):
    holdout = split.test
    chunks = evaluator.cut(
        split,
        holdout,
        batch_size=batch_size,
        max_length=MAX_LENGTH,
        is_cloze=is_cloze,
    )
    rows, order_N = chunks.rows, chunks.order_N
    num_chunks, size = rows.start_B.shape
    assert num_chunks == -(-len(holdout.user) // batch_size) and size <= batch_size
    assert all(x.shape == (num_chunks, size) and x.dtype == np.int32 for x in rows)
    is_row_N = order_N >= 0
    assert sorted(order_N[is_row_N]) == list(range(len(holdout.user)))
    start_N = split.dataset.offsets[holdout.user]
    for expected, got in zip(
        (start_N, holdout.end, holdout.target), rows, strict=False
    ):
        np.testing.assert_array_equal(
            got.ravel()[is_row_N], expected[order_N[is_row_N]]
        )
        assert not got.ravel()[~is_row_N].any()
    length_CB = rows.end_B - rows.start_B
    assert chunks.capacity == length_CB.sum(axis=1).max()
    # No chunk weighs more than another by more than one history.
    assert np.ptp(length_CB.sum(axis=1)) <= length_CB.max()
    for length_B, slot_B in zip(length_CB, rows.slot_B, strict=True):
        used = np.zeros(chunks.num_rows * MAX_LENGTH, int)
        for length, slot in zip(length_B, slot_B, strict=True):
            window = min(length + is_cloze, MAX_LENGTH)
            used[slot : slot + window] += 1
            assert slot // MAX_LENGTH == (slot + max(window, 1) - 1) // MAX_LENGTH
            assert slot + window <= len(used)
        assert used.max() <= 1


def test_a_holdout_without_rows_is_an_input_error(split, evaluators):
    nothing = Holdout(*(x[:0] for x in split.test))
    with pytest.raises(InputError, match="at least one row.* tiny has none"):
        evaluators("sasrec", 5).cut(nothing)


@pytest.mark.parametrize("interactions", [1, 20, popularity._INTERACTIONS])
def test_popularity_equals_counting(split, interactions, monkeypatch):
    monkeypatch.setattr(popularity, "_INTERACTIONS", interactions)
    count_V = np.zeros(NUM_ITEMS + 1)
    dataset = split.dataset
    for start, end in zip(dataset.offsets[:-1], split.train_end, strict=True):
        np.add.at(count_V, dataset.items[start:end], 1)
    holdout = with_empty_history(split)
    expected = [ranks_of_scores(count_V, *row) for row in histories(split, holdout)]
    ranks = popularity.ranks(split, holdout)
    assert {rank_N.dtype for rank_N in ranks} == {np.dtype(np.int32)}
    np.testing.assert_array_equal(ranks, np.array(expected).T)


def test_items_are_cut_into_chunks_only_beyond_the_budget():
    assert evaluator.item_chunk(2**26 // 256, 256) is None
    most = 2**26 // 256  # float32 scores of 256 rows: 256 MiB
    assert evaluator.item_chunk(most + 1, 256) == most // 2 + 1
    assert evaluator.item_chunk(3 * most, 256) == most
    assert evaluator.item_chunk(300_001, 256) == 150_001
    assert evaluator.item_chunk(2000, 2**26) == 1000


def test_rows_are_scored_in_blocks_on_a_cpu_alone(monkeypatch):
    """2^21 scores at the most, in a power of two of rows, but 16 rows at the least."""
    for is_cpu, expected in ((True, [256, 32, 16, 16, 8]), (False, [256] * 4 + [8])):
        monkeypatch.setattr(backend, "is_cpu", lambda is_cpu=is_cpu: is_cpu)
        catalogues = [(8192, 256), (54_544, 256), (2**17, 256), (10**6, 256), (9, 8)]
        assert [evaluator.row_block(*shape) for shape in catalogues] == expected


def test_the_best_of_a_large_catalogue_are_found_in_chunks_of_it():
    """In blocks of rows while all the scores are few, in chunks of items beyond."""
    small, large = evaluator.top_cuts(54_544, 256), evaluator.top_cuts(10**6, 256)
    assert small == {"row_block": 32, "item_chunk": None}
    assert large == {"row_block": None, "item_chunk": 250_000}
    # Ranks would score the chunks twice: a row's scores stay whole for longer.
    ranks = evaluator.rank_cuts(10**6, 256)
    assert ranks == {"row_block": 16, "item_chunk": None}
    assert evaluator.rank_cuts(2**22 + 1, 256)["item_chunk"] == 2**21 + 1


def test_subset_is_drawn_once_by_the_seed(split):
    assert evaluator.subset(split.test, None, seed=0) is split.test
    assert evaluator.subset(split.test, 32, seed=0) is split.test
    first, again, other = (
        evaluator.subset(split.test, 9, seed=seed) for seed in (0, 0, 1)
    )
    rows = list(zip(*split.test, strict=True))
    places = [rows.index(row) for row in zip(*first, strict=True)]
    assert len(places) == 9 and places == sorted(set(places))
    np.testing.assert_array_equal(first, again)
    assert (first.user != other.user).any()


def test_summary_is_the_mean_of_each_row(monkeypatch):
    monkeypatch.setattr(evaluator, "_SUM_ROWS", 2)
    filtered, unfiltered = np.array([1, 3, 11, 7]), np.array([1, 7, 12, 12])
    ranks = Ranks(filtered, unfiltered, np.zeros(4, int))
    names = ("hr@10", "mrr@5", "ndcg@100")
    # 1e-6: float32 values and a sum of four.
    of_unseen = evaluator.summary(ranks, names, filter_seen=True, num_items=12)
    assert of_unseen == pytest.approx(
        {
            "hr@10": 3 / 4,
            "mrr@5": (1 + 1 / 3) / 4,
            "ndcg@100": sum(1 / np.log2(filtered + 1)) / 4,
        },
        rel=1e-6,
    )
    of_all = evaluator.summary(ranks, names, filter_seen=False, num_items=12)
    assert of_all["hr@10"] == 2 / 4 and of_all["mrr@5"] == 1 / 4
    assert list(of_all) == list(names)


def test_a_miss_is_one_whatever_the_cut_off():
    """Rank 61 among 60 items: the target was had, and hr@100 must not count it."""
    names = ("hr@10", "hr@100", "ndcg@100", "mrr@100")
    found = evaluator.means(np.array([1, 60, 61, 61]), names, num_items=60)
    expected = [1 / 4, 2 / 4, (1 + 1 / np.log2(61)) / 4, (1 + 1 / 60) / 4]
    assert list(found.values()) == pytest.approx(expected, rel=1e-6)
