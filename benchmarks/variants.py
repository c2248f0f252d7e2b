"""Methods that differ from one of configs/ in what their name ends with.

sasrec_sampled_ce_300        300 negatives, not 3000
sasrec_sampled_ce_share16    one set of negatives for every 16 sequences
sasrec_sampled_ce_dealt      3000 for each sequence, all from one shuffle
sasrec_ce_padding            PAD, and MASK of a cloze model, compete with the items
sasrec_ce_bfloat16           the encoder computes in bfloat16
sasrec_ce_bfloat16_loss      the matmuls of the loss's gradients do
sasrec_ce_bfloat16_scores    and the matmul of its scores does
"""

import re
from typing import NamedTuple

from benchmarks.published import TITLES


class Variant(NamedTuple):
    """What a method is a variant of.

    base: a method with a config of its own.
    options: in place of the base's, as on the command line.
    title: of the variant.
    """

    base: str
    options: tuple[str, ...]
    title: str


# The name; the options; the title: {0} the base's title, {1} the number of the name.
_KINDS = (
    (r"(sasrec_sampled_ce)_([1-9]\d*)", ["loss.num_negatives={1}"], "SASRec+ {1}"),
    (r"(sasrec_sampled_ce)_share([1-9]\d*)", ["loss.share={1}"], "{0}, shared by {1}"),
    (r"(sasrec_sampled_ce)_dealt", ["loss.draw=dealt"], "{0}, dealt"),
    (r"(.+)_padding", ["loss.include_padding=true"], "{0}, PAD competes"),
    (r"(.+)_bfloat16", ["model.dtype=bfloat16"], "{0}, bfloat16"),
    (r"(.+)_bfloat16_loss", ["loss.dtype=bfloat16"], "{0}, loss in bfloat16"),
    (
        r"(.+)_bfloat16_scores",
        ["loss.dtype=bfloat16", "loss.score_dtype=bfloat16"],
        "{0}, loss and scores in bfloat16",
    ),
    (r"(.+)_([1-9]\d*)epochs", ["train.max_epochs={1}"], "{0}, {1} epochs at most"),
)


def variant(method: str) -> Variant | None:
    """What the method is a variant of; None for one with a config of its own.

    >>> variant("sasrec_ce") is None, variant("sasrec_sampled_ce_30").options
    (True, ('--config.loss.num_negatives=30',))
    >>> variant("bert4rec_padding").base, variant("bert4rec_padding").title
    ('bert4rec', 'BERT4Rec, PAD competes')
    """
    for name, options, title_ in _KINDS:
        if match := re.fullmatch(name, method):
            base = match[1]
            parts = (TITLES.get(base, base), *match.groups()[1:])
            flags = tuple(f"--config.{one.format(*parts)}" for one in options)
            return Variant(base, flags, title_.format(*parts))
    return None


def title(method: str) -> str:
    """What a table calls a method.

    >>> title("sasrec_ce"), title("sasrec_sampled_ce_30")
    ('SASRec+ (full CE)', 'SASRec+ 30')
    """
    found = variant(method)
    return found.title if found else TITLES.get(method, method)


def num_negatives(method: str) -> int | None:
    """Of SASRec with a sampled softmax; None for another method, or another variant."""
    if method == "sasrec_sampled_ce":
        return 3000
    match = re.fullmatch(_KINDS[0][0], method)
    return int(match[2]) if match else None
