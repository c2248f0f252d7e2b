"""Do our encoders compute what the paper's code computes?

    python -m benchmarks.parity --paper-repo ../sasrec-bert4rec-recsys23

The models are built by the paper's own src/models.py (whose code this runs) at the
shapes of ML-1M, their weights imported by `jaxrec.torch_weights`, and the same
histories given to both: hidden states, scores, the loss and the gradient of one
training step without dropout, all in float32 and with PAD and MASK in the softmax, as
that code has them. Once with the initial weights and once with noise of N(0, 0.1) on
top, so that no bias is 0 and no norm the identity. Then the number of parameters and
the initial values of every tensor, theirs against ours.

Needs a checkout of antklen/sasrec-bert4rec-recsys23, torch, and for BERT4Rec
transformers; a row says what was not run for want of them. Ends with status 1 if a row
misses its bar.
"""

import hashlib
import importlib.metadata
import importlib.util
import math
import sys
import unittest.mock
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import options
from benchmarks.measure import file_name
from jaxrec import (
    batches,
    models,
    negatives,
    objectives,
    optim,
    record,
    steps,
    torch_weights,
)
from jaxrec.batches import Batch
from jaxrec.command import run_command
from jaxrec.errors import InputError
from jaxrec.ranking import item_mask
from jaxrec.torch_weights import Weights

NUM_ITEMS, WIDTH, NUM_LAYERS, INNER_WIDTH, LENGTH = 3_416, 64, 2, 256, 200
BATCH_SIZE = 16
# norm(ours - theirs) / norm(theirs); float32 rounds at 6e-8.
BAR = 1e-5
# Of a difference of two estimates; the largest of some hundred of them is about 3.
STANDARD_ERRORS = 5.0


class System(NamedTuple):
    """A model of the paper's code, and what has to be installed for it."""

    model: str
    num_heads: int
    packages: tuple[str, ...]


