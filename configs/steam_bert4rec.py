"""BERT4Rec on Steam: full cross-entropy at the masked positions.

Source: Klenitskiy & Vasilev, "Turning Dross Into Gold Loss", RecSys 2023, and its code.

    python -m jaxrec.train --config configs/steam_bert4rec.py

The paper's test HR@10 0.1242, NDCG@10 0.0662; trained in 4893 s, best epoch 74.
"""

from _paper import experiment


def get_config():
    return experiment("steam", "bert4rec")
