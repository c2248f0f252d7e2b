"""A made-up interaction log with a known law, for quick starts, tests and timings.

Axes of this file beside the house's: Z topics, J successors of an item. A place is an
index into the items sorted by topic, then by popularity.
"""

from typing import NamedTuple

import numpy as np

from jaxrec import data
from jaxrec.errors import InputError

GENRES = tuple(
    "jazz rock folk blues opera techno reggae metal soul country ambient gospel".split()
)
LENGTH_SIGMA = 0.8  # of the log of a user's length above the minimum
RANK_BLUR = 0.5  # of the log popularity rank, in the order of a topic's list
START_S, YEAR_S, DAY_S = 1_704_067_200, 31_536_000, 86_400  # from 2024-01-01 UTC


def interactions(
    *,
    seed: int = 0,
    num_users: int = 2000,
    num_items: int = 1000,
    mean_length: float = 35.0,
    min_length: int = 5,
    max_length: int = 200,
    zipf_exponent: float = 0.8,
    num_topics: int = 8,
    taste_concentration: float = 0.2,
    num_successors: int = 8,
    sequence_weight: float = 0.5,
    taste_weight: float = 0.4,
) -> data.Dataset:
    """A seeded log whose next item follows from the last item, a taste and popularity.

    After item i, user u takes an item j that is new to them with

      p(j | i, u)  prop. to  a S(j | i) + b sum_z theta_uz Q_z(j) + (1 - a - b) Q(j)

      S(j | i)  prop. to 1 / k for the k-th successor of i
      Q_z(j)    prop. to Q(j) on the items of topic z; each item has one topic
      Q(j)      prop. to rank(j)^-zipf_exponent, the popularity of the catalogue
      theta_u   ~ Dirichlet(taste_concentration, ...), the taste of the user

    with a = sequence_weight, or 0 for the first item, and b = taste_weight. Each topic
    is a closed list, near items about as popular: the successors of an item are those
    after it in the list. A user has round(min_length + x) items, x log-normal with mean
    mean_length - min_length, cut at max_length. Ids are shuffled: their order tells
    neither popularity nor topic.

    At the defaults, leave-one-out, seen items filtered: ranking by popularity has a
    test NDCG@10 of about 0.04, counting which item follows which about 0.34.

    Args:
      seed: equal arguments give equal logs.
      num_users: users, named "user-0007" by their index from 0.
      num_items: items, named "item-0042 (jazz)" by their id from 1 and their topic.
      mean_length: items of a user on average, before max_length cuts.
      min_length: fewest items of a user.
      max_length: most items of a user, at most half of num_items.
      zipf_exponent: 0 is uniform. As nobody takes an item twice, the counts of the
        most popular items stay below the law's.
      num_topics: at most `len(GENRES)`.
      taste_concentration: near 0 a user keeps to one topic; large is no taste at all.
      num_successors: items that are likely to follow an item, of its topic.
      sequence_weight: a.
      taste_weight: b; a + b < 1, or a user could run out of items.

    Returns:
      The log, with timestamps in seconds that increase within each user.

    Raises:
      InputError: an argument is outside its range.
    """
    _require(num_users >= 1, f"num_users >= 1, got {num_users}")
    _require(
        1 <= min_length <= max_length <= num_items // 2,
        "1 <= min_length <= max_length <= num_items // 2 (or new items run short), got "
        f"{min_length=}, {max_length=}, {num_items=}",
    )
    _require(
        mean_length > min_length, f"mean_length > {min_length=}, got {mean_length}"
    )
    _require(0 <= zipf_exponent <= 2, f"zipf_exponent in [0, 2], got {zipf_exponent}")
    _require(
        1 <= num_topics <= len(GENRES),
        f"num_topics in 1..{len(GENRES)} (one genre each), got {num_topics}",
    )
    _require(
        taste_concentration > 0, f"taste_concentration > 0, got {taste_concentration}"
    )
    _require(
        1 <= num_successors < num_items // num_topics,
        f"num_successors from 1 to below {num_items // num_topics} (the items of a "
        f"topic), got {num_successors}",
    )
    _require(
        min(sequence_weight, taste_weight) >= 0 and sequence_weight + taste_weight < 1,
        f"weights >= 0 of sum below 1, got {sequence_weight=}, {taste_weight=}",
    )
    rng = np.random.default_rng(seed)
    length_U = _lengths(rng, num_users, mean_length, min_length, max_length)
    catalogue = _catalogue(rng, num_items, num_topics, num_successors, zipf_exponent)
    taste_UZ = rng.dirichlet(np.full(num_topics, taste_concentration), num_users)
    place_I = _walk(rng, catalogue, length_U, taste_UZ, (sequence_weight, taste_weight))
    place_V = rng.permutation(num_items)  # of item id v + 1
    id_V = np.argsort(place_V).astype(np.int32) + 1
    offsets = np.append(0, np.cumsum(length_U))
    names = _names("item", range(1, num_items + 1))
    topic_V = catalogue.topic_V[place_V]
    return data.Dataset(
        items=id_V[place_I],
        offsets=offsets,
        user_ids=np.array(_names("user", range(num_users))),
        item_ids=np.array(
            [f"{n} ({GENRES[z]})" for n, z in zip(names, topic_V, strict=True)]
        ),
        timestamps=_timestamps(rng, offsets),
        name="synthetic",
        report={"synthetic_seed": seed},
    )


