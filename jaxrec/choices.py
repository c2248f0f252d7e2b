"""Options that a config may leave to the data: the value "auto", and what it becomes.

A config that says `"width": "auto"` is completed once the log has been read: `resolve`
gives the value and the reason, and the run's config.json holds the value.

The rules keep to what the paper's data sets were given where they have a say (windows
of 200 on ML-1M and 50 on Beauty, a width of 64 up to 4.4 M interactions and of 256 on
the 20 M of ML-20M, 128 users a batch, 10,000 validation users), and elsewhere to what a
step then costs. The dropout of small logs is what `python -m benchmarks.defaults`
found, which sets each choice beside others on logs of several shapes.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxrec import signature
from jaxrec.data import Split

AUTO = "auto"

# The full softmax is the better loss on Beauty (54,542 items) and Yelp (148,415), the
# paper's largest catalogues, but it costs as many dot products a target.
FULL_SOFTMAX_ITEMS = 100_000
WINDOWS = (25, 50, 100, 200)
WIDTHS = ((5_000_000, 64), (15_000_000, 128))  # (fewer interactions than, width)
LARGEST_WIDTH = 256
SMALL_LOG = 500_000  # interactions
DROPOUT, DROPOUT_OF_SMALL = 0.1, 0.3
BATCH_SIZES = (16, 32, 64, 128)
STEPS_AN_EPOCH = 48  # those of ML-1M; patience is counted in epochs
VALID_ROWS = (1_000, 10_000)
VALID_SCORES = 2_000_000_000  # that a validation computes, while it has rows enough


class Shape(NamedTuple):
    """What the rules see of a log and its split.

    items, interactions: of the log.
    training_users: that train on two items or more.
    length_99: items that 99% of these train on at the most.
    valid_rows: held-out rows of the validation.
    """

    items: int
    interactions: int
    training_users: int
    length_99: int
    valid_rows: int


# Any valid shape: with it a config can be checked before its log is read.
NOMINAL = Shape(1000, 10_000, 1000, 10, 1000)


def shape(split: Split) -> Shape:
    """The Shape of a split."""
    dataset = split.dataset
    length_N = split.train_lengths[split.train_lengths >= 2]
    at_most = np.quantile(length_N, 0.99, method="higher") if len(length_N) else 1
    return Shape(
        items=dataset.num_items,
        interactions=dataset.num_interactions,
        training_users=len(length_N),
        length_99=int(at_most),
        valid_rows=len(split.valid.user),
    )


def window(shape: Shape, settings: Mapping) -> tuple[int, str]:
    """The smallest of WINDOWS that holds 99% of the training histories whole."""
    del settings
    found = next((w for w in WINDOWS if w >= shape.length_99), WINDOWS[-1])
    return found, (
        f"99% of the users train on at most {shape.length_99:,} items; the windows "
        f"are {', '.join(map(str, WINDOWS))}"
    )


def positions(shape: Shape, settings: Mapping) -> tuple[int, str]:
    """As many as the window has."""
    del shape
    return settings["train"]["max_length"], "the window"


def width(shape: Shape, settings: Mapping) -> tuple[int, str]:
    """By the interactions, which are what a table of that width is learnt from."""
    del settings
    fits = (w for limit, w in WIDTHS if shape.interactions < limit)
    steps = ", ".join(f"{w} below {limit / 1e6:g} M" for limit, w in WIDTHS)
    return next(fits, LARGEST_WIDTH), (
        f"{shape.interactions:,} interactions: {steps}, else {LARGEST_WIDTH}"
    )


def dropout(shape: Shape, settings: Mapping) -> tuple[float, str]:
    """The paper's, or more where there is less to learn from."""
    del settings
    is_small = shape.interactions < SMALL_LOG
    return DROPOUT_OF_SMALL if is_small else DROPOUT, (
        f"{shape.interactions:,} interactions: {DROPOUT_OF_SMALL} below "
        f"{SMALL_LOG:,}, else {DROPOUT}"
    )


