"""Sampled ranks: among the sample, the full rank among all candidates, by their law."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from jaxrec import experiment, sampled, steps
from jaxrec.data import Holdout
from jaxrec.errors import InputError

SETTINGS = {
    "method": "sasrec_ce",
    "data": {"name": "toy"},
    "model": {"name": "sasrec", "width": 8, "num_layers": 1},
    "loss": {"name": "ce"},
    "optim": {"name": "adam"},
    "train": {"max_length": 5},
    "eval": {"batch_size": 16},
}


@pytest.fixture(scope="module")
def model():
    """An experiment of 40 users and 25 items, and parameters that nothing trained."""
    rng = np.random.default_rng(1)
    rows = [
        (f"u{u}", f"i{item:02d}", t)
        for u in range(40)
        for t, item in enumerate(
            rng.choice(25, size=int(rng.integers(3, 9)), replace=False)
        )
    ]
    frame = pd.DataFrame(rows, columns=["user", "item", "timestamp"])
    built = experiment.build(SETTINGS, frame)
    return built, jax.jit(lambda: steps.init_state(built.recipe).params)()


@pytest.mark.parametrize("law", sampled.LAWS)
def test_sampled_ranks_are_among_the_sample(model, law):
    experiment, params = model
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


def test_sampled_ranks_say_when_there_are_too_few_candidates(model):
    experiment, params = model
    with pytest.raises(InputError, match="100 items.*has 25.*--sampled"):
        sampled.sampled_ranks(
            experiment, params, experiment.split.test, num_negatives=100
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
