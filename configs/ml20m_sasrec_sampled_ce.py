"""SASRec+ 3000 on MovieLens-20M: softmax cross-entropy, 3000 negatives a sequence.

Source: Klenitskiy & Vasilev, "Turning Dross Into Gold Loss", RecSys 2023, and its code.

    python -m jaxrec.train --config configs/ml20m_sasrec_sampled_ce.py

The paper's test HR@10 0.3090, NDCG@10 0.1872; trained in 4125 s, best epoch 39.
"""

from _paper import experiment


def get_config():
    return experiment("ml-20m", "sasrec_sampled_ce")
