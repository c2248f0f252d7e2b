"""PyTorch state dicts as parameters of ours: SASRec and BERT4Rec, tensor by tensor.

    layout         whose state dict
    "paper"        antklen/sasrec-bert4rec-recsys23: SASRec, or BERT4Rec around a
                   Hugging Face BertModel
    "pmixer-2020"  pmixer/SASRec.pytorch, October 2020 to June 2024
    "pmixer-2024"  the same from June 2024 to May 2025: positions count from 1, and row
                   0 of `pos_emb` is padding

With the weights of "paper", hidden states and scores are equal, to float32's rounding,
at every item of a right-padded history, which is how that code pads.

With those of "pmixer" they are equal where its model is given a history without
padding: where the history fills the window, or is passed at its own length. Its own
scripts pad shorter histories on the left; there items attend to the padding too and
count their positions from the row's left end, which no encoder here does, so those
users get other scores.

Two more versions of pmixer's code are refused, because their tensors have the same
names and shapes and would load without a word: September 2020 (no ReLU), and from May
2025 on (the pre-norm or post-norm blocks of another order).
"""

import os
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxrec import models
from jaxrec.errors import InputError

LAYOUTS = ("paper", "pmixer-2020", "pmixer-2024")
# A letter an axis: V rows of the item table, D width, E = 3 D, F feed-forward width,
# L positions, 1 and 2 themselves.
Axes = dict[str, str]


class Weights(NamedTuple):
    """A model of ours with the weights of another.

    model: its name in `models.ENCODERS`.
    options: its arguments that the tensors decide, num_items among them, and the heads.
    params: its float32 parameters, NumPy arrays.
    source_row_V: int [V], the row of their item table that row v of ours was.
    """

    model: str
    options: dict[str, int]
    params: dict[str, Any]
    source_row_V: np.ndarray

    @property
    def encoder(self) -> Any:
        return models.ENCODERS[self.model](**self.options)


def load(
    weights: Mapping[str, Any] | str | os.PathLike,
    *,
    num_heads: int,
    layout: str = "paper",
) -> Weights:
    """Parameters and options of our SASRec or BERT4Rec from a PyTorch state dict.

    Prefixes that all tensors share, such as Lightning's "model.", are dropped, and a
    checkpoint's "state_dict" is unwrapped. The paper's BERT4Rec has MASK in row 1 and
    items from row 2; its rows are put into our order: PAD, items, MASK.

    Args:
      weights: tensor or array by name, or the path of a file that torch.save wrote
        (read by torch, without running code that the file may hold).
      num_heads: attention heads; the weights do not show them. The paper trained SASRec
        with 1 and BERT4Rec with 2.
      layout: whose state dict; see the module.

    Returns:
      The `Weights`. (A gradient by name, which torch lays out alike, converts too.)

    Raises:
      InputError: tensors are missing, left over, of a wrong shape or not finite (all
        are named), the layout is not one that can be equal, or the file is unreadable.

    >>> theirs = load("sasrec.pt", num_heads=1)               # doctest: +SKIP
    >>> hidden_RTD = theirs.encoder.apply(                    # doctest: +SKIP
    ...     {"params": theirs.params}, tokens_RT, position_RT, segment_RT, train=False)
    """
    _check_layout(layout)
    where = "the state dict"
    if isinstance(weights, str | os.PathLike):
        where, weights = os.fspath(weights), _read(weights)
    if not isinstance(weights, Mapping):
        raise InputError(
            f"{where} must map names to tensors: got a {type(weights).__name__}. Pass "
            "model.state_dict(), or its file."
        )
    state = {str(name): x for name, x in weights.get("state_dict", weights).items()}
    family, prefix = _recognise(state, layout, where)
    block = re.compile(re.escape(prefix) + family.block)
    layers = [int(found[1]) for found in map(block.match, state) if found]
    num_layers = 1 + max(layers, default=0)
    axes = family.axes(num_layers)
    tensors = {
        name: _array(prefix + name, state[prefix + name])
        for name in axes
        if prefix + name in state
    }
    sizes, complaints = _sizes(tensors, axes)
    complaints = [
        *_missing_or_left_over(state, prefix, family, axes),
        *complaints,
        *_values(tensors, layout),
        *_copies(state, prefix, tensors[family.table], family),
    ]
    num_items = sizes.get("V", 0) - family.num_special
    if num_items < 1:
        complaints.append(f"{family.table} has no row of an item")
    if complaints:
        raise InputError(
            f"{where} is no {family.title} in layout {layout!r}: "
            f"{'; '.join(complaints)}. Pass that model's state dict, whole and alone, "
            "and its layout."
        )
    if num_heads < 1 or sizes["D"] % num_heads:
        raise InputError(
            f"num_heads must divide the width of {where}, {sizes['D']}: got "
            f"{num_heads}. Pass the heads that the model was trained with."
        )
    return Weights(
        model=family.model,
        options={
            "num_items": num_items,
            "width": sizes["D"],
            "num_layers": num_layers,
            "num_heads": num_heads,
            "num_positions": sizes["L"] - (layout == "pmixer-2024"),
            **({"inner_width": sizes["F"]} if "F" in sizes else {}),
        },
        params=family.params(tensors, num_layers, layout),
        source_row_V=family.source_rows(num_items),
    )


