"""Steps of RePlay's SasRec, from its package: its model, module and Parquet loader."""

import tempfile
from pathlib import Path

import torch  # pyright: ignore[reportMissingImports]
from replay.data import (  # pyright: ignore[reportMissingImports]
    FeatureHint,
    FeatureSource,
    FeatureType,
)
from replay.data.nn import (  # pyright: ignore[reportMissingImports]
    ParquetModule,
    TensorFeatureInfo,
    TensorFeatureSource,
    TensorSchema,
)
from replay.nn.lightning import (  # pyright: ignore[reportMissingImports]
    LightningModule,
)
from replay.nn.sequential import SasRec  # pyright: ignore[reportMissingImports]
from replay.nn.sequential.length_bucket import (  # pyright: ignore[reportMissingImports]
    LengthBucketedQueryEncoder,
)
from replay.nn.transform.template import (  # pyright: ignore[reportMissingImports]
    make_default_sasrec_transforms,
)

from benchmarks.drivers import protocol, stopwatch


def write_windows(data: Path, path: Path, max_length: int) -> tuple[int, int]:
    """A row for each user with the last items of the training part, from 0 on.

    Returns:
      (users, items).
    """
    frame = protocol.read_columns(data)
    num_items = int(frame.item_id.max())
    frame = frame[frame.groupby("user_id").cumcount(ascending=False) >= 2]
    frame = frame.groupby("user_id").tail(max_length + 1)
    frame["item_id"] -= 1
    windows = frame.groupby("user_id").item_id.agg(list).reset_index()
    windows.to_parquet(path)
    return len(windows), num_items


def make_model(task, schema: TensorSchema) -> SasRec:
    """The paper's sizes; all else by default."""
    model = SasRec.from_params(
        schema,
        embedding_dim=task.width,
        num_heads=protocol.NUM_HEADS["sasrec"],
        num_blocks=protocol.NUM_LAYERS,
        max_sequence_length=task.max_length,
        dropout=protocol.DROPOUT,
    )
    if task.bucket_size:
        model.body.encoder = LengthBucketedQueryEncoder(
            model.body.encoder, task.bucket_size
        )
    return model


def main() -> None:
    task = protocol.parse()
    if task.method != "sasrec_ce":
        return protocol.decline(
            "RePlay's SasRec draws one set of negatives for the whole batch, which is "
            "another method; its BERT4Rec, in an older package, was not tried"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "train.parquet")
        num_users, num_items = write_windows(task.data, path, task.max_length)
        schema = TensorSchema(
            TensorFeatureInfo(
                "item_id",
                is_seq=True,
                feature_type=FeatureType.CATEGORICAL,
                embedding_dim=task.width,
                padding_value=num_items,
                cardinality=num_items,
                feature_hint=FeatureHint.ITEM_ID,
                feature_sources=[
                    TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")
                ],
            )
        )
        shape = {"shape": task.max_length + 1, "padding": num_items}
        rows = ParquetModule(
            batch_size=protocol.BATCH_SIZE,
            metadata={"train": {"item_id": shape}},
            transforms={"train": make_default_sasrec_transforms(schema)["train"]},
            train_path=str(path),
        )
        watch = stopwatch.Stopwatch(
            lambda batch: (batch["target_padding_mask"], False),
            task.steps,
            task.seconds,
        )
        module = LightningModule(make_model(task, schema))
        stopwatch.trainer(watch, task).fit(module, rows)
    settings = [
        f"windows are padded to {task.max_length}, whatever their length, as its "
        "loader does"
    ]
    protocol.report(
        version=protocol.versions("replay-rec")["replay-rec"],
        versions={"torch": torch.__version__, **protocol.versions("lightning")},
        steps_per_epoch=num_users / protocol.BATCH_SIZE,
        step_seconds=watch.step_seconds,
        tokens_per_step=watch.tokens_per_step,
        compile_s=0.0,
        settings=settings,
    )


if __name__ == "__main__":
    main()
