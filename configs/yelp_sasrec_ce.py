"""SASRec+ on Yelp: full softmax cross-entropy over the catalogue.

Source: Klenitskiy & Vasilev, "Turning Dross Into Gold Loss", RecSys 2023, and its code.

    python -m jaxrec.train --config configs/yelp_sasrec_ce.py

The paper's test HR@10 0.0482, NDCG@10 0.0246; trained in 2505 s, best epoch 3.
"""

from _paper import experiment


def get_config():
    return experiment("yelp", "sasrec_ce")
