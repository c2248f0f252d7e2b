"""What "auto" becomes: rules at their limits, on the paper's shapes, and in a run."""

import numpy as np
import pytest

from jaxrec import choices, config, datasets, experiment, synthetic
from jaxrec.choices import NOMINAL
from jaxrec.data import Dataset, leave_one_out
from jaxrec.errors import InputError

OPEN = {
    "method": "sasrec_auto",
    "data": {"name": "synthetic"},
    "model": {
        "name": "sasrec",
        "width": "auto",
        "num_positions": "auto",
        "dropout": "auto",
    },
    "loss": {"name": "auto"},
    "optim": {"name": "adam"},
    "train": {"batch_size": "auto", "max_length": "auto"},
    "eval": {"max_valid_users": "auto"},
}


def resolved(**fields) -> dict:
    result, _ = choices.resolve(OPEN, NOMINAL._replace(**fields))
    return {
        "method": result["method"],
        "loss": result["loss"]["name"],
        "window": result["train"]["max_length"],
        "positions": result["model"]["num_positions"],
        "width": result["model"]["width"],
        "dropout": result["model"]["dropout"],
        "batch": result["train"]["batch_size"],
        "valid": result["eval"]["max_valid_users"],
    }


@pytest.mark.parametrize(
    "choice, field, expected",
    [
        ("loss", "items", {100_000: "ce", 100_001: "sampled_ce"}),
        ("method", "items", {100_000: "sasrec_ce", 100_001: "sasrec_sampled_ce"}),
        (
            "window",
            "length_99",
            {1: 25, 25: 25, 26: 50, 50: 50, 51: 100, 101: 200, 9999: 200},
        ),
        ("positions", "length_99", {25: 25, 26: 50, 9999: 200}),
        (
            "width",
            "interactions",
            {9: 64, 4_999_999: 64, 5_000_000: 128, 15_000_000: 256, 10**9: 256},
        ),
        ("dropout", "interactions", {9: 0.3, 499_999: 0.3, 500_000: 0.1, 10**9: 0.1}),
        # 47 full batches and one user make 48 steps.
        (
            "batch",
            "training_users",
            {0: 16, 1504: 16, 1505: 32, 3009: 64, 6016: 64, 6017: 128, 10**8: 128},
        ),
        ("valid", "valid_rows", {10_000: None, 10_001: 10_000, 10**6: 10_000}),
    ],
)
def test_rules_at_their_limits(choice, field, expected):
    got = {value: resolved(**{field: value})[choice] for value in expected}
    assert got == expected


@pytest.mark.parametrize(
    "items, rows", [(200_000, 10_000), (400_000, 5_000), (10**7, 1_000)]
)
def test_fewer_validation_rows_for_a_large_catalogue(items, rows):
    """At most 2e9 scores, while that leaves a thousand rows."""
    assert resolved(items=items, valid_rows=10**6)["valid"] == rows


def test_a_chosen_value_has_its_reason():
    _, reasons = choices.resolve(OPEN, NOMINAL._replace(items=54_542))
    assert list(reasons) == [
        "train.max_length=25",
        "model.num_positions=25",
        "model.width=64",
        "model.dropout=0.3",
        "loss.name=ce",
        "train.batch_size=16",
        "eval.max_valid_users=None",
    ]
    assert reasons["loss.name=ce"] == "54,542 items: a full softmax up to 100,000"


def test_what_is_given_stays():
    given = {**OPEN, "method": "mine", "train": {"batch_size": 7, "max_length": 300}}
    result, reasons = choices.resolve(given, NOMINAL)
    assert result["train"] == {"batch_size": 7, "max_length": 300}
    assert result["model"]["num_positions"] == 300  # the window, whoever chose it
    assert result["method"] == "mine"
    assert "train.max_length=300" not in reasons
    assert OPEN["model"]["num_positions"] == "auto"  # the caller's is left alone


def test_shape_of_a_split():
    """199 users train on 2 items, one on 30, one on 1, and one on nothing new."""
    lengths = [4] * 199 + [32, 3, 1]
    log = Dataset(
        items=np.ones(sum(lengths), np.int32),
        offsets=np.append(0, np.cumsum(lengths)),
        user_ids=np.arange(202),
        item_ids=np.arange(7),
    )
    # 99% of 200 users is 198 of them; the next one has 2 items too.
    assert choices.shape(leave_one_out(log)) == (7, 832, 200, 2, 201)


@pytest.mark.parametrize(
    "name, window, rows", [("ml-1m", 200, None), ("beauty", 50, 10_000)]
)
def test_the_papers_shapes_get_the_papers_values(data_dir, name, window, rows):
    split = datasets.load(path=str(data_dir / f"{name}.txt"))
    result, _ = choices.resolve(OPEN, choices.shape(split))
    assert result["loss"] == {"name": "ce"}
    assert result["model"]["width"] == 64
    assert result["train"] == {"batch_size": 128, "max_length": window}
    assert result["eval"]["max_valid_users"] == rows


def test_an_experiment_has_values_and_reasons():
    built = experiment.build(OPEN)
    split = leave_one_out(synthetic.interactions(seed=0))
    expected, reasons = choices.resolve(OPEN, choices.shape(split))
    for section, options in expected.items():
        if section == "method":
            assert built.config["method"] == options == "sasrec_ce"
        else:
            assert {k: built.config[section][k] for k in options} == options
    assert built.chosen == reasons and len(reasons) == 7
    assert built.training.max_length == built.encoder.num_positions == 200
    assert built.config["loss"]["include_padding"] is False  # completed
    # A config without "auto" is what it was.
    again = experiment.build(built.config)
    assert again.config == built.config and again.chosen == {}


def test_the_command_line_takes_auto_for_options_that_have_a_rule():
    def override(*options):
        return config.override(
            {**OPEN, "method": "sasrec_ce", "loss": {"name": "ce"}},
            options,
            experiment.targets(),
            supplied=experiment.SUPPLIED,
        )

    assert override("--config.loss.name=auto")["method"] == "sasrec_auto"
    changed = override("--config.model.name=bert4rec", "--config.model.width=32")
    assert changed["model"]["width"] == 32
    assert changed["model"]["num_positions"] == "auto"
    assert "num_positions" not in override("--config.model.name=gru4rec")["model"]
    with pytest.raises(InputError, match="width must be int or 'auto': got 'wide'"):
        override("--config.model.width=wide")
    with pytest.raises(InputError, match="num_layers must be int: got 'auto'"):
        override("--config.model.num_layers=auto")
    with pytest.raises(InputError, match="max_valid_users must be int or none or 'a"):
        override("--config.eval.max_valid_users=many")


def test_what_is_wrong_whatever_the_data_is_said_before_it_is_read():
    wrong = {**OPEN, "data": {"path": "nowhere.csv"}}
    wrong["model"] = {**OPEN["model"], "num_heads": 5}
    with pytest.raises(InputError, match="multiple of model.num_heads: got width=64"):
        experiment.build(wrong)
    wrong["model"] = OPEN["model"]
    with pytest.raises(InputError, match="no file nowhere.csv"):
        experiment.build(wrong)
