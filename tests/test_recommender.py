"""Recommending: exact, unseen, in the caller's ids, for users known and new."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from jaxrec import experiment, popularity, serving, steps
from jaxrec.data import Holdout
from jaxrec.errors import InputError
from jaxrec.recommender import Recommender

NUM_ITEMS = 25
K = 5  # nearly everywhere: another k is another program to compile
COLUMNS = ["user", "rank", "item", "score", "source"]


def toy_frame(num_users=40):
    """Users of 3 to 8 items each, ids as text; the same for every call."""
    rng = np.random.default_rng(1)
    rows = [
        (f"u{u:02d}", f"i{item:02d}", t)
        for u in range(num_users)
        for t, item in enumerate(
            rng.choice(NUM_ITEMS, size=int(rng.integers(3, 9)), replace=False)
        )
    ]
    return pd.DataFrame(rows, columns=["user", "item", "timestamp"])


FRAME = toy_frame()
ITEMS = sorted(FRAME["item"].unique())
HISTORIES = FRAME.groupby("user")["item"].apply(list).to_dict()


def make(model="sasrec", batch_size=16, frame=FRAME, **changes):
    """An untrained model, which recommends by the same arithmetic as a trained one."""
    settings = {
        "method": model,
        "data": {"name": "toy"},
        "model": {"name": model, "width": 8, "num_layers": 1},
        "loss": {"name": "ce"},
        "optim": {"name": "adam"},
        "train": {"max_length": 5},
        "eval": {"batch_size": batch_size, "metrics": ("ndcg@10",)},
    }
    built = experiment.build(settings, frame)
    params = jax.jit(lambda: steps.init_state(built.recipe).params)()
    return Recommender(built, {**params, **changes})


@pytest.fixture(scope="module", params=["sasrec", "bert4rec"])
def recommender(request):
    return make(request.param)


@pytest.fixture(scope="module")
def sasrec():
    return make()


def scores_by_hand(recommender, history):
    """One user: the last items of the window, unpadded, through the encoder."""
    encoder, params = recommender._experiment.encoder, recommender._params
    tokens = [ITEMS.index(item) + 1 for item in history]
    window = recommender._experiment.recipe.max_length
    if encoder.objective == "cloze":
        tokens = [*tokens[1 - window :], NUM_ITEMS + 1]
    tokens_1L = jnp.array([tokens[-window:]], jnp.int32)
    position_1L = jnp.arange(tokens_1L.shape[1], dtype=jnp.int32)[None]
    hidden_1LD = encoder.apply(
        {"params": params},
        tokens_1L,
        position_1L,
        jnp.ones_like(tokens_1L),
        train=False,
    )
    table_VD = np.asarray(params["item_embedding"]["table"])
    return table_VD[1 : NUM_ITEMS + 1] @ np.asarray(hidden_1LD)[0, -1]


def test_recommendations_equal_the_scores_of_the_encoder(recommender):
    all_recs = recommender.recommend(["u00", "u03", "u17"], k=K)
    for user, recs in all_recs.groupby("user"):
        score_V = scores_by_hand(recommender, HISTORIES[user])
        unseen = [v for v in range(NUM_ITEMS) if ITEMS[v] not in HISTORIES[user]]
        best = sorted(unseen, key=lambda v: -score_V[v])[:K]
        assert recs["item"].tolist() == [ITEMS[v] for v in best]
        # float32 sums in another order
        np.testing.assert_allclose(recs["score"], score_V[best], rtol=1e-4, atol=1e-6)
        assert recs["source"].tolist() == ["model"] * K


def test_recommendations_are_ranked_unseen_and_in_the_callers_ids(sasrec):
    recs = sasrec.recommend(k=K)
    assert recs.columns.tolist() == COLUMNS
    assert recs["user"].drop_duplicates().tolist() == sorted(HISTORIES)
    had = set(zip(FRAME["user"], FRAME["item"], strict=True))
    assert not had & set(zip(recs["user"], recs["item"], strict=True))
    for _, of_user in recs.groupby("user"):
        assert of_user["rank"].tolist() == [1, 2, 3, 4, 5]
        assert (np.diff(of_user["score"]) <= 0).all()
    assert recs.attrs["report"] == {
        "k": K,
        "users": 40,
        "users_without_history": 0,
        "lists_shorter_than_k": 0,
    }


def test_lists_and_ranks_are_of_one_mind(recommender):
    """The target is in the list at its rank, or its rank is beyond the list."""
    built = recommender._experiment
    test = built.split.test
    ranks = built.evaluator.ranks(recommender._params, built.evaluator.cut(test))
    assert (ranks.ties == 0).all()
    for filter_seen, rank_N in ((True, ranks.filtered), (False, ranks.unfiltered)):
        _, item_NK = recommender.lists(test, k=K, filter_seen=filter_seen)
        for list_K, target, rank in zip(item_NK, test.target, rank_N, strict=True):
            places = np.flatnonzero(list_K == target).tolist()
            assert places == ([rank - 1] if rank <= K else [])


def test_places_beyond_what_is_left_are_empty(sasrec):
    test = sasrec._experiment.split.test
    one = Holdout(*(x[:1] for x in test))
    num_seen = int(one.end[0] - sasrec._experiment.split.dataset.offsets[one.user[0]])
    score_1K, item_1K = sasrec.lists(one, k=NUM_ITEMS)
    assert (item_1K == 0).sum() == num_seen
    assert np.isneginf(score_1K[item_1K == 0]).all()


def test_users_keep_their_order_and_repeats(sasrec):
    recs = sasrec.recommend(["u07", "u01", "u07"], k=K)
    assert recs["user"].tolist() == ["u07"] * K + ["u01"] * K + ["u07"] * K
    assert recs["item"].tolist()[:K] == recs["item"].tolist()[2 * K :]


def test_seen_items_can_be_kept(sasrec):
    kept = sasrec.recommend(["u00"], k=NUM_ITEMS, filter_seen=False)
    assert sorted(kept["item"]) == ITEMS
    left = sasrec.recommend(["u00"], k=NUM_ITEMS)
    assert set(left["item"]) == set(ITEMS) - set(HISTORIES["u00"])


def test_neither_parts_nor_batches_change_a_recommendation(sasrec, monkeypatch):
    expected = sasrec.recommend(k=K)
    monkeypatch.setattr("jaxrec.recommender._PART_USERS", 9)
    done = []
    parts = list(sasrec.stream(k=K, on_progress=lambda *x: done.append(x)))
    assert [len(part) for part in parts] == [45, 45, 45, 45, 20]
    assert done == [(9, 40), (18, 40), (27, 40), (36, 40), (40, 40)]
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), expected)
    pd.testing.assert_frame_equal(make(batch_size=3).recommend(k=K), expected)


def test_users_who_get_fewer_are_counted(sasrec, monkeypatch):
    """Seven items are allowed: whoever has had three of them gets four, not five."""
    allowed = ITEMS[3:10]
    left = [len(set(allowed) - set(HISTORIES[user])) for user in sorted(HISTORIES)]
    num_short = sum(n < K for n in left)
    assert 0 < num_short < 40
    recs = sasrec.recommend(k=K, allowed=allowed)
    assert len(recs) == sum(min(n, K) for n in left)
    assert recs.attrs["report"]["lists_shorter_than_k"] == num_short
    monkeypatch.setattr("jaxrec.recommender._PART_USERS", 9)
    parts = sasrec.stream(k=K, allowed=allowed)
    found = [part.attrs["report"]["lists_shorter_than_k"] for part in parts]
    assert found == [sum(n < K for n in left[:done]) for done in (9, 18, 27, 36, 40)]
    # A user without a history too; of the items, those that are allowed themselves.
    recs = sasrec.recommend(histories={"a": []}, k=K, allowed=ITEMS[:2])
    assert len(recs) == 2 and recs.attrs["report"]["lists_shorter_than_k"] == 1
    near = sasrec.similar(k=K, allowed=ITEMS[:K])
    assert near.attrs["report"]["lists_shorter_than_k"] == K


def test_the_default_k_is_ten_or_the_catalogue(sasrec):
    recs = sasrec.recommend(["u00"])
    assert len(recs) == 10 and recs.attrs["report"]["k"] == 10
    small = make(frame=FRAME[FRAME["item"] < "i08"])
    recs = small.recommend(histories={"new": ["i01"]})
    assert recs["item"].nunique() == len(recs) == 7
    assert recs.attrs["report"]["k"] == 8
    assert len(small.similar(["i01"])) == 7
    test = small._experiment.split.test
    assert small.lists(test)[1].shape == (len(test.user), 8)
    with pytest.raises(InputError, match="k must be in 1..8, .* got 10"):
        small.recommend(k=10)


def test_a_recommender_says_what_it_is(sasrec):
    assert repr(sasrec) == "Recommender(sasrec on toy: 40 users, 25 items)"


def test_a_history_is_worth_what_the_log_is(recommender):
    """Known users given as if they were new; their order is the mapping's."""
    users = ["u31", "u02", "u09"]
    given = {f"new {user}": HISTORIES[user] for user in users}
    new = recommender.recommend(histories=given, k=K)
    known = recommender.recommend(users, k=K)
    pd.testing.assert_frame_equal(
        new.assign(user=new["user"].str.removeprefix("new ")), known
    )
    table = FRAME[FRAME["user"].isin(users)].sample(frac=1, random_state=0)
    of_table = recommender.recommend(histories=table, k=K)
    pd.testing.assert_frame_equal(of_table, recommender.recommend(sorted(users), k=K))


