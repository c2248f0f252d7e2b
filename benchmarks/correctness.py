"""Are losses, gradients, attention and ranks right on this device?

    python -m benchmarks.correctness

Each against a slow NumPy oracle in float64 on the same random arrays, once at the
default precision of matmuls and once at the highest. Recent GPUs multiply float32 in
TF32 by default (10 bits of mantissa), which the first bar allows for; the highest
precision has to come out as float32 does. Ranks are always of the highest. Ends with
status 1 if a row misses its bar.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, ranking_speed, shapes
from benchmarks.shapes import METHODS, SHAPES
from benchmarks.trainer import Trainer
from jaxrec import attention, data, losses, ranking
from jaxrec.command import run_command

QUESTION = "are losses, gradients, attention and ranks right on this device"
# norm(ours - oracle) / norm(oracle): float32 rounds at 6e-8, TF32 at 5e-4.
FLOAT32_BAR, TF32_BAR = 1e-5, 3e-3
# Relative difference of the loss of a few steps between two devices.
STEPS_BAR = 1e-3


class Scale(NamedTuple):
    """How large the arrays are.

    batch: B; length: L; width: D; tables: V, the last not a multiple of any tile.
    users: to be ranked among `items`. shape: of the log that is trained on.
    """

    batch: int
    length: int
    width: int
    tables: tuple[int, ...]
    negatives: int
    users: int
    items: int


SCALES = {
    "full": Scale(16, 100, 64, (3_417, 20_011), 300, 256, 20_000),
    "tiny": Scale(3, 6, 8, (40, 9_001), 5, 8, 300),
}


class Check(NamedTuple):
    """A result and what it should be: arrays or trees of equal structure."""

    name: str
    ours: Callable[[], Any]
    oracle: Callable[[], Any]


def error(ours: Any, oracle: Any) -> float:
    """The largest of norm(ours - oracle) / norm(oracle) over the arrays."""
    found = []
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(oracle), strict=True)
    for one, other in pairs:
        difference = np.asarray(one, np.float64) - np.asarray(other, np.float64)
        found.append(np.linalg.norm(difference) / np.linalg.norm(other))
    return float(np.max(found))


def softmax_oracle(hidden_ND, table_VD, target_N, weight_N, is_candidate_NV):
    """The sum of the cross-entropy and both gradients, by the formulas."""
    number_N = np.arange(len(target_N))
    score_NV = np.where(is_candidate_NV, hidden_ND @ table_VD.T, -np.inf)
    highest_N1 = score_NV.max(axis=1, keepdims=True)
    share_NV = np.exp(score_NV - highest_N1)
    total_N1 = share_NV.sum(axis=1, keepdims=True)
    log_total_N = (highest_N1 + np.log(total_N1))[:, 0]
    loss = (weight_N * (log_total_N - score_NV[number_N, target_N])).sum()
    grad_NV = weight_N[:, None] * share_NV / total_N1
    grad_NV[number_N, target_N] -= weight_N
    return loss, grad_NV @ table_VD, grad_NV.T @ hidden_ND


def bce_oracle(hidden_ND, table_VD, target_N, weight_N, negative_NS):
    """The same of the binary cross-entropy."""
    num_negatives = negative_NS.shape[1]
    hidden_grad_ND, table_grad_VD = np.zeros_like(hidden_ND), np.zeros_like(table_VD)
    loss = 0.0
    for n, hidden_D in enumerate(hidden_ND):
        item_S = np.append(target_N[n], negative_NS[n])
        sign_S = np.append(-1.0, np.ones(num_negatives))
        score_S = sign_S * (table_VD[item_S] @ hidden_D)
        scale = weight_N[n] / (1 + num_negatives)
        loss += scale * np.logaddexp(0, score_S).sum()
        grad_S = scale * sign_S / (1 + np.exp(-score_S))
        hidden_grad_ND[n] = grad_S @ table_VD[item_S]
        np.add.at(table_grad_VD, item_S, grad_S[:, None] * hidden_D)
    return loss, hidden_grad_ND, table_grad_VD


def loss_checks(scale: Scale) -> Iterator[Check]:
    """Every loss with both of its gradients."""
    for num_rows in scale.tables:
        yield from checks_of_table(scale, num_rows)


def checks_of_table(scale: Scale, num_rows: int) -> Iterator[Check]:
    rng = np.random.default_rng(num_rows)
    shape = (scale.batch, scale.length)
    hidden_BLD = rng.normal(size=(*shape, scale.width)).astype(np.float32)
    table_VD = rng.normal(0, 0.3, (num_rows, scale.width)).astype(np.float32)
    target_BL = rng.integers(1, num_rows, shape, dtype=np.int32)
    weight_BL = (rng.random(shape) < 0.7).astype(np.float32)
    seen_BX = rng.integers(1, num_rows, shape, dtype=np.int32)
    # Distinct, and none of them a target, as the samplers draw them.
    size = (scale.batch, scale.negatives)
    others = np.setdiff1d(np.arange(1, num_rows), target_BL)
    negative_BS = rng.permuted(np.tile(others, (scale.batch, 1)), axis=1)
    negative_BS = negative_BS[:, : size[1]].astype(np.int32)
    negative_BLS = rng.integers(1, num_rows, (*shape, 4), dtype=np.int32)
    is_item_V = np.arange(num_rows) > 0

    flat = {
        "hidden_ND": hidden_BLD.reshape(-1, scale.width).astype(np.float64),
        "table_VD": table_VD.astype(np.float64),
        "target_N": target_BL.reshape(-1),
        "weight_N": weight_BL.reshape(-1).astype(np.float64),
    }
    sequence_N = np.repeat(np.arange(scale.batch), scale.length)

    def ours(loss: Callable, candidates: Any) -> Callable[[], Any]:
        def total(hidden_BLD, table_VD):
            return loss(hidden_BLD, table_VD, target_BL, weight_BL, candidates)[0]

        def call():
            value, grads = jax.jit(jax.value_and_grad(total, (0, 1)))(
                jnp.asarray(hidden_BLD), jnp.asarray(table_VD)
            )
            return value, grads[0].reshape(-1, scale.width), grads[1]

        return call

    def oracle(is_candidate_BV: np.ndarray) -> Callable[[], Any]:
        def call():
            is_candidate_NV = is_candidate_BV[sequence_N]
            is_candidate_NV[np.arange(len(sequence_N)), flat["target_N"]] = True
            return softmax_oracle(**flat, is_candidate_NV=is_candidate_NV)

        return call

    all_BV = np.tile(is_item_V, (scale.batch, 1))
    unseen_BV, drawn_BV = all_BV.copy(), np.zeros_like(all_BV)
    row_B1 = np.arange(scale.batch)[:, None]
    unseen_BV[row_B1, seen_BX] = False
    drawn_BV[row_B1, negative_BS] = True
    catalogue = losses.Catalogue(jnp.asarray(is_item_V))
    less_seen = losses.Catalogue(catalogue.allowed_V, jnp.asarray(seen_BX))
    shared = losses.Shared(jnp.asarray(negative_BS))
    separate = losses.Separate(jnp.asarray(negative_BLS))
    name = f"{num_rows:,} rows"
    yield Check(f"ce, {name}", ours(losses.ce, catalogue), oracle(all_BV))
    yield Check(f"ce less seen, {name}", ours(losses.ce, less_seen), oracle(unseen_BV))
    yield Check(
        f"sampled_ce, {name}", ours(losses.sampled_ce, shared), oracle(drawn_BV)
    )
    yield Check(
        f"bce, {name}",
        ours(losses.bce, separate),
        lambda: bce_oracle(
            **flat, negative_NS=negative_BLS.reshape(-1, negative_BLS.shape[-1])
        ),
    )


def attention_oracle(query, key, value, segment_RT, grad, is_causal: bool):
    """Output and the gradients of all three, sequence by sequence and head by head."""
    arrays = [np.zeros(query.shape) for _ in range(4)]
    num_rows, length, num_heads, width = query.shape
    for r in range(num_rows):
        mask_TM = segment_RT[r][:, None] == segment_RT[r][None]
        if is_causal:
            mask_TM &= np.tri(length, dtype=bool)
        for h in range(num_heads):
            q, k, v, g = (x[r, :, h] for x in (query, key, value, grad))
            score_TM = np.where(mask_TM, q @ k.T / np.sqrt(width), -np.inf)
            share_TM = np.exp(score_TM - score_TM.max(axis=1, keepdims=True))
            share_TM /= share_TM.sum(axis=1, keepdims=True)
            share_grad_TM = g @ v.T
            mean_T1 = (share_grad_TM * share_TM).sum(axis=1, keepdims=True)
            score_grad_TM = share_TM * (share_grad_TM - mean_T1) / np.sqrt(width)
            of_head = share_TM @ v, score_grad_TM @ k, score_grad_TM.T @ q
            for array, x in zip(arrays, (*of_head, share_TM.T @ g), strict=True):
                array[r, :, h] = x
    return tuple(arrays)


def attention_checks(scale: Scale) -> Iterator[Check]:
    """Attention over packed rows, one head and two, causal and not."""
    rng = np.random.default_rng(0)
    for is_causal, num_heads in ((True, 1), (False, 2)):
        shape = (4, scale.length, num_heads, scale.width // num_heads)
        query, key, value, grad = (
            rng.normal(size=shape).astype(np.float32) for _ in range(4)
        )
        # Three segments to a row, and padding.
        edges = np.arange(scale.length) * 4 // scale.length
        segment_RT = np.tile(np.where(edges < 3, edges + 1, 0), (4, 1)).astype(np.int32)

        def ours(
            arrays=(query, key, value), grad=grad, segment=segment_RT, c=is_causal
        ):
            @jax.jit
            def call(arrays, grad):
                out, vjp = jax.vjp(
                    lambda *x: attention.attend(*x, segment, is_causal=c), *arrays
                )
                return out, *vjp(grad)

            return call(tuple(map(jnp.asarray, arrays)), jnp.asarray(grad))

        def oracle(
            arrays=(query, key, value), grad=grad, segment=segment_RT, c=is_causal
        ):
            query, key, value = (x.astype(np.float64) for x in arrays)
            return attention_oracle(query, key, value, segment, grad.astype(float), c)

        kind = "causal" if is_causal else "both ways"
        yield Check(f"attention, {kind}, {num_heads} heads", ours, oracle)


def rank_rows(scale: Scale) -> Iterator[dict[str, Any]]:
    """Ranks of all users: the share that is not the oracle's, whole and in chunks.

    Embeddings of small integers have exact scores, with many ties; of random floats,
    scores that differ in the last bit can change a rank by one.
    """
    task = ranking_speed.make_task(scale.items, scale.users, scale.width)
    rounded = task._replace(
        hidden_BD=jnp.round(2 * task.hidden_BD), table_VD=jnp.round(2 * task.table_VD)
    )
    for kind, one, bar in (("integers", rounded, 0.0), ("floats", task, 0.01)):
        expected_2B = rank_oracle(one)
        for chunk in (None, scale.items // 3):
            found, _ = jax.jit(ranking.target_ranks, static_argnames="item_chunk")(
                *one, item_chunk=chunk
            )
            found_2B = np.stack([found.filtered, found.unfiltered])
            where = "whole" if chunk is None else "in chunks"
            yield {
                "check": f"ranks, {kind}, {where}",
                "precision": "highest",
                "error": float((found_2B != expected_2B).mean()),
                "bar": bar,
            }


def rank_oracle(task: ranking_speed.Task) -> np.ndarray:
    """Filtered and unfiltered ranks in float64, user by user."""
    hidden_BD, table_VD = (np.asarray(x, np.float64) for x in task[:2])
    target_B = np.asarray(task.target_B)
    row_H, item_H = np.asarray(task.seen.row_H), np.asarray(task.seen.item_H)
    found = []
    for b, (hidden_D, target) in enumerate(zip(hidden_BD, target_B, strict=True)):
        score_V = table_VD @ hidden_D
        at_least_V = score_V >= score_V[target]
        at_least_V[[0, target]] = False
        unfiltered = 1 + at_least_V.sum()
        at_least_V[item_H[row_H == b]] = False
        found.append((1 + at_least_V.sum(), unfiltered))
    return np.array(found).T


def step_rows(methods: Sequence[str], *, users: int) -> Iterator[dict[str, Any]]:
    """The loss of a few steps without dropout: this device against the host's CPU."""
    shape = SHAPES["ml-1m"]
    split = data.leave_one_out(shapes.made_log(shape, num_users=users))
    for method in methods:
        without = {"dropout": 0.0}
        if method == "bert4rec":
            without["attention_dropout"] = 0.0
        changes = {"model": without, "train": {"batch_size": users // 4}}
        chosen = shapes.settings(shape, method, **changes)
        found = []
        for device in (jax.devices()[0], jax.devices("cpu")[0]):
            with jax.default_device(device):
                found.append(float(Trainer(split, chosen, num_steps=4)()))
        yield {
            "check": f"loss of 4 steps, {method}: the device against its host",
            "precision": "default",
            "error": abs(found[0] / found[1] - 1),
            "bar": STEPS_BAR,
        }


def rows(scale: Scale) -> Iterator[dict[str, Any]]:
    """Every check, with its bar."""
    for check in (*loss_checks(scale), *attention_checks(scale)):
        expected = check.oracle()
        for precision in ("default", "highest"):
            with jax.default_matmul_precision(precision):
                found = error(check.ours(), expected)
            is_exact = precision == "highest" or measure.on_cpu()
            yield {
                "check": check.name,
                "precision": precision,
                "error": found,
                "bar": FLOAT32_BAR if is_exact else TF32_BAR,
            }
    yield from rank_rows(scale)


def run(
    *,
    scale: Scale = SCALES["full"],
    methods: Sequence[str] = tuple(METHODS),
    users: int = 256,
    output: Path = measure.RESULTS,
) -> Path:
    """Checks all and writes the record.

    Args:
      methods: whose steps are compared with the host's CPU; on a CPU none is.
      users: that these steps are trained on.
    """
    found = []
    others = () if measure.on_cpu() else step_rows(methods, users=users)
    for row in (*rows(scale), *others):
        row["error"] = float(f"{row['error']:.2g}")
        row["bar_met"] = row["error"] <= row["bar"]
        measure.tell([row])
        found.append(row)
    return measure.save("correctness", QUESTION, found, output=output)


def main(argv: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser("python -m benchmarks.correctness")
    parser.add_argument("--output", type=Path, default=measure.RESULTS)
    path = run(output=parser.parse_args(argv).output)
    return int(any(not row["bar_met"] for row in measure.read(path)["rows"]))


if __name__ == "__main__":
    sys.exit(run_command(main))
