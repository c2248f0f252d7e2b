"""Recommendations: exact, unseen, in the caller's ids, written whole or not at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from jaxrec import recommend, runs, sampled, train
from jaxrec.data import Holdout
from jaxrec.errors import InputError
from jaxrec.ranking import Seen
from jaxrec.recommend import Recommender

RNG = np.random.default_rng(0)


def no_line(line):
    del line


def toy_frame(num_users=40, num_items=25):
    """Users of 3 to 8 items each, ids as text; the same for every call."""
    rng = np.random.default_rng(1)
    rows = [
        (f"u{u}", f"i{item:02d}", t)
        for u in range(num_users)
        for t, item in enumerate(
            rng.choice(num_items, size=int(rng.integers(3, 9)), replace=False)
        )
    ]
    return pd.DataFrame(rows, columns=["user", "item", "timestamp"])


SETTINGS = {
    "method": "sasrec_ce",
    "data": {"name": "toy"},
    "model": {"name": "sasrec", "width": 8, "num_layers": 1},
    "loss": {"name": "ce"},
    "optim": {"name": "adam"},
    "train": {"batch_size": 16, "max_length": 5, "max_epochs": 2},
    "eval": {"batch_size": 16, "metrics": ("hr@10", "ndcg@10")},
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "toy"
    train.train(SETTINGS, folder, frame=toy_frame(), log=no_line)
    return folder


@pytest.fixture(scope="module")
def recommender(workdir):
    return Recommender.load(workdir, frame=toy_frame())


@pytest.mark.parametrize("item_chunk", [None, 4, 7, 30])
def test_top_items_is_a_sort_of_the_unseen(item_chunk):
    num_rows, num_columns, k = 6, 30, 5
    hidden_BD = RNG.integers(-2, 3, (num_rows, 4)).astype(np.float32)
    table_VD = RNG.integers(-2, 3, (num_columns, 4)).astype(np.float32)
    is_item_V = np.arange(num_columns) > 0
    pairs = [(b, int(v)) for b in range(num_rows) for v in RNG.choice(29, 8) + 1]
    seen = Seen(
        jnp.array([b for b, _ in pairs], jnp.int32),
        jnp.array([v for _, v in pairs], jnp.int32),
        jnp.array([i % 5 != 0 for i in range(len(pairs))]),
    )
    score_BK, item_BK = recommend.top_items(
        jnp.asarray(hidden_BD),
        jnp.asarray(table_VD),
        jnp.asarray(is_item_V),
        seen,
        k=k,
        item_chunk=item_chunk,
    )
    for b in range(num_rows):
        left_out = {v for i, (row, v) in enumerate(pairs) if row == b and i % 5}
        scores = {
            v: float(hidden_BD[b] @ table_VD[v])
            for v in range(1, num_columns)
            if v not in left_out
        }
        expected = sorted(scores, key=lambda v: (-scores[v], v))[:k]
        assert item_BK[b].tolist() == expected
        assert score_BK[b].tolist() == [scores[v] for v in expected]


def test_fewer_items_than_asked_for_are_marked():
    seen = Seen(*(jnp.zeros(1, jnp.int32),) * 2, jnp.zeros(1, bool))
    score_BK, _ = recommend.top_items(
        jnp.ones((1, 2)), jnp.ones((4, 2)), jnp.arange(4) > 1, seen, k=3
    )
    assert np.isfinite(score_BK[0]).tolist() == [True, True, False]


def test_recommendations_are_ranked_unseen_and_in_the_callers_ids(recommender):
    frame = toy_frame()
    recs = recommender.recommend(k=4)
    assert recs.columns.tolist() == ["user", "rank", "item", "score"]
    assert recs["user"].drop_duplicates().tolist() == sorted(frame["user"].unique())
    had = set(zip(frame["user"], frame["item"], strict=True))
    assert not had & set(zip(recs["user"], recs["item"], strict=True))
    for _, of_user in recs.groupby("user"):
        assert of_user["rank"].tolist() == [1, 2, 3, 4]
        assert (np.diff(of_user["score"]) <= 0).all()


def test_recommendations_equal_the_scores_of_the_encoder(recommender):
    """One user by hand: the last 5 items, unpadded, through the encoder."""
    frame = toy_frame()
    items = sorted(frame["item"].unique())
    history = frame[frame["user"] == "u3"].sort_values("timestamp")["item"].tolist()
    tokens_1L = np.array([[items.index(item) + 1 for item in history[-5:]]], np.int32)
    position_1L = np.arange(tokens_1L.shape[1], dtype=np.int32)[None]
    encoder, params = recommender._experiment.encoder, recommender._params
    hidden_1LD = encoder.apply(
        {"params": params},
        tokens_1L,
        position_1L,
        np.ones_like(tokens_1L),
        train=False,
    )
    table_VD = np.asarray(params["item_embedding"]["table"])
    score_V = table_VD @ np.asarray(hidden_1LD)[0, -1]
    unseen = [i for i in range(len(items)) if items[i] not in history]
    best = sorted(unseen, key=lambda i: -score_V[i + 1])[:3]
    recs = recommender.recommend(["u3"], k=3)
    assert recs["item"].tolist() == [items[i] for i in best]
    np.testing.assert_allclose(
        recs["score"], [score_V[i + 1] for i in best], rtol=1e-4, atol=1e-6
    )


def test_users_keep_their_order_and_repeats(recommender):
    recs = recommender.recommend(["u7", "u1", "u7"], k=1)
    assert recs["user"].tolist() == ["u7", "u1", "u7"]
    assert recs["item"].iloc[0] == recs["item"].iloc[2]


def test_seen_items_can_be_kept(recommender):
    frame = toy_frame()
    num_items = frame["item"].nunique()
    kept = recommender.recommend(["u0"], k=num_items, filter_seen=False)
    assert len(kept) == num_items
    left = recommender.recommend(["u0"], k=num_items)
    assert len(left) == num_items - (frame["user"] == "u0").sum()


def test_wrong_questions_are_answered_in_one_line(recommender):
    with pytest.raises(InputError, match="1 of 2 users are not in the log toy.*nobody"):
        recommender.recommend(["u1", "nobody"])
    with pytest.raises(InputError, match="k must be in 1..25"):
        recommender.recommend(["u1"], k=26)


def test_no_users_no_rows(recommender):
    empty = recommender.recommend([])
    assert empty.columns.tolist() == ["user", "rank", "item", "score"]
    assert len(empty) == 0
    with pytest.raises(InputError, match=r"\[users\]"):
        recommender.recommend("u1")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_files_hold_what_the_frame_does(recommender, tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"recs{suffix}"
    num_rows = recommend.write(recommender.stream(k=2), path)
    read = pd.read_csv(path) if suffix == ".csv" else pd.read_parquet(path)
    expected = recommender.recommend(k=2)
    assert num_rows == len(expected)
    pd.testing.assert_frame_equal(read, expected, check_dtype=False)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_an_interrupted_write_leaves_the_old_file(recommender, tmp_path):
    path = tmp_path / "recs.csv"
    path.write_text("old\n")

    def frames():
        yield recommender.recommend(["u1"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recommend.write(frames(), path)
    assert path.read_text() == "old\n"
    assert [file.name for file in tmp_path.iterdir()] == ["recs.csv"]


def test_output_is_checked_before_the_work(tmp_path):
    with pytest.raises(InputError, match=".csv or .parquet"):
        recommend.main(["--workdir", "none", "--output", str(tmp_path / "recs.xlsx")])
    with pytest.raises(InputError, match="no folder"):
        recommend.main(["--workdir", "none", "--output", str(tmp_path / "no/recs.csv")])


def test_other_data_than_the_runs_is_refused(workdir):
    with pytest.raises(InputError, match="other data"):
        runs.load(workdir, frame=toy_frame(num_users=39))


def test_no_run_is_named(tmp_path):
    with pytest.raises(InputError, match="no run in"):
        runs.load(tmp_path)


@pytest.mark.parametrize("law", sampled.LAWS)
def test_sampled_ranks_are_among_the_sample(recommender, law):
    experiment, params = recommender._experiment, recommender._params
    test = experiment.split.test
    rank_N = sampled.sampled_ranks(experiment, params, test, law=law, num_negatives=10)
    assert rank_N.shape == test.user.shape
    assert rank_N.min() >= 1 and rank_N.max() <= 11
    # Among all the candidates the sampled rank is the full one, whatever the law.
    full = experiment.evaluator.ranks(params, experiment.evaluator.cut(test))
    one = Holdout(*(x[:1] for x in test))
    history = experiment.split.dataset.items[
        experiment.split.dataset.offsets[one.user[0]] : one.end[0]
    ]
    everything = set(np.asarray(experiment.items.pool.item_A).tolist())
    candidates = everything - set(history.tolist()) - {int(one.target[0])}
    rank_1 = sampled.sampled_ranks(
        experiment, params, one, law=law, num_negatives=len(candidates)
    )
    assert len(everything) == experiment.split.dataset.num_items
    assert rank_1[0] == full.filtered[0]


def test_sampled_ranks_say_when_there_are_too_few_candidates(recommender):
    experiment = recommender._experiment
    with pytest.raises(InputError, match="100 items.*has 25.*--sampled"):
        sampled.sampled_ranks(
            experiment, recommender._params, experiment.split.test, num_negatives=100
        )


def test_popular_draws_follow_their_law():
    """The first draw is item i with probability count_i / sum; none is seen or PAD."""
    count_V = jnp.array([0.0, 1.0, 2.0, 3.0, 4.0, 0.0])
    seen_L = jnp.array([4, 0], jnp.int32)
    num_draws = 6000
    drawn_NS = jax.vmap(
        lambda key: sampled.popular_without_replacement(
            key, seen_L, count_V, num_negatives=3
        )
    )(jax.random.split(jax.random.key(0), num_draws))
    counts = np.bincount(np.asarray(drawn_NS[:, 0]), minlength=6)
    expected = num_draws * np.array([0, 1, 2, 3, 0, 0]) / 6
    # chi-square, 2 degrees of freedom: 13.8 is exceeded once in a thousand times
    chi2 = ((counts - expected)[1:4] ** 2 / expected[1:4]).sum()
    assert counts[[0, 4, 5]].sum() == 0 and chi2 < 13.8
    assert (np.sort(np.asarray(drawn_NS), axis=1) == [1, 2, 3]).all()
