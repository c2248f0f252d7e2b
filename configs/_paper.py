"""The paper's recipe, once: what its experiments share and where they differ.

GRU4Rec is in the paper's code without a published result; sasrec_ce_exclude_window is
ours, the one change that may be what SASRec+ 3000 gains from.

One deviation: in the paper's code PAD (and, for BERT4Rec, MASK) is a class of the full
softmax; here neither is. --config.loss.include_padding=true makes them compete.

Source: Klenitskiy & Vasilev, "Turning Dross Into Gold Loss", RecSys 2023, and the
configuration files of its public code.
"""

from ml_collections import ConfigDict

from jaxrec.errors import InputError

# name: (positions a training window holds, width of the item table)
DATASETS = {
    "ml-1m": (200, 64),
    "ml-20m": (200, 256),
    "beauty": (50, 64),
    "steam": (50, 64),
    "yelp": (50, 64),
}
# The position table has 200 rows on every data set, also where windows are shorter.
SASREC = {
    "name": "sasrec",
    "num_layers": 2,
    "num_heads": 1,
    "dropout": 0.1,
    "num_positions": 200,
}
# The inner width stays 256 also where the table is 256 wide.
BERT4REC = {
    "name": "bert4rec",
    "num_layers": 2,
    "num_heads": 2,
    "inner_width": 256,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "num_positions": 200,
}
GRU4REC = {"name": "gru4rec", "num_layers": 1}
# An epoch of BERT4Rec has targets at a fifth of the positions; it gets more epochs.
NEXT_ITEM = {"max_epochs": 100, "patience": 10}
CLOZE = {"max_epochs": 200, "patience": 20, "mask_probability": 0.2}
# name: (encoder, loss, what the objective adds to training)
METHODS = {
    "sasrec_ce": (SASREC, {"name": "ce"}, NEXT_ITEM),
    "sasrec_ce_exclude_window": (
        SASREC,
        {"name": "ce", "exclude_window": True},
        NEXT_ITEM,
    ),
    "sasrec_bce": (SASREC, {"name": "bce", "num_negatives": 1}, NEXT_ITEM),
    "sasrec_sampled_ce": (
        SASREC,
        {"name": "sampled_ce", "num_negatives": 3000},
        NEXT_ITEM,
    ),
    "bert4rec": (BERT4REC, {"name": "ce"}, CLOZE),
    "gru4rec": (GRU4REC, {"name": "ce"}, NEXT_ITEM),
}


def experiment(dataset: str, method: str) -> ConfigDict:
    """The paper's setting of a method on a data set.

    Args:
      dataset: a key of DATASETS.
      method: a key of METHODS.

    Returns:
      One section for each function that the experiment calls.

    Raises:
      InputError: there is no such experiment.
    """
    if dataset not in DATASETS or method not in METHODS:
        raise InputError(
            f"experiment needs a data set of {sorted(DATASETS)} and a method of "
            f"{sorted(METHODS)}: got {dataset!r} and {method!r}."
        )
    max_length, width = DATASETS[dataset]
    model, loss, objective = METHODS[method]
    return ConfigDict(
        {
            "method": method,
            "data": {"name": dataset},
            "model": {**model, "width": width},
            "loss": loss,
            "optim": {"name": "adam", "learning_rate": 1e-3},
            "train": {
                "batch_size": 128,
                "max_length": max_length,
                "seed": 0,
                **objective,
            },
            "eval": {
                "batch_size": 256,
                "metrics": ("hr@10", "ndcg@10", "mrr@10", "hr@100", "ndcg@100"),
                "monitor": "ndcg@10",
                "max_valid_users": 10_000,
            },
        }
    )
