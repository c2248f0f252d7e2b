"""From a config to the objects that it names: data, encoder, objective, optimiser.

Each section of a config is the keyword arguments of one callable; `targets` says which.
The same `build` serves training, evaluation and recommendation.
"""

import dataclasses
import importlib.util
import inspect
import operator
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrec import (
    batches,
    choices,
    config,
    datasets,
    metrics,
    models,
    negatives,
    objectives,
    optim,
    ordering,
)
from jaxrec.data import Split, spans
from jaxrec.errors import InputError
from jaxrec.evaluator import Evaluator
from jaxrec.objectives import Items, Objective
from jaxrec.ranking import item_mask
from jaxrec.steps import Recipe


@dataclasses.dataclass(frozen=True)
class Training:
    """Section `train`: the loop.

    Attributes:
      seed: of parameters, order, dropout, masks and negatives.
      batch_size: users a step.
      stratify: mix users of all lengths in every batch, so that none takes more of the
        encoder than another; False for batches drawn without a look at lengths.
      max_length: L, the window that the encoder sees (its last items, for training and
        ranking alike).
      max_epochs: epochs at the most; an epoch is one window of every user.
      patience: epochs without a better validation metric before the run stops.
      mask_probability: of hiding an item, cloze only.
      ema_decay: of a moving average of the parameters, which is then what is ranked and
        kept; 0 for none.
      steps_per_dispatch: steps that the device does in one call, at the most; None for
        as many as are some seconds of work, up to 64. A run is saved, and stopped by
        Ctrl-C, between calls.
      checkpoint_every_s: seconds between checkpoints, at the least; one is written at
        an interruption and at the end in any case.
      tensorboard: write TensorBoard events too.
      wandb: write a run of Weights & Biases too.
      compile_cache: keep compiled programs in the user's cache, so that the same shapes
        start at once another time.
      show_users: users whose recommendations are shown at the end.
    """

    seed: int = 0
    batch_size: int = 128
    stratify: bool = True
    max_length: int = 200
    max_epochs: int = 100
    patience: int = 10
    mask_probability: float = 0.2
    ema_decay: float = 0.0
    steps_per_dispatch: int | None = None
    checkpoint_every_s: float = 30.0
    tensorboard: bool = False
    wandb: bool = False
    compile_cache: bool = False
    show_users: int = 0

    def __post_init__(self):
        for name in ("batch_size", "max_length", "max_epochs", "patience"):
            require(f"train.{name}", getattr(self, name), ">= 1")
        if self.steps_per_dispatch is not None:
            require("train.steps_per_dispatch", self.steps_per_dispatch, ">= 1")
        require("train.mask_probability", self.mask_probability, "> 0", "< 1")
        require("train.ema_decay", self.ema_decay, ">= 0", "< 1")
        require("train.checkpoint_every_s", self.checkpoint_every_s, ">= 0")
        require("train.seed", self.seed, ">= 0")
        require("train.show_users", self.show_users, ">= 0")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Section `eval`: ranking.

    Attributes:
      batch_size: held-out rows ranked at a time.
      metrics: names such as "ndcg@10".
      monitor: the metric that stops training and chooses the best epoch; it is
        reported besides where it is none of `metrics`.
      max_valid_users: validation rows, drawn once by the seed; None for all.
      filter_seen: rank among the items that the user has not had, as the paper does.
    """

    batch_size: int = 256
    metrics: tuple[str, ...] = ("hr@10", "ndcg@10", "mrr@10", "hr@100", "ndcg@100")
    monitor: str = "ndcg@10"
    max_valid_users: int | None = None
    filter_seen: bool = True

    def __post_init__(self):
        require("eval.batch_size", self.batch_size, ">= 1")
        if self.max_valid_users is not None:
            require("eval.max_valid_users", self.max_valid_users, ">= 1")
        for name in self.reported:
            metrics.parse(name)

    @property
    def reported(self) -> tuple[str, ...]:
        """The metrics, and the monitor at their end where it is none of them."""
        return tuple(dict.fromkeys((*self.metrics, self.monitor)))


def require(option: str, value: float, *bounds: str) -> None:
    """Raises InputError unless the option's value keeps every bound, such as ">= 1"."""
    comparisons = {">=": operator.ge, ">": operator.gt, "<": operator.lt}
    for bound in bounds:
        sign, limit = bound.split()
        if not comparisons[sign](value, float(limit)):
            raise InputError(f"{option} must be {' and '.join(bounds)}: got {value}.")


