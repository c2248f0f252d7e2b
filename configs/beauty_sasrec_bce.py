"""SASRec as first published, on Amazon Beauty: binary cross-entropy, one negative.

Source: Klenitskiy & Vasilev, "Turning Dross Into Gold Loss", RecSys 2023, and its code.

    python -m jaxrec.train --config configs/beauty_sasrec_bce.py

The paper's test HR@10 0.0246, NDCG@10 0.0126; trained in 521 s, best epoch 26.
"""

from _paper import experiment


def get_config():
    return experiment("beauty", "sasrec_bce")
