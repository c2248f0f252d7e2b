"""A trained model judged once more, by code that shares no line with the evaluator.

The model's scores of every item for every user are saved; then the log is read, split,
filtered and ranked again in plain Python, one user and one item at a time, and compared
with what the run left behind: to the last user.
"""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import runs, synthetic, train

WINDOW, NUM_USERS = 8, 120
SETTINGS = {
    "loss": {"name": "ce"},
    "optim": {"name": "adam", "learning_rate": 3e-3},
    "train": {"batch_size": 32, "max_length": WINDOW, "max_epochs": 6, "seed": 1},
    "eval": {"batch_size": 50},
}
# Our scores are of other batches than the run's: products may differ in the last bits.
# Rivals nearer to the target than this may be counted on either side.
TOLERANCE = 1e-5


# The independent side: nothing of jaxrec below this line and above the next.


def read_log(path):
    """User -> items in the order of the file's lines."""
    log = {}
    with open(path) as lines:
        for line in lines:
            user, item = line.split()
            log.setdefault(int(user), []).append(int(item))
    return log


def judge(log, num_back, score_of):
    """User -> (best, worst rank that is possible) of the item `num_back` from the end.

    score_of: (user, item) -> its saved score.
    """
    catalogue = sorted({item for items in log.values() for item in items})
    ranks = {}
    for user, items in log.items():
        history, target = set(items[:-num_back]), items[-num_back]
        if target in history:
            ranks[user] = (len(catalogue) + 1,) * 2
            continue
        best = worst = 1
        for item in catalogue:
            if item == target or item in history:
                continue
            lead = score_of(user, item) - score_of(user, target)
            best += lead > TOLERANCE
            worst += lead >= -TOLERANCE
        ranks[user] = (best, worst)
    return ranks


def mean(metric, ranks, num_items):
    """A metric such as "ndcg@10" over users' ranks, by its definition.

    A rank past the catalogue is a miss, also where k is larger than the catalogue.
    """
    name, k = metric.split("@")
    gain = {
        "hr": lambda rank: 1.0,
        "ndcg": lambda rank: 1 / math.log2(rank + 1),
        "mrr": lambda rank: 1 / rank,
    }[name]
    last = min(int(k), num_items)
    return math.fsum(gain(rank) for rank in ranks if rank <= last) / len(ranks)


# The other side: a run of jaxrec, and the scores of its best epoch.


def write_log(path):
    """A synthetic log in which every eighth user's last item is also the first."""
    log = synthetic.interactions(
        num_users=NUM_USERS, num_items=90, mean_length=14.0, max_length=30, num_topics=4
    )
    item_I = log.items.copy()
    for u in range(0, log.num_users, 8):
        item_I[log.offsets[u + 1] - 1] = item_I[log.offsets[u]]
    users = np.repeat(np.arange(log.num_users) + 1, log.lengths)
    lines = [f"{u} {i}" for u, i in zip(users, item_I, strict=True)]
    path.write_text("\n".join(lines) + "\n")


def save_scores(workdir, path, part):
    """Scores of all users at once, each window alone in its row: float32 [U, items]."""
    experiment, params = runs.load(workdir)
    encoder, dataset = experiment.encoder, experiment.split.dataset
    is_cloze = encoder.objective == "cloze"
    tokens_UL = np.zeros((dataset.num_users, WINDOW), np.int32)
    holdout = getattr(experiment.split, part)
    assert holdout.user.tolist() == list(range(dataset.num_users))
    for user, end, _ in zip(*holdout, strict=True):
        window = dataset.items[dataset.offsets[user] : end][-(WINDOW - is_cloze) :]
        window = [*window, dataset.num_items + 1] if is_cloze else window
        tokens_UL[user, : len(window)] = window
    position_UL = np.broadcast_to(np.arange(WINDOW, dtype=np.int32), tokens_UL.shape)
    variables = {"params": params}
    hidden_ULD = encoder.apply(
        variables,
        jnp.asarray(tokens_UL),
        jnp.asarray(position_UL),
        jnp.asarray(tokens_UL > 0, jnp.int32),
        train=False,
    )
    last_U = (tokens_UL > 0).sum(axis=1) - 1
    hidden_UD = hidden_ULD[np.arange(len(last_U)), last_U]
    table_VD = encoder.apply(variables, method="table")
    np.savez(
        path,
        score_UV=np.asarray(hidden_UD @ table_VD[1 : dataset.num_items + 1].T),
        user_U=dataset.user_ids,
        item_V=dataset.item_ids,
    )


@pytest.fixture(scope="module", params=["sasrec", "bert4rec"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    write_log(folder / "log.txt")
    settings = {
        **SETTINGS,
        "method": request.param,
        "data": {"path": str(folder / "log.txt")},
        "model": {"name": request.param, "width": 16, "num_layers": 1},
    }
    train.train(settings, folder / "run", log=lambda line: None)
    return folder


@pytest.mark.parametrize(("part", "num_back"), [("test", 1), ("valid", 2)])
def test_agrees_to_the_last_user(run, part, num_back):
    log = read_log(run / "log.txt")
    save_scores(run / "run", run / "scores.npz", part)
    with np.load(run / "scores.npz") as saved:
        score_UV = saved["score_UV"].astype(float)
        row = {user: u for u, user in enumerate(saved["user_U"].tolist())}
        column = {item: v for v, item in enumerate(saved["item_V"].tolist())}
    bounds = judge(log, num_back, lambda u, i: score_UV[row[u], column[i]])
    assert len(bounds) == NUM_USERS and set(bounds) == set(row)

    with np.load(run / "run" / "ranks.npz") as ranks:
        found = {u: ranks[f"{part}_filtered"][row[u]] for u in bounds}
    wrong = {u: (found[u], of) for u, of in bounds.items() if not _within(found[u], of)}
    assert not wrong
    # The bounds are of use only where they are one number.
    assert sum(best == worst for best, worst in bounds.values()) >= 0.98 * NUM_USERS
    assert len(set(found.values())) > 20  # a right evaluator from a constant one

    reported = json.loads((run / "run" / "result.json").read_text())[part]
    assert set(reported) == {"hr@10", "hr@100", "ndcg@10", "ndcg@100", "mrr@10"}
    for name, value in reported.items():
        high, low = (
            mean(name, [of[i] for of in bounds.values()], len(column)) for i in (0, 1)
        )
        # 1e-6: the library sums in float32.
        assert low - 1e-6 <= value <= high + 1e-6


def _within(rank, bounds):
    return bounds[0] <= rank <= bounds[1]
