"""Steps of the paper's own code, from a checkout of antklen/sasrec-bert4rec-recsys23.

Its model, Lightning module, data sets, collate function and configuration files, put
together as its run.py does, which itself needs packages of 2022.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml  # pyright: ignore[reportMissingModuleSource]
from torch.utils.data import DataLoader  # pyright: ignore[reportMissingImports]

from benchmarks.drivers import protocol, stopwatch

# Its README's overrides of its configuration files.
OVERRIDES: dict[str, tuple[str, dict, dict]] = {
    "sasrec_ce": ("SASRec", {}, {}),
    "sasrec_sampled_ce": ("SASRec", {"num_negatives": 3000}, {}),
    "sasrec_bce": (
        "SASRec",
        {"num_negatives": 1, "full_negative_sampling": True},
        {"loss": "bce"},
    ),
    "bert4rec": ("BERT4Rec", {}, {}),
}


def settings_of(task) -> tuple[str, dict[str, Any]]:
    """(model, configuration) as its README runs the method on the data set."""
    name, dataset, module = OVERRIDES[task.method]
    text = (task.repo / "src" / "configs" / f"{name}.yaml").read_text()
    config = yaml.safe_load(text)
    config["dataset"] |= {"max_length": task.max_length, **dataset}
    config["seqrec_module"] |= module
    width = "hidden_units" if name == "SASRec" else "hidden_size"
    config["model_params"][width] = task.width
    return name, config


def commit(repo: Path) -> str:
    command = ["git", "-C", str(repo), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown commit"


def mean_positions(length_U: np.ndarray, max_length: int) -> float:
    """Positions of a batch with its padding, the mean over many random ones.

    Few steps are timed, and the longest window of a batch may be half that of another.
    """
    rng = np.random.default_rng(0)
    longest = [
        rng.choice(length_U, protocol.BATCH_SIZE, replace=False).max()
        for _ in range(1000)
    ]
    return protocol.BATCH_SIZE * float(np.minimum(longest, max_length).mean())


class Training(NamedTuple):
    """A LightningModule, its batches, and the length of each user's window."""

    module: Any
    loader: DataLoader
    length_U: np.ndarray


def training(task) -> Training:
    """A method on a data set, put together by its own parts.

    Args:
      task: of `protocol.parse`.
    """
    import transformers  # pyright: ignore[reportMissingImports]  # noqa: F401

    # Only now: transformers looks for a package that is called datasets too.
    sys.path.insert(0, str(task.repo / "src"))
    import datasets  # pyright: ignore[reportMissingImports]
    import models  # pyright: ignore[reportMissingImports]
    import modules  # pyright: ignore[reportMissingImports]
    import preprocess  # pyright: ignore[reportMissingImports]

    name, config = settings_of(task)
    data = preprocess.add_time_idx(protocol.read_columns(task.data), sort=False)
    if name == "BERT4Rec":
        data.item_id += 1  # 1 is its mask
    train = data[data.time_idx_reversed >= 2]
    num_items = data.item_id.max()

    is_sampled = "num_negatives" in config["dataset"]
    if name == "SASRec":
        rows = datasets.CausalLMDataset(train, **config["dataset"])
        model = models.SASRec(
            item_num=num_items, add_head=not is_sampled, **config["model_params"]
        )
    else:
        rows = datasets.MaskedLMDataset(train, **config["dataset"])
        model = models.BERT4Rec(num_items + 1, config["model_params"])
    make = modules.SeqRecWithSampling if is_sampled else modules.SeqRec
    loader = DataLoader(
        rows,
        batch_size=config["dataloader"]["batch_size"],
        shuffle=True,
        num_workers=task.workers,
        collate_fn=datasets.PaddingCollateFn(),
    )
    length_U = train.groupby("user_id").size().to_numpy() - (name == "SASRec")
    return Training(make(model, **config["seqrec_module"]), loader, length_U)


def main() -> None:
    task = protocol.parse()
    module, loader, length_U = training(task)
    watch = stopwatch.Stopwatch(
        lambda batch: (batch["labels"], -100), task.steps, task.seconds
    )
    stopwatch.trainer(watch, task).fit(module, loader)
    protocol.report(
        version=commit(task.repo),
        versions=protocol.versions("torch", "pytorch-lightning", "transformers"),
        steps_per_epoch=len(length_U) / protocol.BATCH_SIZE,
        step_seconds=watch.step_seconds_at(mean_positions(length_U, task.max_length)),
        tokens_per_step=watch.tokens_per_step,
        compile_s=0.0,
        settings=[
            "windows are padded to the longest of their batch, as its collate function "
            "does, and a step's time is scaled to the mean batch of an epoch",
            "its model, data sets and training step run under today's PyTorch, "
            "Lightning and transformers, not under those of 2022 that it was written "
            "for",
        ],
    )


if __name__ == "__main__":
    main()
