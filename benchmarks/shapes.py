"""Logs in the shape of the paper's data sets, and experiments on them, from nothing.

The cost of a step depends on how many users, items and interactions there are and on
how long the histories are, not on which item follows which. So the lengths here are
those of the files, by their quantiles, and items are drawn independently by popularity;
the benchmarks run where the files are not, and at any size of the catalogue.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxrec import batches, data, datasets, experiment, negatives
from jaxrec.data import Dataset, Split
from jaxrec.evaluator import Evaluator
from jaxrec.experiment import Experiment
from jaxrec.objectives import Items
from jaxrec.ranking import item_mask
from jaxrec.steps import Recipe


class Shape(NamedTuple):
    """What a data set's cost depends on, and what the paper trains it with.

    lengths: (share of the users, interactions that they have at the most).
    popularity: an item of rank r is drawn with probability prop. to r^-popularity.
    max_length, width: L and D of the paper's models; model: options beside them.
    """

    name: str
    num_users: int
    num_items: int
    lengths: tuple[tuple[float, int], ...]
    popularity: float
    max_length: int
    width: int = 64
    model: Mapping[str, Any] = MappingProxyType({})


# Lengths and exponents are read off the paper's files.
SHAPES = {
    "ml-1m": Shape(
        "ml-1m",
        6_040,
        3_416,
        (
            *((0.0, 18), (0.1, 27), (0.2, 37), (0.3, 51), (0.4, 70), (0.5, 96)),
            *((0.6, 126), (0.7, 173), (0.8, 253), (0.9, 400), (0.95, 556)),
            *((0.98, 783), (0.99, 906), (0.999, 1341), (1.0, 2277)),
        ),
        popularity=0.65,
        max_length=200,
    ),
    "beauty": Shape(
        "beauty",
        40_226,
        54_542,
        (
            *((0.0, 5), (0.35, 5), (0.45, 6), (0.6, 7), (0.7, 8), (0.8, 10)),
            *((0.9, 14), (0.95, 20), (0.98, 30), (0.99, 41), (0.995, 54)),
            *((0.999, 106), (1.0, 293)),
        ),
        popularity=0.82,
        max_length=50,
    ),
}

# For tests: compiled at once.
TINY = Shape(
    "tiny",
    60,
    50,
    ((0.0, 5), (1.0, 12)),
    popularity=0.65,
    max_length=8,
    width=8,
    model=MappingProxyType({"num_layers": 1, "dropout": 0.0}),
)
NAMED = {**SHAPES, "tiny": TINY}

# What the config files say, without the package that they need: a test compares.
SASREC: dict[str, Any] = {"name": "sasrec", "num_positions": 200}
BERT4REC: dict[str, Any] = {"name": "bert4rec", "num_positions": 200}
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sasrec_ce": (SASREC, {"name": "ce"}),
    "sasrec_sampled_ce": (SASREC, {"name": "sampled_ce", "num_negatives": 3000}),
    "sasrec_bce": (SASREC, {"name": "bce", "num_negatives": 1}),
    "bert4rec": (BERT4REC, {"name": "ce"}),
}


def settings(shape: Shape, method: str, **changes: Mapping[str, Any]) -> dict:
    """The paper's config of a method, with changes by section.

    >>> found = settings(SHAPES["beauty"], "sasrec_ce", model={"width": 128})
    >>> found["model"]["width"], found["train"]
    (128, {'max_length': 50})
    """
    model, loss = METHODS[method]
    found: dict[str, Any] = {
        "method": method,
        "data": {"name": shape.name},
        "model": {**model, "width": shape.width, **shape.model},
        "loss": loss,
        "optim": {"name": "adam"},
        "train": {"max_length": shape.max_length},
        "eval": {"max_valid_users": 10_000},
    }
    if method == "bert4rec":
        found["train"] |= {"max_epochs": 200, "patience": 20}
    for section, options in changes.items():
        found[section] = {**found[section], **options}
    return found


def made_log(shape: Shape, *, num_users: int | None = None, seed: int = 0) -> Dataset:
    """A log of the shape's lengths and popularity; items may repeat.

    Args:
      num_users: of the shape, if not given; the lengths keep their law.
    """
    num_users = num_users or shape.num_users
    rng = np.random.default_rng(seed)
    share, most = np.array(shape.lengths).T
    place_U = rng.permutation(num_users) + 0.5
    length_U = np.rint(np.interp(place_U / num_users, share, most)).astype(np.int64)
    mass_V = np.cumsum(np.arange(1, shape.num_items + 1.0) ** -shape.popularity)
    draw_I = rng.random(length_U.sum()) * mass_V[-1]
    rank_I = np.searchsorted(mass_V[:-1], draw_I, side="right")
    return Dataset(
        items=(1 + rng.permutation(shape.num_items)[rank_I]).astype(np.int32),
        offsets=np.append(0, np.cumsum(length_U)),
        user_ids=np.arange(num_users),
        item_ids=np.arange(1, shape.num_items + 1),
        name=shape.name,
    )


def find_split(shape: Shape) -> tuple[Split, str]:
    """The split of $JAXREC_DATA's file, or of a made log; and which it is."""
    path = Path(os.environ.get("JAXREC_DATA", "."), f"{shape.name}.txt")
    if path.is_file():
        return datasets.load(name=shape.name, path=str(path)), "the file"
    return data.leave_one_out(made_log(shape)), "lengths of the file"


def on_split(split: Split, chosen: Mapping[str, Any]) -> Experiment:
    """The experiment of a config on a split in memory; any item may be a negative."""
    parts = experiment.assemble(chosen)
    encoder = parts.make(num_items=split.dataset.num_items)
    longest = experiment.longest_window(split, encoder)
    recipe = Recipe(
        encoder=encoder,
        objective=parts.objective,
        optimiser=parts.optimiser,
        max_length=min(parts.training.max_length, longest),
        history_length=int(split.train_lengths.max()),
        seed=parts.training.seed,
        mask_probability=parts.training.mask_probability,
        ema_decay=parts.training.ema_decay,
    )
    log = batches.log_on_device(split.dataset)
    is_item_V = item_mask(table_rows(encoder), encoder.num_items)
    return Experiment(
        config=parts.config,
        split=split,
        training=parts.training,
        evaluation=parts.evaluation,
        recipe=recipe,
        log=log,
        items=Items(is_item_V, negatives.make_pool(np.asarray(is_item_V))),
        evaluator=Evaluator(
            encoder,
            split,
            log,
            max_length=recipe.max_length,
            batch_size=parts.evaluation.batch_size,
        ),
    )


def with_recipe(built: Experiment, recipe: Recipe) -> Experiment:
    """The experiment with another recipe for its steps."""
    return dataclasses.replace(built, recipe=recipe)


def table_rows(encoder: Any) -> int:
    """V: PAD, the items and, of a cloze encoder, MASK."""
    return encoder.num_items + (2 if encoder.objective == "cloze" else 1)
