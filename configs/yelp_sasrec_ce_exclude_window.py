"""SASRec+ on Yelp, the window's own items out of the softmax.

A row that the paper lacks. SASRec+ 3000 never draws an item of the sequence's window as
a negative, SASRec+ has them all in its denominator: this experiment changes that alone.

    python -m jaxrec.train --config configs/yelp_sasrec_ce_exclude_window.py

No published numbers.
"""

from _paper import experiment


def get_config():
    return experiment("yelp", "sasrec_ce_exclude_window")
