"""BERT4Rec on MovieLens-1M: full cross-entropy at the masked positions.

Source: Klenitskiy & Vasilev, "Turning Dross Into Gold Loss", RecSys 2023, and its code.

    python -m jaxrec.train --config configs/ml1m_bert4rec.py

The paper's test HR@10 0.2843, NDCG@10 0.1537; trained in 1409 s, best epoch 197.
Best epoch 197 of 200: early stopping had not ended the paper's run.
"""

from _paper import experiment


def get_config():
    return experiment("ml-1m", "bert4rec")
