"""SASRec+ on MovieLens-20M: full softmax cross-entropy over the catalogue.

Source: Klenitskiy & Vasilev, "Turning Dross Into Gold Loss", RecSys 2023, and its code.

    python -m jaxrec.train --config configs/ml20m_sasrec_ce.py

The paper's test HR@10 0.2983, NDCG@10 0.1833; trained in 9959 s, best epoch 46.
"""

from _paper import experiment


def get_config():
    return experiment("ml-20m", "sasrec_ce")
