"""BERT4Rec on Yelp: full cross-entropy at the masked positions.

Source: Klenitskiy & Vasilev, "Turning Dross Into Gold Loss", RecSys 2023, and its code.

    python -m jaxrec.train --config configs/yelp_bert4rec.py

The paper's test HR@10 0.0442, NDCG@10 0.0223; trained in 10166 s, best epoch 21.
"""

from _paper import experiment


def get_config():
    return experiment("yelp", "bert4rec")