# ---- Two families of tensors


class _Family(NamedTuple):
    """How a model's tensors are called and shaped, and which of ours they are.

    table: the item table, by which the model is recognised.
    block: a pattern of the names of a layer's tensors; its group is the layer.
    num_special: rows of the item table that are no items.
    unused: tensors that the model carries and never reads.
    """

    title: str
    model: str
    table: str
    block: str
    num_special: int
    axes: Callable[[int], Axes]
    params: Callable[[Mapping[str, np.ndarray], int, str], dict[str, Any]]
    source_rows: Callable[[int], np.ndarray]
    unused: tuple[str, ...] = ()


def _affine(name: str, axes: str) -> Axes:
    return {f"{name}.weight": axes, f"{name}.bias": axes[0]}


def _norm(tensors: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}


def _dense(weight: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    """torch multiplies from the right, and a convolution of size 1 has an axis of 1."""
    return {"kernel": weight.reshape(weight.shape[:2]).T, "bias": bias}


def _named_dense(tensors: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return _dense(tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def _sasrec_axes(num_layers: int) -> Axes:
    axes = {"item_emb.weight": "VD", "pos_emb.weight": "LD"}
    for i in range(num_layers):
        axes |= {
            **_affine(f"attention_layernorms.{i}", "D"),
            f"attention_layers.{i}.in_proj_weight": "ED",
            f"attention_layers.{i}.in_proj_bias": "E",
            **_affine(f"attention_layers.{i}.out_proj", "DD"),
            **_affine(f"forward_layernorms.{i}", "D"),
            **_affine(f"forward_layers.{i}.conv1", "DD1"),
            **_affine(f"forward_layers.{i}.conv2", "DD1"),
        }
    return axes | _affine("last_layernorm", "D")


def _sasrec_params(
    tensors: Mapping[str, np.ndarray], num_layers: int, layout: str
) -> dict[str, Any]:
    def attention(name: str) -> dict[str, Any]:
        packed = (tensors[f"{name}.in_proj_weight"], tensors[f"{name}.in_proj_bias"])
        query, key, value = map(_dense, *(np.split(x, 3) for x in packed))
        output = _named_dense(tensors, f"{name}.out_proj")
        return {"query": query, "key": key, "value": value, "output": output}

    blocks = {
        f"blocks_{i}": {
            "attention_norm": _norm(tensors, f"attention_layernorms.{i}"),
            "attention": attention(f"attention_layers.{i}"),
            "feed_forward_norm": _norm(tensors, f"forward_layernorms.{i}"),
            "inner": _named_dense(tensors, f"forward_layers.{i}.conv1"),
            "outer": _named_dense(tensors, f"forward_layers.{i}.conv2"),
        }
        for i in range(num_layers)
    }
    first = 1 if layout == "pmixer-2024" else 0
    return {
        "item_embedding": {"table": tensors["item_emb.weight"]},
        "position_table": tensors["pos_emb.weight"][first:],
        **blocks,
        "final_norm": _norm(tensors, "last_layernorm"),
    }


_BERT = "transformer_model"
_LAYER = f"{_BERT}.encoder.layer"


def _bert4rec_axes(num_layers: int) -> Axes:
    axes = {
        "embed_layer.weight": "VD",
        f"{_BERT}.embeddings.position_embeddings.weight": "LD",
        f"{_BERT}.embeddings.token_type_embeddings.weight": "2D",
        **_affine(f"{_BERT}.embeddings.LayerNorm", "D"),
    }
    for i in range(num_layers):
        axes |= {
            **_affine(f"{_LAYER}.{i}.attention.self.query", "DD"),
            **_affine(f"{_LAYER}.{i}.attention.self.key", "DD"),
            **_affine(f"{_LAYER}.{i}.attention.self.value", "DD"),
            **_affine(f"{_LAYER}.{i}.attention.output.dense", "DD"),
            **_affine(f"{_LAYER}.{i}.attention.output.LayerNorm", "D"),
            **_affine(f"{_LAYER}.{i}.intermediate.dense", "FD"),
            **_affine(f"{_LAYER}.{i}.output.dense", "DF"),
            **_affine(f"{_LAYER}.{i}.output.LayerNorm", "D"),
        }
    return axes


def _bert4rec_params(
    tensors: Mapping[str, np.ndarray], num_layers: int, layout: str
) -> dict[str, Any]:
    del layout  # one alone has a BERT4Rec
    table_VD = tensors["embed_layer.weight"]
    embeddings = f"{_BERT}.embeddings"
    parts = {"query": "self.query", "key": "self.key", "value": "self.value"}
    blocks = {
        f"blocks_{i}": {
            "attention": {
                ours: _named_dense(tensors, f"{_LAYER}.{i}.attention.{theirs}")
                for ours, theirs in {**parts, "output": "output.dense"}.items()
            },
            "attention_norm": _norm(
                tensors, f"{_LAYER}.{i}.attention.output.LayerNorm"
            ),
            "inner": _named_dense(tensors, f"{_LAYER}.{i}.intermediate.dense"),
            "outer": _named_dense(tensors, f"{_LAYER}.{i}.output.dense"),
            "feed_forward_norm": _norm(tensors, f"{_LAYER}.{i}.output.LayerNorm"),
        }
        for i in range(num_layers)
    }
    return {
        "item_embedding": {"table": table_VD[_mask_last(len(table_VD) - 2)]},
        "position_table": tensors[f"{embeddings}.position_embeddings.weight"],
        "type_embedding": tensors[f"{embeddings}.token_type_embeddings.weight"][0],
        "embedding_norm": _norm(tensors, f"{embeddings}.LayerNorm"),
        **blocks,
    }


def _mask_last(num_items: int) -> np.ndarray:
    """Their rows in our order: PAD 0, the items from 2, and MASK 1."""
    return np.concatenate([[0], np.arange(2, num_items + 2), [1]])


_FAMILIES = (
    _Family(
        title="SASRec",
        model="sasrec",
        table="item_emb.weight",
        block=r"attention_layers\.(\d+)\.",
        num_special=1,
        axes=_sasrec_axes,
        params=_sasrec_params,
        source_rows=lambda num_items: np.arange(num_items + 1),
    ),
    _Family(
        title="BERT4Rec",
        model="bert4rec",
        table="embed_layer.weight",
        block=re.escape(_LAYER) + r"\.(\d+)\.",
        num_special=2,
        axes=_bert4rec_axes,
        params=_bert4rec_params,
        source_rows=_mask_last,
        unused=(
            f"{_BERT}.embeddings.position_ids",
            f"{_BERT}.embeddings.word_embeddings.weight",
            f"{_BERT}.pooler.dense.weight",
            f"{_BERT}.pooler.dense.bias",
        ),
    ),
)


# ---- Reading and checking


def _check_layout(layout: str) -> None:
    if layout in LAYOUTS:
        return
    reason = ""
    if layout.startswith("pmixer"):
        reason = (
            " (pmixer's code of September 2020, and from May 2025 on, has blocks that "
            "no encoder here has, under the same names)"
        )
    raise InputError(
        f"layout must be one of {', '.join(LAYOUTS)}: got {layout}{reason}."
    )


def _read(path: str | os.PathLike) -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError(
            f"reading {os.fspath(path)} needs torch: pip install torch, or pass the "
            "state dict as a mapping of names to arrays."
        ) from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(
            f"{os.fspath(path)} must be a file with a state dict, as by "
            f"torch.save(model.state_dict(), path): {reason}"
        ) from None


def _recognise(
    state: Mapping[str, Any], layout: str, where: str
) -> tuple[_Family, str]:
    """The model whose item table is there, and what stands before every name."""
    for family in _FAMILIES[: None if layout == "paper" else 1]:
        tables = [name for name in state if f".{name}".endswith(f".{family.table}")]
        if tables:  # the longest: a module beside the model may hold its table too
            return family, max(tables, key=len).removesuffix(family.table)
    raise InputError(
        f"{where} must have item_emb.weight (SASRec) or, in layout 'paper', "
        f"embed_layer.weight (BERT4Rec): got {_few(state)}. Pass model.state_dict()."
    )


def _array(name: str, value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a torch tensor of any dtype, on any device
        value = value.detach().cpu().float().numpy()
    try:
        # A copy: torch trains its tensors in place.
        return np.array(value, np.float32)
    except (TypeError, ValueError):
        raise InputError(
            f"{name} must be a tensor or an array of numbers: got a "
            f"{type(value).__name__}. Pass model.state_dict()."
        ) from None


def _sizes(
    tensors: Mapping[str, np.ndarray], axes: Axes
) -> tuple[dict[str, int], list[str]]:
    """The size of each axis, by the first tensor that has it, and who contradicts."""
    sizes, complaints = {"1": 1, "2": 2}, []
    for name, letters in axes.items():
        if name not in tensors:
            continue
        shape = tensors[name].shape
        if len(shape) == len(letters):
            for letter, size in zip(letters, shape, strict=True):
                sizes.setdefault(letter, size)
            if "D" in sizes:
                sizes["E"] = 3 * sizes["D"]
        expected = [sizes.get(letter, letter) for letter in letters]
        if list(shape) != expected or 0 in shape:
            expected = ", ".join(map(str, expected))
            complaints.append(f"{name} must be [{expected}], got {list(shape)}")
    return sizes, complaints


def _missing_or_left_over(
    state: Mapping[str, Any], prefix: str, family: _Family, axes: Axes
) -> list[str]:
    known = {prefix + name for name in (*axes, *family.unused)}
    known |= set(_copy_names(prefix))
    missing = [prefix + name for name in axes if prefix + name not in state]
    left_over = [name for name in state if name not in known]
    named = {"missing": missing, "left over": left_over}
    return [f"{what} {_few(names)}" for what, names in named.items() if names]


def _values(tensors: Mapping[str, np.ndarray], layout: str) -> list[str]:
    complaints = [
        f"{name} is not finite"
        for name, x in tensors.items()
        if not np.isfinite(x).all()
    ]
    positions = tensors.get("pos_emb.weight")
    if positions is None:
        return complaints
    # torch gives a padding row no gradient, so it is exactly 0 as long as it is one.
    has_padding_row = not positions[:1].any()
    if has_padding_row and layout != "pmixer-2024":
        complaints.append("row 0 of pos_emb.weight is zero, as in 'pmixer-2024' alone")
    if not has_padding_row and layout == "pmixer-2024":
        complaints.append("row 0 of pos_emb.weight must be padding, all zero")
    return complaints


def _copy_names(prefix: str) -> tuple[str, str]:
    """The tied head, and the item table in the paper's module for sampled losses."""
    return f"{prefix}head.weight", "embed_layer.weight"


def _copies(
    state: Mapping[str, Any], prefix: str, table: np.ndarray, family: _Family
) -> list[str]:
    return [
        f"{name} must equal {prefix}{family.table}: only tied heads are here"
        for name in _copy_names(prefix)
        if name in state and not np.array_equal(_array(name, state[name]), table)
    ]


def _few(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) or "nothing") + more