def loss(shape: Shape, settings: Mapping) -> tuple[str, str]:
    """The full softmax while the catalogue allows it, else a sampled one."""
    del settings
    reason = f"{shape.items:,} items: a full softmax up to {FULL_SOFTMAX_ITEMS:,}"
    return "ce" if shape.items <= FULL_SOFTMAX_ITEMS else "sampled_ce", reason


def batch_size(shape: Shape, settings: Mapping) -> tuple[int, str]:
    """The largest of BATCH_SIZES that leaves an epoch its steps."""
    del settings
    users = shape.training_users
    fits = [b for b in BATCH_SIZES if -(-users // b) >= STEPS_AN_EPOCH]
    return max(fits, default=BATCH_SIZES[0]), (
        f"{users:,} users train: an epoch of at least {STEPS_AN_EPOCH} steps, by "
        f"batches of {', '.join(map(str, BATCH_SIZES))}"
    )


def valid_users(shape: Shape, settings: Mapping) -> tuple[int | None, str]:
    """As many rows as make VALID_SCORES scores, within VALID_ROWS; None for all."""
    del settings
    low, high = VALID_ROWS
    rows = min(high, max(low, VALID_SCORES // shape.items))
    if rows >= shape.valid_rows:
        return None, f"all {shape.valid_rows:,}: each has {shape.items:,} scores"
    return rows, f"of {shape.valid_rows:,}: each has {shape.items:,} scores"


Rule = Callable[[Shape, Mapping], tuple[Any, str]]
# (section, option) -> its rule, in the order that they build on each other.
RULES: dict[tuple[str, str], Rule] = {
    ("train", "max_length"): window,
    ("model", "num_positions"): positions,
    ("model", "width"): width,
    ("model", "dropout"): dropout,
    ("loss", "name"): loss,
    ("train", "batch_size"): batch_size,
    ("eval", "max_valid_users"): valid_users,
}


def resolve(settings: Mapping, shape: Shape) -> tuple[dict, dict[str, str]]:
    """The settings with a value for every "auto", and why it is that.

    A method that ends in "auto" for the loss is named after the chosen one.

    Args:
      settings: a complete config.
      shape: of its log.

    Returns:
      The config, to be completed once more, since a chosen loss has options; and
      "section.option=value" -> reason.

    >>> settings = {"method": "sasrec_ce", "train": {"max_length": "auto"}}
    >>> resolve(settings, NOMINAL._replace(length_99=30))[0]["train"]
    {'max_length': 50}
    """
    result = {k: dict(v) if k != "method" else v for k, v in settings.items()}
    reasons = {}
    for (section, option), rule in RULES.items():
        if result.get(section, {}).get(option) != AUTO:
            continue
        value, reason = rule(shape, result)
        result[section][option] = value
        reasons[f"{section}.{option}={value}"] = reason
        model = result.get("model", {}).get("name")
        if option == "name" and result.get("method") == f"{model}_{AUTO}":
            result["method"] = f"{model}_{value}"
    return result, reasons


def auto_loss() -> Any:
    """What `loss.name="auto"` names until the data is read. It has no options."""
    raise AssertionError("loss.name is resolved before it is called")


def with_auto(function: Callable, section: str) -> Callable:
    """The function, with "auto" among the types of those options that have a rule.

    >>> def optimise(*, width: int = 64): ...
    >>> options = signature.options(with_auto(optimise, "model"))
    >>> signature.describe(options["width"].hint)
    "int or 'auto'"
    """
    options = signature.options(function)
    open_ = [key for part, key in RULES if part == section and key in options]
    if not open_:
        return function

    @functools.wraps(function, updated=())
    def call(*args, **kwargs):
        return function(*args, **kwargs)

    own = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=options[name].hint | Literal["auto"])
        if name in open_
        else parameter
        for name, parameter in own.parameters.items()
    ]
    call.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    return call
