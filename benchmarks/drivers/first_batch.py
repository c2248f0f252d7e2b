"""From a table in memory to the first training batch, in one of the libraries.

    python -m benchmarks.drivers.first_batch jaxrec log.parquet

Prints one line of JSON. Imports, and reading the file into pandas, are not timed. Runs
in the environment of the system that it measures.
"""

# pyright: reportMissingImports=false

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.drivers import protocol

USER, ITEM, TIME = "customer", "sku", "ts"
MAX_LENGTH = 200


def jaxrec() -> Callable[[Any], Any]:
    """Ids encoded, parts split, an epoch planned and packed, a batch on the device."""
    import jax
    import jax.numpy as jnp

    from jaxrec import batches, experiment, loop, steps

    settings = {
        "data": {"user": USER, "item": ITEM, "time": TIME},
        "model": {"name": "sasrec"},
        "loss": {"name": "ce"},
        "optim": {"name": "adam"},
        "train": {"max_length": MAX_LENGTH, "batch_size": protocol.BATCH_SIZE},
    }

    def prepare(frame):
        built = experiment.build(settings, frame=frame)
        plan = batches.plan_epoch(
            *loop.training_users(built),
            seed=0,
            epoch=0,
            batch_size=protocol.BATCH_SIZE,
            row_length=built.recipe.max_length,
        )
        user_B = plan.user_SB[0]
        end_B = jnp.asarray(built.split.train_end, jnp.int32)[user_B]
        make = jax.jit(partial(steps.training_batch, built.recipe))
        return make(built.log, built.log.offset_U1[user_B], end_B, jnp.int32(0))

    return lambda frame: jax.block_until_ready(prepare(frame).tokens_BL).shape


def rectools() -> Callable[[Any], Any]:
    """As SASRecModel.fit does it, up to the first batch of its loader."""
    from rectools.columns import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    names = {USER: Columns.User, ITEM: Columns.Item, TIME: Columns.Datetime}

    def prepare(frame):
        frame = frame[[*names]].rename(columns=names, copy=False)
        frame[Columns.Weight] = 1.0
        model = SASRecModel(session_max_len=MAX_LENGTH, batch_size=protocol.BATCH_SIZE)
        model.data_preparator.process_dataset_train(Dataset.construct(frame))
        return next(iter(model.data_preparator.get_dataloader_train()))["x"].shape

    return prepare


def rectools_tensors() -> Callable[[Any], Any]:
    """RecTools' newer `build_sequences`, of integers alone: no split, no tables of ids
    to recommend by."""
    import torch
    from rectools.fast_transformers.preprocessing import (
        SequenceBatchDataset,
        build_sequences,
    )

    def prepare(frame):
        columns = [
            torch.from_numpy(frame[name].to_numpy("int64"))
            for name in (USER, ITEM, TIME)
        ]
        x, y, *_ = build_sequences(*columns, max_len=MAX_LENGTH)
        loader = torch.utils.data.DataLoader(
            SequenceBatchDataset(x, y), batch_size=protocol.BATCH_SIZE, shuffle=True
        )
        return next(iter(loader))["x"].shape

    return prepare


SYSTEMS = {one.__name__: one for one in (jaxrec, rectools, rectools_tensors)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("path", type=Path, help="a Parquet file")
    flags = parser.parse_args()
    import pandas as pd

    prepare = SYSTEMS[flags.system]()
    frame = pd.read_parquet(flags.path)
    before_mb = protocol.peak_mb()
    began = time.perf_counter()
    shape = prepare(frame)
    packages = ("pandas", "jax" if flags.system == "jaxrec" else "rectools")
    line = {
        "seconds": round(time.perf_counter() - began, 2),
        "peak_mb": protocol.peak_mb(),
        "peak_before_mb": before_mb,
        "batch": list(shape),
        "versions": protocol.versions(*packages),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