def test_unknown_items_are_skipped_and_counted(sasrec):
    history = HISTORIES["u05"]
    given = {"a": [history[0], "x", *history[1:], "y"], "b": history}
    recs = sasrec.recommend(histories=given, k=K)
    of_a, of_b = (recs[recs["user"] == user] for user in "ab")
    assert of_a["item"].tolist() == of_b["item"].tolist()
    report = recs.attrs["report"]
    assert report["history_items_unknown"] == 2
    assert report["history_items"] == 2 * len(history) + 2
    assert report["first_unknown_items"] == ["x", "y"]
    assert report["users"] == 2 and report["users_without_history"] == 0


def test_no_history_gets_what_is_popular_and_says_so(recommender):
    trained = [item for history in HISTORIES.values() for item in history[:-2]]
    popular = sorted(ITEMS, key=lambda item: (-trained.count(item), item))
    given = {"none": [], "strange": ["x"], "b": HISTORIES["u05"]}
    recs = recommender.recommend(histories=given, k=K)
    assert recs.attrs["report"]["users_without_history"] == 2
    for user in ("none", "strange"):
        shown = recs[recs["user"] == user]
        assert shown["item"].tolist() == popular[:K]
        assert shown["source"].tolist() == ["popularity"] * K
        assert shown["score"].tolist() == [trained.count(i) for i in popular[:K]]
    assert set(recs.loc[recs["user"] == "b", "source"]) == {"model"}
    forbidden = recommender.recommend(histories={1: []}, k=K, forbidden=popular[:2])
    assert forbidden["item"].tolist() == popular[2 : 2 + K]


