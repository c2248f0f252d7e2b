"""SASRec+ on Amazon Beauty: full softmax cross-entropy over the catalogue.

Source: Klenitskiy & Vasilev, "Turning Dross Into Gold Loss", RecSys 2023, and its code.

    python -m jaxrec.train --config configs/beauty_sasrec_ce.py

The paper's test HR@10 0.0533, NDCG@10 0.0327; trained in 332 s, best epoch 6.
"""

from _paper import experiment


def get_config():
    return experiment("beauty", "sasrec_ce")
