"""The synthetic log against the law in its docstring, closed form where possible."""

import numpy as np
import pytest

from jaxrec import data, synthetic
from jaxrec.errors import InputError


@pytest.fixture(scope="module")
def dataset():
    return synthetic.interactions()


def histories(dataset):
    return np.split(dataset.items, dataset.offsets[1:-1])


def genres(dataset):
    return np.array([name.split("(")[1] for name in dataset.item_ids])


def test_equal_seeds_give_equal_logs_and_others_do_not(dataset):
    again = synthetic.interactions()
    assert again.sha256() == dataset.sha256()
    np.testing.assert_array_equal(again.timestamps, dataset.timestamps)
    assert synthetic.interactions(seed=1).sha256() != dataset.sha256()


def test_sizes_and_ids_for_people(dataset):
    assert (dataset.num_users, dataset.num_items) == (2000, 1000)
    assert dataset.user_ids[7] == "user-0007"
    assert dataset.item_ids[41].startswith("item-0042 (")
    assert len(set(dataset.item_ids)) == 1000
    # 8 topics share 1000 items evenly.
    np.testing.assert_array_equal(np.unique_counts(genres(dataset)).counts, [125] * 8)


def test_nobody_takes_an_item_twice():
    # Half of a small catalogue, so that most draws are repeats.
    dataset = synthetic.interactions(
        num_users=200, num_items=60, max_length=30, mean_length=60, num_topics=4
    )
    for history in histories(dataset):
        assert len(np.unique(history)) == len(history)


def test_lengths_are_log_normal_above_the_minimum():
    dataset = synthetic.interactions(
        num_users=20_000, min_length=5, mean_length=35, max_length=500
    )
    assert dataset.lengths.min() >= 5
    # Standard error of the mean 0.2; the median of x is its mean / exp(sigma^2 / 2).
    np.testing.assert_allclose(dataset.lengths.mean(), 35, atol=0.8)
    median = 5 + 30 / np.exp(0.8**2 / 2)
    np.testing.assert_allclose(np.median(dataset.lengths), median, atol=1)


def test_lengths_stay_within_their_bounds():
    lengths = synthetic.interactions(min_length=20, max_length=40).lengths
    assert lengths.min() >= 20
    assert lengths.max() == 40  # a third of the users would have more


def test_popularity_is_zipf_with_the_exponent():
    # One item a user and no taste: independent draws from Q, 2% noise in the rarest.
    dataset = synthetic.interactions(
        num_users=200_000,
        num_items=100,
        zipf_exponent=0.8,
        min_length=1,
        mean_length=2,
        max_length=1,
        taste_weight=0,
    )
    count = -np.sort(-np.bincount(dataset.items)[1:])
    slope, intercept = np.polyfit(np.log(np.arange(1, 101)), np.log(count), 1)
    np.testing.assert_allclose(slope, -0.8, atol=0.02)
    top = 200_000 / (np.arange(1, 101) ** -0.8).sum()
    np.testing.assert_allclose(intercept, np.log(top), atol=0.05)


def test_popularity_of_the_whole_law_is_near_zipf(dataset):
    # Away from the head, which no repeats cut, and with taste's and the walk's share.
    count = -np.sort(-np.bincount(dataset.items)[1:])
    rank = np.arange(20, 501)
    slope, _ = np.polyfit(np.log(rank), np.log(count[rank - 1]), 1)
    np.testing.assert_allclose(slope, -0.8, atol=0.2)


def test_the_order_of_ids_tells_nothing(dataset):
    count = np.bincount(dataset.items)[1:]
    popularity_rank = np.argsort(np.argsort(-count))
    # Standard error of a rank correlation of 1000 independent items: 0.032.
    assert abs(np.corrcoef(np.arange(1000), popularity_rank)[0, 1]) < 0.1
    genre = genres(dataset)
    assert np.mean(genre[1:] == genre[:-1]) < 0.16  # 1/8, standard error 0.01


def test_two_items_of_a_user_share_a_topic_as_dirichlet_says():
    dataset = synthetic.interactions(
        num_users=20_000,
        min_length=2,
        mean_length=3,
        max_length=2,
        num_topics=8,
        taste_concentration=0.2,
        zipf_exponent=0,
        sequence_weight=0,
        taste_weight=0.99,
    )
    genre = genres(dataset)[dataset.items - 1].reshape(-1, 2)
    # E sum_z theta_z^2 = (c + 1) / (Z c + 1) with both from the taste, else 1 / Z. No
    # repeats take 1 in 125 off a topic; the standard error is 0.0035.
    expected = 0.99**2 * 1.2 / 2.6 + (1 - 0.99**2) / 8
    share = np.mean(genre[:, 0] == genre[:, 1])
    np.testing.assert_allclose(share, expected, atol=0.015)