SYSTEMS = {
    "SASRec, 1 head": System("SASRec", 1, ("torch",)),
    "SASRec, 2 heads": System("SASRec", 2, ("torch",)),
    "BERT4Rec, 2 heads": System("BERT4Rec", 2, ("torch", "transformers")),
}
# Initial values and counts do not depend on the heads.
COUNTED = ("SASRec, 1 head", "BERT4Rec, 2 heads")


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def import_models(path: Path) -> Any:
    """The paper's src/models.py as a module."""
    spec = importlib.util.spec_from_file_location("paper_models", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    stands_in = not is_installed("transformers")
    if stands_in:  # the file imports it first of all, though for BERT4Rec alone
        sys.modules["transformers"] = unittest.mock.Mock()
    try:
        spec.loader.exec_module(module)
    finally:
        if stands_in:
            del sys.modules["transformers"]
    return module


def build(paper: Any, system: System) -> Any:
    """Their model with their initial weights, dropout 0."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    if system.model == "SASRec":
        return paper.SASRec(
            item_num=NUM_ITEMS,
            maxlen=LENGTH,
            hidden_units=WIDTH,
            num_blocks=NUM_LAYERS,
            num_heads=system.num_heads,
            dropout_rate=0.0,
        )
    config = {
        "vocab_size": 2,
        "hidden_size": WIDTH,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": system.num_heads,
        "intermediate_size": INNER_WIDTH,
        "max_position_embeddings": LENGTH,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return paper.BERT4Rec(vocab_size=NUM_ITEMS + 2, bert_config=config)


def add_noise(model: Any) -> None:
    """N(0, 0.1) on every parameter; rows of padding stay 0."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.manual_seed(1)
    with torch.no_grad():
        for x in model.parameters():
            x += 0.1 * torch.randn_like(x)
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.padding_idx == 0:
                module.weight[0] = 0.0


def make_batch(objective: str) -> Batch:
    """Random histories of 2 items up to a full window, and their targets."""
    rng = np.random.default_rng(0)
    size = LENGTH + 1 if objective == "next_item" else LENGTH
    window_BX = rng.integers(1, NUM_ITEMS + 1, (BATCH_SIZE, size), dtype=np.int32)
    length_B = np.linspace(2, size, BATCH_SIZE).astype(int)
    window_BX[np.arange(size) >= length_B[:, None]] = models.PAD
    if objective == "next_item":
        return batches.next_item(jnp.asarray(window_BX))
    mask_id = models.mask_id(NUM_ITEMS)
    key = jax.random.key(0)
    return batches.cloze(key, jnp.asarray(window_BX), mask_id=mask_id, probability=0.2)


def their_step(model: Any, weights: Weights, batch: Batch) -> dict[str, Any]:
    """Hidden states and scores of real tokens, mean loss and gradient, in our order."""
    import torch  # pyright: ignore[reportMissingImports]

    tokens_BL = np.asarray(batch.tokens_BL)
    is_real_BL = tokens_BL > 0
    ids_BL = torch.tensor(weights.source_row_V[tokens_BL])
    mask_BL = torch.tensor(is_real_BL, dtype=torch.float32)
    target_BL = weights.source_row_V[np.asarray(batch.target_BL)]
    label_BL = np.where(np.asarray(batch.weight_BL) > 0, target_BL, -100)
    model.train()
    model.zero_grad()
    score_BLV = model(ids_BL, mask_BL)
    loss = torch.nn.functional.cross_entropy(
        score_BLV.flatten(0, 1), torch.tensor(label_BL).flatten(), ignore_index=-100
    )
    loss.backward()
    named = {k: x.grad for k, x in model.named_parameters() if x.grad is not None}
    model.add_head = False
    with torch.no_grad():
        hidden_BLD = model(ids_BL, mask_BL).numpy()
    model.add_head = True
    gradient = torch_weights.load(named, num_heads=weights.options["num_heads"])
    return {
        "hidden states": hidden_BLD[is_real_BL],
        "scores": score_BLV.detach().numpy()[is_real_BL][:, weights.source_row_V],
        "loss": loss.item(),
        "gradient": gradient.params,
    }


def our_step_fn(weights: Weights, batch: Batch) -> Callable[[Any], dict[str, Any]]:
    """The same as a function of our parameters, on packed rows as training has them."""
    no_dropout = {"dropout": 0.0}
    if weights.model == "bert4rec":
        no_dropout["attention_dropout"] = 0.0
    encoder = weights.encoder.clone(**no_dropout)
    num_table_rows = len(weights.source_row_V)
    objective = objectives.ce(include_padding=True)
    recipe = steps.Recipe(encoder, objective, optim.adam(), LENGTH, LENGTH, seed=0)
    is_real_BL = np.asarray(batch.tokens_BL) > 0
    (slot_B,), (num_rows,) = batches.assign_slots(is_real_BL.sum(1)[None], LENGTH)
    packing = batches.place(
        batch.tokens_BL, jnp.asarray(slot_B), num_rows=num_rows, row_length=LENGTH
    )
    items = objectives.Items(
        item_mask(num_table_rows, NUM_ITEMS),
        negatives.make_pool(np.arange(num_table_rows) > 0),
    )
    key = jax.random.key(0)
    candidates = objective.candidates(key, batch.target_BL, batch.seen_BX, items)

    @jax.jit
    @jax.value_and_grad
    def mean_loss(params):
        loss_sum, weight = steps.batch_loss(
            params, recipe, batch, packing, candidates, key
        )
        return loss_sum / weight

    @jax.jit
    def states(params):
        rows_RT = batches.pack(batch.tokens_BL, packing)
        hidden_RTD = encoder.apply({"params": params}, *rows_RT, train=False)
        hidden_BLD = batches.unpack(hidden_RTD, packing)
        return hidden_BLD, hidden_BLD @ params["item_embedding"]["table"].T

    def step(params: Any) -> dict[str, Any]:
        loss, gradient = mean_loss(params)
        hidden_BLD, score_BLV = map(np.asarray, states(params))
        return {
            "hidden states": hidden_BLD[is_real_BL],
            "scores": score_BLV[is_real_BL],
            "loss": float(loss),
            "gradient": gradient,
        }

    return step


def leaves(tree: Any) -> dict[str, np.ndarray]:
    """Every array of a tree by its path, such as "blocks_0/inner/kernel"."""
    return {
        "/".join(str(key.key) for key in path): np.asarray(x, np.float64)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def distance(ours: Any, theirs: Any) -> float:
    """norm(ours - theirs) / norm(theirs) over all leaves."""
    a, b = (
        np.concatenate([x.ravel() for x in leaves({"": tree}).values()])
        for tree in (ours, theirs)
    )
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def worst_tensor(ours: Any, theirs: Any) -> dict[str, Any]:
    """The tensor of the gradient that differs most, by its own norm.

    A key's bias moves all scores of a query alike, so its gradient is 0 but for
    rounding; tensors below 1e-4 of the whole norm are left out.
    """
    a, b = leaves(ours), leaves(theirs)
    floor = 1e-4 * math.hypot(*(float(np.linalg.norm(x)) for x in b.values()))
    found = {k: distance(a[k], b[k]) for k in b if np.linalg.norm(b[k]) > floor}
    name = max(found, key=found.__getitem__)
    return {"tensor": name, "relative_difference": short(found[name])}


def difference_rows(label: dict[str, Any], ours: dict, theirs: dict) -> list[dict]:
    """How far apart both sides are, a row for each quantity."""
    rows = []
    for quantity in theirs:
        difference = distance(ours[quantity], theirs[quantity])
        row = label | {
            "quantity": quantity,
            "relative_difference": short(difference),
            "bar": BAR,
            "passes": difference < BAR,
        }
        if quantity == "gradient":
            row["worst_tensor"] = worst_tensor(ours[quantity], theirs[quantity])
        rows.append(row)
    return rows


def count_row(title: str, model: Any, weights: Weights) -> dict:
    """Parameters of both; theirs has some that a forward pass never reads."""
    sizes = {name: x.numel() for name, x in model.named_parameters()}
    unread = {
        name: size // 2 if "token_type" in name else size  # row 1 of two
        for name, size in sizes.items()
        if any(part in name for part in ("word_embeddings", "pooler", "token_type"))
    }
    ours, theirs = models.num_parameters(weights.params), sum(sizes.values())
    return {
        "system": title,
        "quantity": "parameters",
        "ours": ours,
        "theirs": theirs,
        "theirs_never_read": unread,
        "passes": ours == theirs - sum(unread.values()),
    }


def initial_rows(title: str, weights: Weights) -> list[dict]:
    """Mean and spread of every tensor as it begins, theirs and ours from seed 0."""
    one_11 = jnp.ones((1, 1), jnp.int32)
    init = jax.jit(lambda key: weights.encoder.init(key, *[one_11] * 3, train=False))
    ours = leaves(init(jax.random.key(0))["params"])
    rows = []
    for name, theirs in leaves(weights.params).items():
        pair = (ours[name], theirs)
        a, b = map(estimates, pair)
        errors = [
            abs(x - y) / math.hypot(error_x, error_y) if x != y else 0.0
            for (x, error_x), (y, error_y) in zip(a, b, strict=True)
        ]
        rows.append(
            {
                "system": title,
                "quantity": "initial values",
                "tensor": name,
                "ours_mean_spread": [short(x) for x, _ in a],
                "theirs_mean_spread": [short(x) for x, _ in b],
                "standard_errors": [short(error) for error in errors],
                "passes": max(errors) < STANDARD_ERRORS,
            }
        )
    return rows


def short(x: float) -> float:
    """x to four digits.

    >>> short(1.23456e-7)
    1.235e-07
    """
    return float(f"{x:.4g}")


def estimates(x: np.ndarray) -> list[tuple[float, float]]:
    """Mean and spread of a tensor, each with its standard error (0 of a constant)."""
    mean, spread = float(x.mean()), float(x.std())
    fourth = float(((x - mean) ** 4).mean())
    error = math.sqrt((fourth - spread**4) / x.size) / (2 * spread) if spread else 0.0
    # The smallest float stands for 0: two constants that differ are infinitely far.
    tiny = sys.float_info.min
    return [(mean, spread / math.sqrt(x.size) + tiny), (spread, error + tiny)]


def system_rows(paper: Any, title: str, system: System) -> list[dict]:
    """All rows of one of their models."""
    model = build(paper, system)
    weights = torch_weights.load(model.state_dict(), num_heads=system.num_heads)
    rows = []
    if title in COUNTED:
        rows += [count_row(title, model, weights), *initial_rows(title, weights)]
    batch = make_batch(weights.encoder.objective)
    step_fn = our_step_fn(weights, batch)
    for kind in ("initial", "initial + noise"):
        label = {"system": title, "weights": kind}
        ours, theirs = step_fn(weights.params), their_step(model, weights, batch)
        rows += difference_rows(label, ours, theirs)
        add_noise(model)
        weights = torch_weights.load(model.state_dict(), num_heads=system.num_heads)
    return rows


def measure(path: Path) -> list[dict]:
    """All rows against the models.py at `path`."""
    rows, paper = [], None
    for title, system in SYSTEMS.items():
        absent = [name for name in system.packages if not is_installed(name)]
        if absent:
            reason = f"not run: {' and '.join(absent)} not installed"
            rows.append({"system": title, "quantity": reason})
            continue
        paper = paper or import_models(path)
        rows += system_rows(paper, title, system)
    return rows


def show(rows: list[dict]) -> None:
    """The rows as a table; of the initial values the tensor furthest off."""
    for row in rows:
        if "relative_difference" in row:
            what = f"{row['quantity']}, {row['weights']} weights"
            value = f"{row['relative_difference']:.1e}"
        elif row["quantity"] == "parameters":
            what, value = "parameters", f"{row['ours']:,}"
        elif row["quantity"] == "initial values":
            continue
        else:
            what, value = row["quantity"], ""
        verdict = ""
        if "passes" in row:
            verdict = "equal" if row["passes"] else "DIFFERENT"
        print(f"{row['system']:<20}{what:<42}{value:>9}  {verdict}")
    for title in COUNTED:
        tensors = [row for row in rows if "tensor" in row and row["system"] == title]
        if tensors:
            worst = max(max(row["standard_errors"]) for row in tensors)
            what = f"initial values, {len(tensors)} tensors"
            print(f"{title:<20}{what:<42}{worst:9.1f}  standard errors at the most")


def versions(path: Path) -> dict[str, str]:
    """What could change a row: packages, and the file that was compared with."""
    found = record.versions()
    for package in ("torch", "transformers"):
        is_there = is_installed(package)
        found[package] = importlib.metadata.version(package) if is_there else "absent"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return found | {"paper's src/models.py, sha256": digest}


def main(argv: Sequence[str]) -> int:
    """The command."""
    parser = options.parser(
        "parity", "Compare our encoders with a checkout of the paper's code."
    )
    parser.add_argument(
        "--paper-repo",
        type=Path,
        required=True,
        help="a checkout of antklen/sasrec-bert4rec-recsys23; its models.py is run",
    )
    parser.add_argument(
        "--output",
        type=options.file,
        help="the record (benchmarks/results/parity/<device>-<date>.json)",
    )
    flags = parser.parse_args(argv)
    path = flags.paper_repo / "src" / "models.py"
    if not path.is_file():
        raise InputError(
            f"--paper-repo must be a checkout of antklen/sasrec-bert4rec-recsys23: "
            f"{path} is not there. Clone it from GitHub and name its folder."
        )
    with jax.default_matmul_precision("highest"):  # a GPU would multiply in TF32
        rows = measure(path)
    show(rows)
    name = f"{file_name(record.device())}-{record.date()}.json"
    output = flags.output or Path(__file__).parent / "results" / "parity" / name
    output.parent.mkdir(parents=True, exist_ok=True)
    record.write_json(
        output,
        {
            "question": "do our encoders compute what the paper's code computes",
            "command": record.command(),
            "commit": record.commit(),
            "date": record.date(),
            "device": record.device(),
            "versions": versions(path),
            "rows": rows,
        },
    )
    return 0 if all(row.get("passes", True) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(run_command(main))
