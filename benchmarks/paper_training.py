"""Where a result differs from the published one: what does the paper's code give here?

    python -m benchmarks.paper_training --dataset beauty --method sasrec_bce \\
        --paper-repo ../sasrec-bert4rec-recsys23

Trains the model of a checkout of the paper's code by that code's own data sets, collate
function, loss and optimiser (whose code this runs). After every epoch its weights are
taken over (`jaxrec.torch_weights`) and rank the validation users that our run of the
seed has; patience, the limit of epochs and the test are that run's too. So what differs
is the training alone. The same command goes on with an interrupted run, as if it had
not been interrupted.

Needs torch, pytorch-lightning, transformers and pyyaml.
"""

import importlib.util
import json
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import measure, options, records, reproduce
from benchmarks.published import PUBLISHED
from jaxrec import datasets, evaluator, experiment, record, torch_weights
from jaxrec.command import run_command
from jaxrec.data import Holdout
from jaxrec.errors import InputError
from jaxrec.experiment import Experiment

QUESTION = "what does the paper's own code give on this machine"
PACKAGES = ("torch", "pytorch_lightning", "transformers", "yaml")
METRICS = ("hr@10", "ndcg@10")
NOTES = (
    "Metrics of the paper's code are those of its weights, ranked by jaxrec on the "
    "same users: the validation users of the seed, and all users for the test.",
    "jaxrec: the committed run of the seed (results/reproduce/), in which another "
    "random generator draws the weights, batches, negatives and dropout.",
)


class Paper:
    """The paper's training of a method, epoch by epoch.

    Attributes:
      values: the metrics on validation after each epoch.
      best: state dict of the best epoch so far.
    """

    def __init__(self, task: types.SimpleNamespace, seed: int):
        import torch  # pyright: ignore[reportMissingImports]

        from benchmarks.drivers import paper

        torch.manual_seed(seed)
        np.random.seed(seed)  # its negatives
        self.torch = torch
        self.module, self.loader, _ = paper.training(task)
        self.optimiser = self.module.configure_optimizers()
        self.values: list[dict[str, float]] = []
        self.best: dict[str, Any] = {}

    @property
    def curve(self) -> list[float]:
        """NDCG@10 on validation after each epoch."""
        return [values["ndcg@10"] for values in self.values]

    @property
    def best_epoch(self) -> int:
        """From 1; the first of equal ones, 0 before any."""
        return int(np.argmax(self.curve)) + 1 if self.values else 0

    def train_epoch(self) -> None:
        """One pass over the users, as Lightning's trainer makes it."""
        self.module.train()
        for i, batch in enumerate(self.loader):
            self.optimiser.zero_grad()
            self.module.training_step(batch, i).backward()
            self.optimiser.step()

    def weights(self) -> dict[str, Any]:
        """A copy of its model's state dict."""
        state = self.module.model.state_dict()
        return {name: x.detach().clone() for name, x in state.items()}

    def note(self, values: dict[str, float]) -> None:
        """Takes the metrics of the epoch that has just been trained."""
        self.values.append(values)
        if self.best_epoch == len(self.values):
            self.best = self.weights()

    def random(self) -> dict[str, Any]:
        """Where the two generators are: of weights, batches and dropout, and of
        negatives."""
        kind, key, *rest = np.random.get_state(legacy=True)
        return {
            "torch": self.torch.get_rng_state(),
            "numpy": [kind, np.asarray(key).tolist(), *rest],
        }

    def save(self, path: Path) -> None:
        """Writes all that `restore` needs; a file that is whole or not there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "module": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "values": self.values,
            "best": self.best,
            "random": self.random(),
        }
        part = path.with_suffix(".part")
        self.torch.save(state, part)
        part.replace(path)

    def restore(self, path: Path) -> None:
        """Goes on with the run that was saved there, if there is one."""
        if not path.exists():
            return
        state = self.torch.load(path, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.values, self.best = state["values"], state["best"]
        kind, key, *rest = state["random"]["numpy"]
        np.random.set_state((kind, np.array(key, np.uint32), *rest))
        self.torch.set_rng_state(state["random"]["torch"])


class Judge(NamedTuple):
    """Ranks held-out rows by a state dict of the paper's code."""

    built: Experiment

    def __call__(self, weights: dict[str, Any], holdout: Holdout) -> dict[str, float]:
        built = self.built
        heads = built.config["model"]["num_heads"]
        params = torch_weights.load(weights, num_heads=heads).params
        ranks = built.evaluator.ranks(params, built.evaluator.cut(holdout))
        return evaluator.summary(
            ranks,
            METRICS,
            filter_seen=built.evaluation.filter_seen,
            num_items=built.split.dataset.num_items,
        )


def fit(
    paper: Paper,
    judge: Callable[[dict[str, Any], Holdout], dict[str, float]],
    valid: Holdout,
    *,
    patience: int,
    max_epochs: int,
    path: Path,
) -> None:
    """Trains until `patience` epochs have brought no better one, or to the limit."""
    paper.restore(path)
    while len(paper.values) < max_epochs:
        if paper.values and len(paper.values) - paper.best_epoch >= patience:
            break
        began = time.monotonic()
        paper.train_epoch()
        paper.note(judge(paper.weights(), valid))
        paper.save(path)
        print(
            f"epoch {len(paper.values)}/{max_epochs}  ndcg@10 {paper.curve[-1]:.4f}  "
            f"best {paper.best_epoch}  {time.monotonic() - began:.0f} s",
            flush=True,
        )


