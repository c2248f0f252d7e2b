"""SASRec+ on Steam: full softmax cross-entropy over the catalogue.

Source: Klenitskiy & Vasilev, "Turning Dross Into Gold Loss", RecSys 2023, and its code.

    python -m jaxrec.train --config configs/steam_sasrec_ce.py

The paper's test HR@10 0.1191, NDCG@10 0.0641; trained in 1262 s, best epoch 16.
"""

from _paper import experiment


def get_config():
    return experiment("steam", "sasrec_ce")
