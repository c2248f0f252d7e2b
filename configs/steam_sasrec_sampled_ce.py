"""SASRec+ 3000 on Steam: softmax cross-entropy, 3000 negatives a sequence.

Source: Klenitskiy & Vasilev, "Turning Dross Into Gold Loss", RecSys 2023, and its code.

    python -m jaxrec.train --config configs/steam_sasrec_sampled_ce.py

The paper's test HR@10 0.1206, NDCG@10 0.0652; trained in 1226 s, best epoch 14.
"""

from _paper import experiment


def get_config():
    return experiment("steam", "sasrec_sampled_ce")
