"""SASRec+ 3000 on MovieLens-1M: softmax cross-entropy, 3000 negatives a sequence.

Source: Klenitskiy & Vasilev, "Turning Dross Into Gold Loss", RecSys 2023, and its code.

    python -m jaxrec.train --config configs/ml1m_sasrec_sampled_ce.py

The paper's test HR@10 0.3159, NDCG@10 0.1857; trained in 769 s, best epoch 85.
"""

from _paper import experiment


def get_config():
    return experiment("ml-1m", "sasrec_sampled_ce")
