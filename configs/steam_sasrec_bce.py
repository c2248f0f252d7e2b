"""SASRec as first published, on Steam: binary cross-entropy, one negative.

Source: Klenitskiy & Vasilev, "Turning Dross Into Gold Loss", RecSys 2023, and its code.

    python -m jaxrec.train --config configs/steam_sasrec_bce.py

The paper's test HR@10 0.0981, NDCG@10 0.0506; trained in 2140 s, best epoch 39.
"""

from _paper import experiment


def get_config():
    return experiment("steam", "sasrec_bce")
