"""The files of configs/ against the paper's values, written out here once more."""

import ast
import pathlib
import runpy

import pytest

from jaxrec import config, experiment
from jaxrec.errors import InputError

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "configs"
# The table beside the paper's code: test HR@10, NDCG@10, training seconds, best epoch.
PUBLISHED = {
    "ml1m_bert4rec": "0.2843 0.1537 1409 197",
    "ml1m_sasrec_bce": "0.2500 0.1341 486 53",
    "ml1m_sasrec_ce": "0.3152 0.1821 540 63",
    "ml1m_sasrec_sampled_ce": "0.3159 0.1857 769 85",
    "ml20m_bert4rec": "0.2816 0.1703 14758 68",
    "ml20m_sasrec_bce": "0.2001 0.1067 2495 30",
    "ml20m_sasrec_ce": "0.2983 0.1833 9959 46",
    "ml20m_sasrec_sampled_ce": "0.3090 0.1872 4125 39",
    "steam_bert4rec": "0.1242 0.0662 4893 74",
    "steam_sasrec_bce": "0.0981 0.0506 2140 39",
    "steam_sasrec_ce": "0.1191 0.0641 1262 16",
    "steam_sasrec_sampled_ce": "0.1206 0.0652 1226 14",
    "beauty_bert4rec": "0.0338 0.0187 2325 87",
    "beauty_sasrec_bce": "0.0246 0.0126 521 26",
    "beauty_sasrec_ce": "0.0533 0.0327 332 6",
    "beauty_sasrec_sampled_ce": "0.0490 0.0295 296 8",
    "yelp_bert4rec": "0.0442 0.0223 10166 21",
    "yelp_sasrec_bce": "0.0228 0.0115 655 3",
    "yelp_sasrec_ce": "0.0482 0.0246 2505 3",
    "yelp_sasrec_sampled_ce": "0.0462 0.0237 1965 5",
}
# Without a published result: the paper's recurrent baseline, and a row of our own.
UNPUBLISHED = [
    f"{prefix}_{method}"
    for prefix in ("ml1m", "ml20m", "steam", "beauty", "yelp")
    for method in ("gru4rec", "sasrec_ce_exclude_window")
]
PAPER = [*PUBLISHED, *UNPUBLISHED]
# Prefix of the file: data set, window, width.
DATASETS = {
    "ml1m": ("ml-1m", 200, 64),
    "ml20m": ("ml-20m", 200, 256),
    "steam": ("steam", 50, 64),
    "beauty": ("beauty", 50, 64),
    "yelp": ("yelp", 50, 64),
}
SASREC = {
    "model.name": "sasrec",
    "model.num_layers": 2,
    "model.num_heads": 1,
    "model.dropout": 0.1,
    "model.num_positions": 200,
    "train.max_epochs": 100,
    "train.patience": 10,
}
METHODS = {
    "sasrec_ce": {**SASREC, "loss.name": "ce", "loss.exclude_window": False},
    "sasrec_ce_exclude_window": {
        **SASREC,
        "loss.name": "ce",
        "loss.exclude_window": True,
    },
    "sasrec_bce": {**SASREC, "loss.name": "bce", "loss.num_negatives": 1},
    "sasrec_sampled_ce": {
        **SASREC,
        "loss.name": "sampled_ce",
        "loss.num_negatives": 3000,
        "loss.exclude": "window",
    },
    "bert4rec": {
        "model.name": "bert4rec",
        "model.num_layers": 2,
        "model.num_heads": 2,
        "model.inner_width": 256,
        "model.dropout": 0.1,
        "model.attention_dropout": 0.1,
        "model.num_positions": 200,
        "loss.name": "ce",
        "train.max_epochs": 200,
        "train.patience": 20,
        "train.mask_probability": 0.2,
    },
    "gru4rec": {
        "model.name": "gru4rec",
        "model.num_layers": 1,
        "loss.name": "ce",
        "train.max_epochs": 100,
        "train.patience": 10,
    },
}
EVERYWHERE = {
    "data.split": "leave_one_out",
    "data.min_user": 1,
    "data.min_item": 1,
    "optim.name": "adam",
    "optim.learning_rate": 1e-3,
    "optim.b1": 0.9,
    "optim.b2": 0.999,
    "optim.eps": 1e-8,
    "optim.warmup_steps": 0,
    "optim.decay": "constant",
    "optim.clip_norm": None,
    "train.batch_size": 128,
    "train.seed": 0,
    "train.ema_decay": 0.0,
    "eval.batch_size": 256,
    "eval.metrics": ("hr@10", "ndcg@10", "mrr@10", "hr@100", "ndcg@100"),
    "eval.monitor": "ndcg@10",
    "eval.max_valid_users": 10_000,
    "eval.filter_seen": True,
}


def completed(stem):
    """A file's experiment with the defaults it relies on, as "section.option" keys."""
    sections = config.complete(
        config.read(FOLDER / f"{stem}.py"),
        experiment.targets(),
        supplied=experiment.SUPPLIED,
    )
    method = sections.pop("method")
    flat = {
        f"{s}.{k}": v for s, options in sections.items() for k, v in options.items()
    }
    return {"method": method, **flat}


def docstring(stem):
    text = ast.get_docstring(ast.parse((FOLDER / f"{stem}.py").read_text()))
    assert text
    return text


def test_every_file_is_known_here():
    assert {file.stem for file in FOLDER.glob("[!_]*.py")} == {
        *PAPER,
        "own_data",
        "quickstart",
    }


@pytest.mark.parametrize("stem", PAPER)
def test_a_paper_experiment_has_the_papers_values(stem):
    prefix, method = stem.split("_", maxsplit=1)
    dataset, max_length, width = DATASETS[prefix]
    expected = {
        "method": method,
        "data.name": dataset,
        "model.width": width,
        "train.max_length": max_length,
        **EVERYWHERE,
        **METHODS[method],
    }
    got = completed(stem)
    assert {key: got[key] for key in expected} == expected


@pytest.mark.parametrize("stem", [*PAPER, "quickstart"])
def test_a_docstring_names_its_own_command(stem):
    command = f"python -m jaxrec.train --config configs/{stem}.py"
    lines = [line.strip() for line in docstring(stem).splitlines()]
    assert [line for line in lines if "--config" in line] == [command]


@pytest.mark.parametrize("stem", PUBLISHED)
def test_a_docstring_has_the_papers_numbers(stem):
    hit_rate, ndcg, seconds, epoch = PUBLISHED[stem].split()
    assert (
        f"HR@10 {hit_rate}, NDCG@10 {ndcg}; trained in {seconds} s, best epoch {epoch}."
    ) in docstring(stem)


def test_the_quickstart_needs_no_download_and_fits_its_windows():
    got = completed("quickstart")
    assert got["data.name"] == "synthetic"
    assert got["train.max_length"] == got["model.num_positions"] == 50


def test_an_experiment_that_the_paper_has_not_is_named():
    paper_experiment = runpy.run_path(str(FOLDER / "_paper.py"))["experiment"]
    with pytest.raises(InputError, match="got 'ml-1m' and 'sasrec'"):
        paper_experiment("ml-1m", "sasrec")
    with pytest.raises(InputError, match="ml-20m.*got 'books' and 'bert4rec'"):
        paper_experiment("books", "bert4rec")