def test_a_log_may_hold_a_user_without_anything(sasrec):
    """What a split by hand may give; here the first user's items are taken away."""
    built = sasrec._experiment
    dataset, length = built.split.dataset, int(built.split.dataset.lengths[0])
    rest = dataclasses.replace(
        dataset,
        items=dataset.items[length:],
        offsets=np.maximum(dataset.offsets - length, 0),
        timestamps=None,
    )
    split = dataclasses.replace(
        built.split,
        dataset=rest,
        train_end=np.maximum(built.split.train_end - length, 0),
    )
    bare = dataclasses.replace(built, split=split, log=serving.new_users(rest).log)
    recs = Recommender(bare, sasrec._params).recommend(["u00", "u01"], k=K)
    assert recs["source"].tolist() == ["popularity"] * K + ["model"] * K
    expected = sasrec.recommend(["u01"], k=K)["item"].tolist()
    assert recs["item"].tolist()[K:] == expected


def test_allowed_and_forbidden_items(sasrec):
    user = "u04"
    everything = sasrec.recommend([user], k=NUM_ITEMS)["item"].tolist()
    allowed = ["i03", "i20", "i11", "i07", "new in the shop"]
    recs = sasrec.recommend([user], k=K, allowed=iter(allowed), forbidden={"i11", "?"})
    expected = [i for i in everything if i in set(allowed) - {"i11"}]
    assert recs["item"].tolist() == expected
    report = recs.attrs["report"]
    assert report["allowed_items"] == 4 and report["allowed_items_unknown"] == 1
    assert report["forbidden_items"] == 1 and report["forbidden_items_unknown"] == 1
    # To forbid what the model does not know changes nothing.
    strange = sasrec.recommend([user], k=K, forbidden=["sold out"])
    assert strange["item"].tolist() == everything[:K]
    report = strange.attrs["report"]
    assert report["forbidden_items"] == 0 and report["forbidden_items_unknown"] == 1
    without = sasrec.recommend([user], k=K, forbidden=everything[:2])
    assert without["item"].tolist() == everything[2 : 2 + K]


