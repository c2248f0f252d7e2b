"""BERT4Rec on MovieLens-20M: full cross-entropy at the masked positions.

Source: Klenitskiy & Vasilev, "Turning Dross Into Gold Loss", RecSys 2023, and its code.

    python -m jaxrec.train --config configs/ml20m_bert4rec.py

The paper's test HR@10 0.2816, NDCG@10 0.1703; trained in 14758 s, best epoch 68.
"""

from _paper import experiment


def get_config():
    return experiment("ml-20m", "bert4rec")
