"""Steps of RecTools' SASRecModel and BERT4RecModel, from its package."""

from typing import Any

import numpy as np
import pandas as pd
from rectools.columns import Columns  # pyright: ignore[reportMissingImports]
from rectools.dataset import Dataset  # pyright: ignore[reportMissingImports]
from rectools.models import (  # pyright: ignore[reportMissingImports]
    BERT4RecModel,
    SASRecModel,
)

from benchmarks.drivers import protocol, stopwatch

LOSSES = {
    "sasrec_ce": "softmax",
    "sasrec_sampled_ce": "sampled_softmax",
    "sasrec_bce": "BCE",
    "bert4rec": "softmax",
}


def training_part(path) -> Dataset:
    """Each user's items but the last two; a row's number is its time."""
    frame = protocol.read_columns(path)
    frame = frame[frame.groupby("user_id").cumcount(ascending=False) >= 2]
    return Dataset.construct(
        pd.DataFrame(
            {
                Columns.User: frame.user_id,
                Columns.Item: frame.item_id,
                Columns.Weight: 1.0,
                Columns.Datetime: pd.to_datetime(np.arange(len(frame)), unit="s"),
            }
        )
    )


def make_model(task) -> Any:
    """The paper's sizes; all else by default."""
    encoder = "bert4rec" if task.method == "bert4rec" else "sasrec"
    own = {}
    if encoder == "bert4rec":
        own = {"mask_prob": protocol.MASK_PROBABILITY}
    return (BERT4RecModel if own else SASRecModel)(
        n_blocks=protocol.NUM_LAYERS,
        n_heads=protocol.NUM_HEADS[encoder],
        n_factors=task.width,
        dropout_rate=protocol.DROPOUT,
        session_max_len=task.max_length,
        batch_size=protocol.BATCH_SIZE,
        lr=protocol.LEARNING_RATE,
        loss=LOSSES[task.method],
        n_negatives=protocol.NUM_NEGATIVES.get(task.method, 1),
        dataloader_num_workers=task.workers,
        **own,
    )


def main() -> None:
    task = protocol.parse()
    num_negatives = protocol.NUM_NEGATIVES.get(task.method, 0)
    # Its negatives are drawn for each position, and their embeddings gathered.
    positions = protocol.BATCH_SIZE * task.max_length
    gathered = 4 * positions * (num_negatives + 1) * task.width
    # At the least: the gathered embeddings and their gradient.
    if num_negatives and 2 * gathered > protocol.memory_bytes():
        return protocol.decline(
            f"RecTools draws {num_negatives} negatives for each position; the gathered "
            f"embeddings of a batch take {gathered / 1e9:.1f} GB, their gradient as "
            f"much again, and the machine has {protocol.memory_bytes() / 1e9:.0f} GB"
        )
    dataset = training_part(task.data)
    model = make_model(task)
    watch = stopwatch.Stopwatch(lambda batch: (batch["y"], 0), task.steps, task.seconds)
    model._trainer = stopwatch.trainer(watch, task)
    model.fit(dataset)
    (watch,) = (  # fit trains with a copy of the trainer
        one
        for one in model.fit_trainer.callbacks
        if isinstance(one, stopwatch.Stopwatch)
    )
    settings = [
        f"windows are padded to {task.max_length}, whatever their length, as its data "
        "preparation does",
        f"the catalogue is the {dataset.item_id_map.size:,} items of the training "
        "part, which favours it where there are others",
    ]
    if num_negatives:
        settings.append(
            "negatives are drawn from the whole catalogue without a look at the user's "
            "items, which favours it"
        )
    protocol.report(
        version=protocol.versions("rectools")["rectools"],
        versions=protocol.versions("torch", "pytorch-lightning"),
        steps_per_epoch=dataset.user_id_map.size / protocol.BATCH_SIZE,
        step_seconds=watch.step_seconds,
        tokens_per_step=watch.tokens_per_step,
        compile_s=0.0,
        settings=settings,
    )


if __name__ == "__main__":
    main()
