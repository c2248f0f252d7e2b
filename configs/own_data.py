"""Your own log: what suits it is chosen once it has been read, and shown with why.

    python -m jaxrec.train --config configs/own_data.py

needs your file and the names of its columns besides:

    --config.data.path=log.csv --config.data.user=customer
    --config.data.item=sku --config.data.time=ts

Text, CSV, TSV or Parquet; ids of any type; times in numbers or ISO 8601, or
--config.data.time= where the rows are in time order. Rows that cannot be used are
skipped and counted by reason. Of a user's rows with one item the first is kept, since
what a user has had is not recommended again; for things that are taken over and over:

    --config.data.duplicates=keep --noconfig.eval.filter_seen

Window, width, dropout, loss, batch and validation rows are "auto", which
jaxrec/choices.py explains; any of them can be given instead (in Python, within
`with config.ignore_type():`, since "auto" is text). Then, where it was run:

    python -m jaxrec.recommend --workdir runs/log-sasrec_ce-seed0 --output recs.csv

No published metrics: the run shows its own beside those of popularity.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        {
            "method": "sasrec_auto",
            "data": {"broken": "skip", "duplicates": "first"},
            "model": {
                "name": "sasrec",
                "width": "auto",
                "num_layers": 2,
                "num_heads": 1,
                "dropout": "auto",
                "num_positions": "auto",
            },
            "loss": {"name": "auto"},
            "optim": {"name": "adam", "learning_rate": 1e-3},
            "train": {
                "batch_size": "auto",
                "max_length": "auto",
                "max_epochs": 100,
                "patience": 10,
                "seed": 0,
                "show_users": 3,
            },
            "eval": {
                "batch_size": 256,
                "metrics": ("hr@10", "ndcg@10", "mrr@10", "hr@100", "ndcg@100"),
                "monitor": "ndcg@10",
                "max_valid_users": "auto",
            },
        }
    )