def targets() -> dict[str, Callable[[Mapping], Callable]]:
    """Section of a config -> how to find the callable whose arguments it holds."""

    def named(section: str, table: Mapping[str, Callable]):
        def find(given: Mapping) -> Callable:
            function = config.resolve(given["name"], table, what=section)
            return choices.with_auto(function, section)

        return find

    losses = {**objectives.OBJECTIVES, choices.AUTO: choices.auto_loss}
    return {
        "data": lambda section: datasets.load,
        "model": named("model", models.ENCODERS),
        "loss": named("loss", losses),
        "optim": named("optim", optim.OPTIMISERS),
        "train": lambda section: choices.with_auto(Training, "train"),
        "eval": lambda section: choices.with_auto(Evaluation, "eval"),
    }


# What `build` passes itself: no option of a config.
SUPPLIED = {"data": ("frame",), "model": ("num_items",)}


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """All that training, ranking and recommending share; see `build`.

    Its config has a value in place of every "auto"; `chosen` has the reasons for them.
    """

    config: dict
    split: Split
    training: Training
    evaluation: Evaluation
    recipe: Recipe
    log: batches.Log
    items: Items
    evaluator: Evaluator
    chosen: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def encoder(self) -> Any:
        return self.recipe.encoder


def build(settings: Mapping, frame: Any = None) -> Experiment:
    """The experiment that a config describes, its data loaded.

    Args:
      settings: sections as in the files of configs/; what they leave out is the
        default of the callable they configure.
      frame: a table of interactions in memory, in place of data.name or data.path.

    Raises:
      InputError: an option or a value is wrong, or the data does not allow it.
    """
    settings = config.complete(settings, targets(), supplied=SUPPLIED)
    # What is wrong whatever the data is said before it is read.
    if assemble(choices.resolve(settings, choices.NOMINAL)[0]).training.compile_cache:
        keep_compiled(datasets.cache() / "compiled")
    split = datasets.load(**settings["data"], frame=frame)
    resolved, chosen = choices.resolve(settings, choices.shape(split))
    settings, training, evaluation, objective, optimiser, make = assemble(resolved)
    encoder = make(num_items=split.dataset.num_items)
    check_window(encoder, training)
    recipe = Recipe(
        encoder=encoder,
        objective=objective,
        optimiser=optimiser,
        max_length=min(training.max_length, longest_window(split, encoder)),
        history_length=int(split.train_lengths.max()),
        seed=training.seed,
        mask_probability=training.mask_probability,
        ema_decay=training.ema_decay,
    )
    log = batches.log_on_device(split.dataset)
    items = trainable_items(split, encoder)
    check_negatives(split, recipe)
    evaluator = Evaluator(
        encoder,
        split,
        log,
        max_length=recipe.max_length,
        batch_size=evaluation.batch_size,
    )
    return Experiment(
        settings, split, training, evaluation, recipe, log, items, evaluator, chosen
    )


def keep_compiled(folder: Path) -> None:
    """Tells JAX to keep what it compiles in the folder, and to look there first.

    Who can write to the folder can change the programs: it must be the user's own.
    """
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Below this a program is compiled as fast as it is found.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


class Parts(NamedTuple):
    """What a config names, but the data; `make` takes num_items."""

    config: dict
    training: Training
    evaluation: Evaluation
    objective: Objective
    optimiser: Any
    make: Callable[..., Any]


