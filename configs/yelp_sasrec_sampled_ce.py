"""SASRec+ 3000 on Yelp: softmax cross-entropy, 3000 negatives a sequence.

Source: Klenitskiy & Vasilev, "Turning Dross Into Gold Loss", RecSys 2023, and its code.

    python -m jaxrec.train --config configs/yelp_sasrec_sampled_ce.py

The paper's test HR@10 0.0462, NDCG@10 0.0237; trained in 1965 s, best epoch 5.
"""

from _paper import experiment


def get_config():
    return experiment("yelp", "sasrec_sampled_ce")
