"""SASRec as first published, on Yelp: binary cross-entropy, one negative.

Source: Klenitskiy & Vasilev, "Turning Dross Into Gold Loss", RecSys 2023, and its code.

    python -m jaxrec.train --config configs/yelp_sasrec_bce.py

The paper's test HR@10 0.0228, NDCG@10 0.0115; trained in 655 s, best epoch 3.
"""

from _paper import experiment


def get_config():
    return experiment("yelp", "sasrec_bce")