def test_wrong_questions_are_answered_in_one_line(sasrec):
    for ask, message in {
        lambda: sasrec.recommend(["u01", "nobody"]): (
            "1 of 2 users are not in the log toy: .'nobody'.*give histories"
        ),
        lambda: sasrec.recommend("u01"): r"\['u01'\]",
        lambda: sasrec.recommend(["u01"], k=NUM_ITEMS + 1): "k must be in 1..25",
        lambda: sasrec.recommend(["u01"], k=0): "k must be in 1..25",
        lambda: sasrec.recommend(["u01"], k=True): "k must be in 1..25",
        lambda: sasrec.recommend(["u01"], histories={}): "users or histories, not both",
        lambda: sasrec.recommend(allowed=["x", "y"]): "none of the 2 allowed items",
        lambda: sasrec.recommend(allowed="i01"): r"\['i01'\]",
        lambda: sasrec.recommend(allowed=["i01"], forbidden=["i01"]): "no item may be",
        lambda: sasrec.recommend(allowed=[]): "no item may be",
        lambda: sasrec.similar(["i01", "x"]): "1 of 2 items are not in the log",
        lambda: sasrec.similar(measure="euclid"): "one of cosine, dot",
        lambda: sasrec.similar(k=26): "k must be in 1..25",
        lambda: sasrec.item_embeddings(["x"]): "1 of 1 items",
    }.items():
        with pytest.raises(InputError, match=message):
            ask()


def test_a_number_of_numpy_is_a_number(sasrec):
    assert len(sasrec.recommend(["u01"], k=np.int64(2))) == 2


def test_no_users_no_rows(sasrec):
    for empty in (sasrec.recommend([], k=K), sasrec.recommend(histories={}, k=K)):
        assert empty.columns.tolist() == COLUMNS and len(empty) == 0
    assert len(sasrec.similar([], k=NUM_ITEMS - 1)) == 0
    assert sasrec.user_embeddings([]).vector_ND.shape == (0, 8)


def test_a_model_that_diverged_recommends_nothing():
    broken = make(item_embedding={"table": jnp.full((NUM_ITEMS + 1, 8), jnp.nan)})
    with pytest.raises(InputError, match="not finite"):
        broken.recommend(["u01"])