def test_the_second_item_follows_the_first_as_the_law_says():
    # Uniform popularity and two items a user: the law is the table of pairs.
    dataset = synthetic.interactions(
        num_users=200_000,
        num_items=40,
        min_length=2,
        mean_length=3,
        max_length=2,
        zipf_exponent=0,
        num_topics=2,
        num_successors=3,
        sequence_weight=0.6,
        taste_weight=0,
    )
    first, second = dataset.items.reshape(-1, 2).T - 1
    pairs = np.zeros((40, 40))
    np.add.at(pairs, (first, second), 1)
    law = np.full(40, 0.4 / 40)
    law[0] = 0  # no repeat
    law[1:4] += 0.6 / np.array([1, 1 / 2, 1 / 3]).sum() / np.array([1, 2, 3])
    law = -np.sort(-law / law.sum())
    rows = -np.sort(-pairs, axis=1) / pairs.sum(axis=1, keepdims=True)
    # Of 5000 draws a row: standard error at most 0.007, and 0.0015 past the successors.
    np.testing.assert_allclose(rows[:, :3], np.tile(law[:3], (40, 1)), atol=0.03)
    assert rows[:, 3:].max() < 0.4 / 40 + 0.01
    # Successors share the topic, and each item is the first, second and third of one.
    genre = genres(dataset)
    for place in range(3):
        follower = np.argsort(-pairs, axis=1)[:, place]
        assert sorted(follower) == list(range(40))
        assert np.all(genre[follower] == genre)


def follower_share_and_lift(dataset):
    """How often an item's usual follower follows it, and that over independence.

    The usual follower is read from even users and counted in odd ones: no selection.
    """
    count = np.zeros((2, dataset.num_items + 1, dataset.num_items + 1))
    for user, history in enumerate(histories(dataset)):
        np.add.at(count[user % 2], (history[:-1], history[1:]), 1)
    even, odd = count
    follower = even.argmax(axis=1)
    observed = odd[np.arange(len(odd)), follower].sum() / odd.sum()
    frequency = odd.sum(axis=0) / odd.sum()
    expected = (odd.sum(axis=1) / odd.sum()) @ frequency[follower]
    return observed, observed / expected


def test_successors_follow_far_more_often_than_by_chance(dataset):
    share, lift = follower_share_and_lift(dataset)
    # a / (1 + 1/2 + ... + 1/8) = 0.18 is the first successor's share by the law. Taste
    # and the ban on repeats add to it, and a rare item's usual follower may be another.
    assert 0.15 < share < 0.25
    assert lift > 30
    _, lift = follower_share_and_lift(synthetic.interactions(sequence_weight=0))
    assert lift < 2


def ndcg_at_10(dataset, scores_fn):
    """Test NDCG@10 of leave-one-out, seen items filtered, ties at their worst rank."""
    split = data.leave_one_out(dataset)
    gains = []
    for user, end, target in zip(*split.test, strict=True):
        history = dataset.items[dataset.offsets[user] : end]
        scores = scores_fn(history).astype(float)
        scores[0] = scores[history] = -np.inf
        rank = np.sum(scores >= scores[target])
        gains.append(1 / np.log2(1 + rank) if rank <= 10 else 0)
    return np.mean(gains)


def test_order_is_worth_more_than_popularity_and_not_everything(dataset):
    follows = np.zeros((1001, 1001))
    count = np.zeros(1001)
    for history in histories(dataset):
        np.add.at(follows, (history[:-3], history[1:-2]), 1)
        np.add.at(count, history[:-2], 1)
    popularity = ndcg_at_10(dataset, lambda history: count)
    # Popularity breaks the ties of an item's followers.
    markov = ndcg_at_10(dataset, lambda h: follows[h[-1]] + count / count.sum())
    assert markov > 3 * popularity
    random_order = np.sum(1 / np.log2(np.arange(2, 12))) / 1000
    assert popularity > 3 * random_order
    assert markov < 0.5


def test_times_increase_within_each_user(dataset):
    is_first = np.zeros(dataset.num_interactions, bool)
    is_first[dataset.offsets[:-1]] = True
    assert np.all((np.diff(dataset.timestamps) > 0) | is_first[1:])
    starts = dataset.timestamps[dataset.offsets[:-1]].astype("datetime64[s]")
    assert starts.min() >= np.datetime64("2024-01-01")
    assert starts.max() <= np.datetime64("2024-12-31")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_users": 0}, "num_users >= 1, got 0"),
        ({"min_length": 0}, "min_length=0"),
        ({"max_length": 501}, "max_length=501, num_items=1000"),
        ({"mean_length": 5}, "mean_length > min_length=5, got 5"),
        ({"mean_length": float("nan")}, "got nan"),
        ({"zipf_exponent": -1}, r"zipf_exponent in \[0, 2\], got -1"),
        ({"num_topics": 13}, r"num_topics in 1\.\.12 .*got 13"),
        ({"taste_concentration": 0}, "taste_concentration > 0, got 0"),
        ({"num_successors": 125}, "below 125 .*got 125"),
        ({"sequence_weight": 0.6}, "sum below 1, got sequence_weight=0.6"),
        ({"taste_weight": -0.1}, "taste_weight=-0.1"),
    ],
)
def test_an_argument_out_of_range_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        synthetic.interactions(**arguments)