def _require(is_right: bool, expected: str) -> None:
    if not is_right:
        raise InputError(f"synthetic.interactions needs {expected}.")


def _lengths(rng, num_users, mean_length, min_length, max_length):
    mu = np.log(mean_length - min_length) - LENGTH_SIGMA**2 / 2
    length_U = min_length + rng.lognormal(mu, LENGTH_SIGMA, num_users)
    return np.rint(np.minimum(length_U, max_length)).astype(np.int64)


class _Catalogue(NamedTuple):
    """The items' side of the law, by place."""

    topic_V: np.ndarray
    mass_V: np.ndarray  # cumulative Q: place v owns [mass_V[v - 1], mass_V[v])
    edge: np.ndarray  # [Z + 1], topic z owns [edge[z], edge[z + 1]) of the mass
    successor_VJ: np.ndarray  # places


def _catalogue(rng, num_items, num_topics, num_successors, zipf_exponent) -> _Catalogue:
    topic_of_rank = rng.permutation(np.arange(num_items) % num_topics)
    rank_V = np.argsort(topic_of_rank, kind="stable")
    topic_V = topic_of_rank[rank_V]
    weight_V = (rank_V + 1.0) ** -zipf_exponent
    mass_V = np.cumsum(weight_V) / weight_V.sum()
    start_Z = np.searchsorted(topic_V, np.arange(num_topics))
    end_Z = np.append(start_Z[1:], num_items) - 1
    # The lists are closed, so that every item is the j-th successor of just one: with
    # near items about as popular, following successors keeps the popularity law.
    blur_V = RANK_BLUR * rng.standard_normal(num_items)
    list_V = np.lexsort((np.log(rank_V + 1.0) + blur_V, topic_V))
    after_V = np.roll(list_V, -1)
    after_V[end_Z] = list_V[start_Z]
    successor_VJ = np.empty((num_items, num_successors), np.int32)
    successor_VJ[list_V, 0] = after_V
    for j in range(1, num_successors):
        successor_VJ[:, j] = successor_VJ[successor_VJ[:, j - 1], 0]
    return _Catalogue(topic_V, mass_V, np.append(0, mass_V[end_Z]), successor_VJ)


def _walk(rng, catalogue, length_U, taste_UZ, weights):
    """Places of all interactions [I], user after user, by rejection of repeats.

    A rejected draw is drawn again from the whole law, not from the part that it came
    from: so the law holds exactly, restricted to the items that are new to the user.
    """
    longest_first_U = np.argsort(-length_U, kind="stable")
    taste_UZ = taste_UZ[longest_first_U]
    steps = np.arange(length_U.max())
    num_active = np.searchsorted(-length_U[longest_first_U], -steps)
    place_LU = np.empty((len(steps), len(length_U)), np.int32)
    for step, active in zip(steps, num_active, strict=True):
        pending = np.arange(active)
        while pending.size:
            last_N = place_LU[step - 1, pending] if step else None
            place_N = _draw(rng, catalogue, last_N, taste_UZ[pending], weights)
            place_LU[step, pending] = place_N
            pending = pending[np.any(place_LU[:step, pending] == place_N, axis=0)]
    place_UL = place_LU.T[np.argsort(longest_first_U)]
    return place_UL[steps < length_U[:, None]]


def _draw(rng, catalogue, last_N, taste_NZ, weights):
    """A place from the law for each of N users; last_N is None at their first."""
    sequence_weight, taste_weight = weights
    num_draws = len(taste_NZ)
    part_N = rng.uniform(sequence_weight if last_N is None else 0, 1, num_draws)
    is_popular_N = part_N >= sequence_weight + taste_weight
    topic_N = _choose(rng, taste_NZ)
    low_N = np.where(is_popular_N, 0, catalogue.edge[topic_N])
    high_N = np.where(is_popular_N, 1, catalogue.edge[topic_N + 1])
    mass_N = low_N + (high_N - low_N) * rng.random(num_draws)
    place_N = np.searchsorted(catalogue.mass_V[:-1], mass_N, side="right")
    if last_N is None:
        return place_N
    num_successors = catalogue.successor_VJ.shape[1]
    weight_NJ = np.tile(1 / np.arange(1, num_successors + 1), (num_draws, 1))
    successor_N = catalogue.successor_VJ[last_N, _choose(rng, weight_NJ)]
    return np.where(part_N < sequence_weight, successor_N, place_N)


def _choose(rng, weight_NC):
    """A column of each row, with probability proportional to its weight."""
    cumulative_NC = np.cumsum(weight_NC, axis=1)
    threshold_N = cumulative_NC[:, -1] * rng.random(len(weight_NC))
    return (cumulative_NC[:, :-1] <= threshold_N[:, None]).sum(axis=1)


def _timestamps(rng, offsets):
    """Seconds, int64 [I]: users start within a year, a day lies between two items."""
    start_U = START_S + rng.integers(YEAR_S, size=len(offsets) - 1)
    elapsed_I = np.cumsum(1 + rng.exponential(DAY_S, offsets[-1]).astype(np.int64))
    return elapsed_I + np.repeat(start_U - elapsed_I[offsets[:-1]], np.diff(offsets))


def _names(kind, numbers):
    width = max(4, len(str(numbers[-1])))
    return [f"{kind}-{number:0{width}d}" for number in numbers]
