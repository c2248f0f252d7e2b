"""SASRec+ 3000 on Amazon Beauty: softmax cross-entropy, 3000 negatives a sequence.

Source: Klenitskiy & Vasilev, "Turning Dross Into Gold Loss", RecSys 2023, and its code.

    python -m jaxrec.train --config configs/beauty_sasrec_sampled_ce.py

The paper's test HR@10 0.0490, NDCG@10 0.0295; trained in 296 s, best epoch 8.
"""

from _paper import experiment


def get_config():
    return experiment("beauty", "sasrec_sampled_ce")