def rows(
    paper: Paper, test: dict[str, float], ours: records.Record
) -> list[dict[str, Any]]:
    """What is published, what the paper's code gave here, and what ours did."""
    result = ours.result
    published = PUBLISHED[result["dataset"]][result["method"]]
    our_curve = [line["valid/ndcg@10"] for line in ours.epochs]
    # Where our run stood at the epoch that the other kept, and the other way round.
    at = {
        "paper": max(our_curve[: paper.best_epoch]),
        "ours": max(paper.curve[: result["best_epoch"]]),
    }
    return [
        {
            "run": "published",
            "hr@10": published.hr,
            "ndcg@10": published.ndcg,
            "best_epoch": published.best_epoch,
        },
        {
            "run": "the paper's code, trained here",
            "hr@10": measure.shown(test["hr@10"]),
            "ndcg@10": measure.shown(test["ndcg@10"]),
            "best_epoch": paper.best_epoch,
            "epochs": len(paper.values),
            "valid_ndcg@10": measure.shown(max(paper.curve)),
            "by_the_others_best_epoch": measure.shown(at["ours"]),
        },
        {
            "run": f"jaxrec, seed {result['seed']}",
            "hr@10": measure.shown(result["test"]["hr@10"]),
            "ndcg@10": measure.shown(result["test"]["ndcg@10"]),
            "best_epoch": result["best_epoch"],
            "epochs": result["epochs"],
            "valid_ndcg@10": measure.shown(max(our_curve)),
            "by_the_others_best_epoch": measure.shown(at["paper"]),
        },
    ]


def run(
    dataset: str,
    method: str,
    seed: int,
    repo: Path,
    *,
    max_epochs: int | None = None,
    runs: Path = Path("runs/paper_training"),
    output: Path = measure.RESULTS,
) -> Path:
    """Trains, tests, and writes the record.

    Args:
      max_epochs: fewer than our run may have; the record says that patience had not
        ended it.
    """
    built = experiment.build(reproduce.settings_of(dataset, method, seed))
    split, training = built.split, built.training
    if split.dataset.item_ids.tolist() != list(range(1, split.dataset.num_items + 1)):
        raise InputError(f"{dataset} must have items 1, 2, ... for the paper's code.")
    ours = records.read(
        records.path_of(records.RESULTS / dataset, method, seed)
    )  # first of all: without it there is nothing to compare
    task = types.SimpleNamespace(
        repo=repo,
        data=datasets.locate(dataset),
        method=method,
        max_length=training.max_length,
        width=built.config["model"]["width"],
        workers=0,
    )
    paper, judge = Paper(task, seed), Judge(built)
    most = built.evaluation.max_valid_users
    fit(
        paper,
        judge,
        evaluator.subset(split.valid, most, seed=seed),
        patience=training.patience,
        max_epochs=min(max_epochs or training.max_epochs, training.max_epochs),
        path=runs / f"{dataset}-{method}-seed{seed}.pt",
    )
    found = rows(paper, judge(paper.best, split.test), ours)
    measure.tell(found)
    notes = [*NOTES]
    if len(paper.values) - paper.best_epoch < training.patience:
        notes.append("The paper's code was stopped before its patience had ended it.")
    path = measure.save(
        "paper_training",
        QUESTION,
        found,
        subject=f"{dataset}-{method}-seed{seed}",
        notes=notes,
        output=output,
    )
    lines = [
        {"epoch": epoch, **{f"valid/{name}": x for name, x in values.items()}}
        for epoch, values in enumerate(paper.values, start=1)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    record.write_text(path.with_suffix(".metrics.jsonl"), text)
    return path


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = options.parser("paper_training", __doc__)
    parser.add_argument("--dataset", default="beauty", help=", ".join(PUBLISHED))
    parser.add_argument("--method", default="sasrec_bce")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--paper-repo", type=Path, required=True)
    parser.add_argument(
        "--max-epochs", type=options.count, help="to end before patience does"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/paper_training"))
    options.add_output(parser, measure.RESULTS)
    flags = parser.parse_args(argv)
    if missing := [name for name in PACKAGES if not importlib.util.find_spec(name)]:
        raise InputError(
            f"this needs {', '.join(missing)}: python -m pip install torch "
            "pytorch-lightning transformers pyyaml."
        )
    if not (flags.paper_repo / "src" / "modules.py").is_file():
        raise InputError(
            "--paper-repo must be a checkout of antklen/sasrec-bert4rec-recsys23: "
            f"there is no src/modules.py in {flags.paper_repo}."
        )
    from benchmarks.drivers import paper

    if flags.method not in paper.OVERRIDES:
        raise InputError(
            f"--method must be one of {', '.join(paper.OVERRIDES)}: got {flags.method}."
        )
    run(
        flags.dataset,
        flags.method,
        flags.seed,
        flags.paper_repo,
        max_epochs=flags.max_epochs,
        runs=flags.runs,
        output=flags.output,
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