def assemble(settings: Mapping) -> Parts:
    """The parts of a config without "auto", checked as far as they go without data.

    Raises:
      InputError: an option or a value is wrong.
    """
    settings = config.complete(settings, targets(), supplied=SUPPLIED)
    call = {section: find(settings[section]) for section, find in targets().items()}
    options = {
        section: {
            key: value for key, value in settings[section].items() if key != "name"
        }
        if section in config.NAMED
        else settings[section]
        for section in call
    }
    training = call["train"](**options["train"])
    evaluation = call["eval"](**options["eval"])
    check_call("loss", call["loss"], options["loss"])
    objective = call["loss"](**options["loss"])
    optimiser = call["optim"](**options["optim"])
    check_model(options["model"])
    if not isinstance(objective, Objective):
        raise InputError(
            f"loss.name={settings['loss']['name']!r} must be a function that returns "
            f"an objectives.Objective: got {type(objective).__name__}."
        )
    for option, package in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        if getattr(training, option) and importlib.util.find_spec(package) is None:
            raise InputError(
                f"train.{option} needs {package}: pip install 'jaxrec[{option}]'."
            )
    make = partial(call["model"], **options["model"])
    return Parts(settings, training, evaluation, objective, optimiser, make)


def check_call(section: str, function: Callable, options: Mapping[str, Any]) -> None:
    """Raises InputError if the section's function wants what a config cannot give."""
    try:
        inspect.signature(function).bind(**options)
    except TypeError as error:
        raise InputError(
            f"{section}.name must be a function of keyword arguments alone: "
            f"{function.__module__}:{function.__name__} has a {error}."
        ) from None


def longest_window(split: Split, encoder) -> int:
    """The longest window that any part of the split can fill."""
    longest = split.train_lengths.max()
    for holdout in (split.valid, split.test):
        history_N = holdout.end - split.dataset.offsets[holdout.user]
        longest = max(longest, history_N.max(initial=1))
    return int(longest) + (encoder.objective == "cloze")


def check_model(options: Mapping[str, Any]) -> None:
    """Raises InputError if a size, a rate or a dtype of the model is out of range."""
    dtype = options.get("dtype", "float32")
    if dtype not in ("float32", "bfloat16"):
        raise InputError(f"model.dtype must be 'float32' or 'bfloat16': got {dtype!r}.")
    for name, value in options.items():
        if name in ("dropout", "attention_dropout"):
            require(f"model.{name}", value, ">= 0", "< 1")
        if name in ("width", "num_layers", "num_heads", "inner_width", "num_positions"):
            require(f"model.{name}", value, ">= 1")
    if options.get("width", 0) % options.get("num_heads", 1):
        raise InputError(
            "model.width must be a multiple of model.num_heads: got "
            f"width={options['width']}, num_heads={options['num_heads']}."
        )


def check_window(encoder, training: Training) -> None:
    """Raises InputError if windows would outgrow the encoder's position table."""
    positions = getattr(encoder, "num_positions", None)
    if positions is not None and training.max_length > positions:
        raise InputError(
            f"train.max_length must be at most model.num_positions={positions}: got "
            f"{training.max_length}. Set model.num_positions as well."
        )


def trainable_items(split: Split, encoder) -> Items:
    """The catalogue and the pool of negatives: the items of the training part."""
    table_rows = encoder.num_items + (2 if encoder.objective == "cloze" else 1)
    counts_V = np.pad(split.train_item_counts(), (0, table_rows))[:table_rows]
    pool = negatives.make_pool(counts_V > 0)
    return Items(item_mask(table_rows, encoder.num_items), pool)


def check_negatives(split: Split, recipe: Recipe) -> None:
    """Raises InputError if some sequence has too few items it has not seen."""
    num_negatives = recipe.objective.num_negatives
    if num_negatives == 0:
        return
    dataset = split.dataset
    offset_U, end_U = dataset.offsets[:-1], split.train_end
    if recipe.objective.exclude == "window":
        extra = 1 if recipe.encoder.objective == "next_item" else 0
        offset_U = np.maximum(offset_U, end_U - recipe.max_length - extra)
    length_U = end_U - offset_U
    user_I = np.repeat(np.arange(dataset.num_users), length_U)
    item_I = dataset.items[spans(offset_U, length_U)]
    is_new_I = ~ordering.is_repeat(user_I * (dataset.num_items + 1) + item_I)
    distinct_U = np.bincount(user_I[is_new_I], minlength=dataset.num_users)
    num_pool = int((split.train_item_counts() > 0).sum())
    negatives.check_enough(num_pool - distinct_U, dataset.user_ids, num_negatives)
