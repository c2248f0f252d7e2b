"""GRU4Rec with full cross-entropy on MovieLens-20M: the paper's recurrent baseline.

Source: Klenitskiy & Vasilev, "Turning Dross Into Gold Loss", RecSys 2023, and its code.

    python -m jaxrec.train --config configs/ml20m_gru4rec.py

The paper's code has this experiment; the table that comes with it gives no result.
"""

from _paper import experiment


def get_config():
    return experiment("ml-20m", "gru4rec")