@pytest.mark.parametrize("measure", ["cosine", "dot"])
def test_neighbours_are_a_sort_of_all_others(measure):
    """Small integers, so that many dot products are equal; one vector is zero."""
    rng = np.random.default_rng(0)
    table_VD = rng.integers(-2, 3, (NUM_ITEMS + 1, 8)).astype(np.float32)
    table_VD[9] = 0
    of_integers = make(item_embedding={"table": jnp.asarray(table_VD)})
    unit_VD = table_VD / np.maximum(np.linalg.norm(table_VD, axis=1), 1e-9)[:, None]
    near = of_integers.similar(k=NUM_ITEMS - 1, measure=measure)
    assert near.columns.tolist() == ["item", "rank", "neighbour", "score"]
    for v, item in enumerate(ITEMS, start=1):
        rows = near[near["item"] == item]
        vector_VD = table_VD if measure == "dot" else unit_VD
        score_V = vector_VD @ vector_VD[v]
        assert item not in set(rows["neighbour"]) and len(rows) == NUM_ITEMS - 1
        found_K = [ITEMS.index(other) + 1 for other in rows["neighbour"]]
        # float32 against float32 in another order, at most 1 in size
        np.testing.assert_allclose(rows["score"], score_V[found_K], atol=1e-6)
        if measure == "dot":
            others = [w for w in range(1, NUM_ITEMS + 1) if w != v]
            assert found_K == sorted(others, key=lambda w: (-score_V[w], w))


def test_neighbours_of_some_items_among_some(sasrec):
    everything = sasrec.similar(["i04", "i02"], k=NUM_ITEMS - 1)
    assert everything["item"].drop_duplicates().tolist() == ["i04", "i02"]
    near = sasrec.similar(["i04", "i02"], k=NUM_ITEMS - 1, allowed=ITEMS[:5])
    for item in ("i04", "i02"):
        expected = everything[everything["item"] == item]["neighbour"].tolist()
        expected = [i for i in expected if i in ITEMS[:5]]
        assert near[near["item"] == item]["neighbour"].tolist() == expected
    assert near.attrs["report"]["items"] == 2


def test_embeddings_are_those_of_the_scores(sasrec):
    users, items = sasrec.user_embeddings(), sasrec.item_embeddings()
    assert items.id_N.tolist() == ITEMS and users.id_N.tolist() == sorted(HISTORIES)
    frame, vectors = users.to_frame(), items.to_frame()
    assert frame.shape == (40, 8) and frame.columns.tolist() == list("01234567")
    recs = sasrec.recommend(k=K)
    dots = [
        frame.loc[user].to_numpy() @ vectors.loc[item].to_numpy()
        for user, item in zip(recs["user"], recs["item"], strict=True)
    ]
    np.testing.assert_allclose(recs["score"], dots, rtol=1e-4, atol=1e-6)


def test_embeddings_of_new_users_and_some_items(recommender):
    given = {"a": HISTORIES["u08"], "none": ["x"]}
    new = recommender.user_embeddings(histories=given)
    known = recommender.user_embeddings(["u08", "u09"])
    np.testing.assert_array_equal(new.vector_ND[0], known.vector_ND[0])
    assert not new.vector_ND[1].any() and new.id_N.tolist() == ["a", "none"]
    some = recommender.item_embeddings(["i07", "i01"])
    assert some.id_N.tolist() == ["i07", "i01"]
    table_VD = np.asarray(recommender._params["item_embedding"]["table"])
    np.testing.assert_array_equal(some.vector_ND, table_VD[[8, 2]])


def test_popularity_shows_the_most_trained_unseen(sasrec):
    trained = [item for history in HISTORIES.values() for item in history[:-2]]
    popular = sorted(ITEMS, key=lambda item: (-trained.count(item), item))
    floor = Recommender(*popularity.as_experiment(sasrec._experiment))
    test = sasrec._experiment.split.test
    _, item_NK = floor.lists(test, k=K)
    for user, list_K in zip(sorted(HISTORIES), item_NK, strict=True):
        unseen = [item for item in popular if item not in HISTORIES[user][:-1]]
        assert [ITEMS[v - 1] for v in list_K] == unseen[:K]


def test_requests_of_like_sizes_are_compiled_once(sasrec):
    sasrec.recommend(histories={"a": ITEMS[:3]}, k=K)
    before = serving.jitted_top._cache_size()
    for n in (1, 2, 4, 5, 9):
        sasrec.recommend(histories={"a": ITEMS[:n]}, k=K, forbidden=ITEMS[n:10])
    assert serving.jitted_top._cache_size() == before
