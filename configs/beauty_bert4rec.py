"""BERT4Rec on Amazon Beauty: full cross-entropy at the masked positions.

Source: Klenitskiy & Vasilev, "Turning Dross Into Gold Loss", RecSys 2023, and its code.

    python -m jaxrec.train --config configs/beauty_bert4rec.py

The paper's test HR@10 0.0338, NDCG@10 0.0187; trained in 2325 s, best epoch 87.
"""

from _paper import experiment


def get_config():
    return experiment("beauty", "bert4rec")
