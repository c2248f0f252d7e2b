"""Are losses, gradients, attention, packing, ranks and training right on this device?

Losses, attention and ranks against float64 NumPy on the same random arrays, at the
default precision of matmuls and at the highest: recent GPUs multiply float32 in TF32 by
default (10 bits of mantissa), which the first bar allows for, and the highest precision
has to come out as float32 does. Packed rows against padded ones. A few steps of
training against the host's CPU, which draws the same random bits.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from benchmarks import measure, ranking_speed, shapes
from benchmarks.gpu_suite import oracles
from benchmarks.gpu_suite.part import Flags, Row, Task
from benchmarks.shapes import METHODS, SHAPES, TINY, Shape
from benchmarks.trainer import Trainer
from jaxrec import attention, batches, data, loop, losses, ranking, steps

NOTES = (
    "error: of losses and gradients norm(ours - theirs) / norm(theirs), the largest of "
    "its arrays; of ranks the share that differs; of training the relative difference "
    "of the loss, the largest of its dispatches.",
)
# float32 rounds at 6e-8, TF32 at 5e-4; a layer adds to what came before it.
FLOAT32_BAR, TF32_BAR = 1e-5, 1e-2
# Of random floats, scores that differ in the last bit can move a rank by one.
RANKS_BAR, FLOAT_RANKS_BAR = 0.0, 0.01
TRAINING_BAR = 1e-3
DISPATCHES = 3


class Scale(NamedTuple):
    """How large the arrays are.

    batch, length, width: B, L, D. tables: V, no multiple of a tile among them.
    users: to be ranked among `items`. shape: of the log that is encoded and trained on,
    with `batch_size` of its users a step.
    """

    batch: int
    length: int
    width: int
    tables: tuple[int, ...]
    negatives: int
    users: int
    items: int
    shape: Shape
    batch_size: int


FULL = Scale(16, 100, 64, (3_417, 20_011), 300, 256, 20_000, SHAPES["ml-1m"], 64)
SMALL = Scale(3, 6, 8, (61, 9_001), 5, 8, 300, TINY, 8)


class Check(NamedTuple):
    """A result and what it should be: trees of arrays of equal structure."""

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]


def tasks(flags: Flags) -> Iterator[Task]:
    """What is checked."""
    scale = SMALL if flags.is_tiny else FULL
    for num_rows in scale.tables:
        checks = partial(loss_checks, scale, num_rows)
        yield Task(f"losses of {num_rows:,} rows", partial(checked, checks))
    yield Task("attention", partial(checked, partial(attention_checks, scale)))
    yield Task("ranks", partial(rank_rows, scale))
    # BERT4Rec's is the other encoder; of the losses every one is trained with.
    encoders = ("sasrec_ce",) if flags.is_tiny else ("sasrec_ce", "bert4rec")
    for method in encoders:
        checks = partial(packing_checks, scale, method)
        yield Task(f"packing, {method}", partial(checked, checks))
    for method in encoders if flags.is_tiny else METHODS:
        yield Task(f"training, {method}", partial(training_rows, scale, method))


def error(ours: Any, theirs: Any) -> float:
    """The largest of norm(ours - theirs) / norm(theirs) over the arrays."""
    found = []
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    for one, other in pairs:
        difference = np.asarray(one, np.float64) - np.asarray(other, np.float64)
        found.append(np.linalg.norm(difference) / np.linalg.norm(other))
    return float(np.max(found))


def judged(name: str, precision: str, found: float, bar: float) -> Row:
    """A row, which has failed if the error is above its bar, or is NaN."""
    row = {"check": name, "precision": precision, "error": float(f"{found:.2g}")}
    row["bar"] = bar
    if not found <= bar:
        row["failed"] = "the error is above the bar"
    return row


def checked(checks: Callable[[], Iterator[Check]]) -> Iterator[Row]:
    """A row for each check and precision; a CPU has but one."""
    for check in checks():
        with jax.default_matmul_precision("highest"):
            theirs = check.theirs()
        for precision in ("highest",) if measure.on_cpu() else ("default", "highest"):
            with jax.default_matmul_precision(precision):
                found = error(check.ours(), theirs)
            bar = FLOAT32_BAR if precision == "highest" else TF32_BAR
            yield judged(check.name, precision, found, bar)


class Batch(NamedTuple):
    """Random positions, and what may compete with their targets."""

    hidden_BLD: np.ndarray
    table_VD: np.ndarray
    target_BL: np.ndarray
    weight_BL: np.ndarray
    seen_BX: np.ndarray
    negative_BS: np.ndarray
    negative_BLS: np.ndarray


def random_batch(scale: Scale, num_rows: int) -> Batch:
    rng = np.random.default_rng(num_rows)
    shape = (scale.batch, scale.length)
    target_BL = rng.integers(1, num_rows, shape, dtype=np.int32)
    # Distinct, and none of them a target, as the samplers draw them.
    others = np.setdiff1d(np.arange(1, num_rows), target_BL)
    negative_BS = rng.permuted(np.tile(others, (scale.batch, 1)), axis=1)
    return Batch(
        hidden_BLD=rng.normal(size=(*shape, scale.width)).astype(np.float32),
        table_VD=rng.normal(0, 0.3, (num_rows, scale.width)).astype(np.float32),
        target_BL=target_BL,
        weight_BL=(rng.random(shape) < 0.7).astype(np.float32),
        seen_BX=rng.integers(1, num_rows, shape, dtype=np.int32),
        negative_BS=negative_BS[:, : scale.negatives].astype(np.int32),
        negative_BLS=rng.integers(1, num_rows, (*shape, 4), dtype=np.int32),
    )


def loss_checks(scale: Scale, num_rows: int) -> Iterator[Check]:
    """Every loss with both of its gradients, against one table."""
    batch = random_batch(scale, num_rows)
    flat = {
        "hidden_ND": batch.hidden_BLD.reshape(-1, scale.width).astype(np.float64),
        "table_VD": batch.table_VD.astype(np.float64),
        "target_N": batch.target_BL.reshape(-1),
        "weight_N": batch.weight_BL.reshape(-1).astype(np.float64),
    }
    row_B1 = np.arange(scale.batch)[:, None]

    def softmax(is_candidate_BV: np.ndarray) -> Any:
        is_candidate_NV = np.repeat(is_candidate_BV, scale.length, axis=0)
        is_candidate_NV[np.arange(len(is_candidate_NV)), flat["target_N"]] = True
        return oracles.softmax(**flat, is_candidate_NV=is_candidate_NV)

    all_BV = np.tile(np.arange(num_rows) > 0, (scale.batch, 1))
    unseen_BV, drawn_BV = all_BV.copy(), np.zeros_like(all_BV)
    unseen_BV[row_B1, batch.seen_BX] = False
    drawn_BV[row_B1, batch.negative_BS] = True
    negative_NS = batch.negative_BLS.reshape(-1, batch.negative_BLS.shape[-1])
    all_V, seen_BX = jnp.asarray(all_BV[0]), jnp.asarray(batch.seen_BX)
    for name, loss, candidates, theirs in (
        ("ce", losses.ce, losses.Catalogue(all_V), partial(softmax, all_BV)),
        (
            "ce, less the items seen",
            losses.ce,
            losses.Catalogue(all_V, seen_BX),
            partial(softmax, unseen_BV),
        ),
        (
            "sampled ce",
            losses.sampled_ce,
            losses.Shared(jnp.asarray(batch.negative_BS)),
            partial(softmax, drawn_BV),
        ),
        (
            "bce",
            losses.bce,
            losses.Separate(jnp.asarray(batch.negative_BLS)),
            partial(oracles.bce, **flat, negative_NS=negative_NS),
        ),
    ):
        yield Check(name, partial(with_gradients, loss, batch, candidates), theirs)


def with_gradients(loss: Callable, batch: Batch, candidates: Any) -> Any:
    """The sum of a loss, and its gradients to hidden states [N, D] and table."""
    pair = jnp.asarray(batch.hidden_BLD), jnp.asarray(batch.table_VD)
    rest = jnp.asarray(batch.target_BL), jnp.asarray(batch.weight_BL), candidates

    def total(hidden_BLD, table_VD, *rest):
        return loss(hidden_BLD, table_VD, *rest)[0]

    value, grads = jax.jit(jax.value_and_grad(total, (0, 1)))(*pair, *rest)
    return value, grads[0].reshape(-1, batch.table_VD.shape[1]), grads[1]


def attention_checks(scale: Scale) -> Iterator[Check]:
    """Attention over packed rows, causal with one head, and both ways with two."""
    rng = np.random.default_rng(0)
    # Three segments to a row, and padding.
    edges = np.arange(scale.length) * 4 // scale.length
    segment_RT = np.tile(np.where(edges < 3, edges + 1, 0), (4, 1)).astype(np.int32)
    for is_causal, num_heads in ((True, 1), (False, 2)):
        shape = (4, scale.length, num_heads, scale.width // num_heads)
        *arrays, grad = (rng.normal(size=shape).astype(np.float32) for _ in range(4))
        wide = (x.astype(np.float64) for x in (*arrays, grad))
        query, key, value, wide_grad = wide
        yield Check(
            f"attention, {'causal' if is_causal else 'both ways'}, heads: {num_heads}",
            partial(attended, arrays, grad, segment_RT, is_causal=is_causal),
            partial(
                oracles.attention,
                *(query, key, value, segment_RT, wide_grad),
                is_causal=is_causal,
            ),
        )


def attended(arrays: Any, grad: Any, segment_RT: Any, *, is_causal: bool) -> Any:
    """Output of attention, and its gradients to query, key and value."""

    @jax.jit
    def call(arrays, grad, segment_RT):
        out, vjp = jax.vjp(
            lambda q, k, v: attention.attend(q, k, v, segment_RT, is_causal=is_causal),
            *arrays,
        )
        return out, *vjp(grad)

    return call(*jax.tree.map(jnp.asarray, (tuple(arrays), grad, segment_RT)))


def packing_checks(scale: Scale, method: str) -> Iterator[Check]:
    """The loss of packed rows and its gradient against those of padded ones."""
    chosen = without_dropout(scale, method)
    log = shapes.made_log(scale.shape, num_users=scale.batch_size)
    built = shapes.on_split(data.leave_one_out(log), chosen)
    user_N, length_N = loop.training_users(built)
    length = built.recipe.max_length
    plan = batches.plan_batches(
        user_N, length_N, batch_size=len(user_N), row_length=length
    )
    padded_B = np.arange(len(user_N), dtype=np.int32) * length
    yield Check(
        f"packing, {method}",
        partial(encoded_loss, built, user_N, plan.slot_SB[0], plan.num_rows),
        partial(encoded_loss, built, user_N, padded_B, len(user_N)),
    )


def without_dropout(scale: Scale, method: str) -> dict[str, Any]:
    """The config of a method; rows that are cut otherwise would drop other entries."""
    model: dict[str, Any] = {"dropout": 0.0}
    if method == "bert4rec":
        model["attention_dropout"] = 0.0
    train = {"batch_size": scale.batch_size}
    return shapes.settings(scale.shape, method, model=model, train=train)


def encoded_loss(built: Any, user_N: Any, slot_B: np.ndarray, num_rows: int) -> Any:
    """Mean loss of a batch whose windows lie so in the rows, and its whole gradient."""
    recipe, key = built.recipe, jax.random.key(0)
    log, items = built.log, built.items
    end_B = jnp.asarray(built.split.train_end[user_N], jnp.int32)

    @jax.jit
    def call(log, items, start_B, end_B, slot_B):
        params = steps.init_state(recipe).params
        step = jnp.zeros((), jnp.int32)
        batch = steps.training_batch(recipe, log, start_B, end_B, step)
        packing = batches.place(
            batch.tokens_BL, slot_B, num_rows=num_rows, row_length=recipe.max_length
        )
        candidates = recipe.objective.candidates(
            key, batch.target_BL, batch.seen_BX, items
        )

        def mean(params):
            total, weight = steps.batch_loss(
                params, recipe, batch, packing, candidates, key
            )
            return total / weight

        value, grads = jax.value_and_grad(mean)(params)
        return value, ravel_pytree(grads)[0]

    return call(log, items, log.offset_U1[user_N], end_B, jnp.asarray(slot_B))


def rank_rows(scale: Scale) -> Iterator[Row]:
    """The share of ranks that are not the oracle's, whole and in chunks of items.

    Embeddings of small integers have exact scores, with many ties.
    """
    task = ranking_speed.make_task(scale.items, scale.users, scale.width)
    rounded = task._replace(
        hidden_BD=jnp.round(2 * task.hidden_BD), table_VD=jnp.round(2 * task.table_VD)
    )
    for kind, one, bar in (
        ("integers", rounded, RANKS_BAR),
        ("floats", task, FLOAT_RANKS_BAR),
    ):
        expected_2B = oracles.ranks(
            np.asarray(one.hidden_BD, np.float64),
            np.asarray(one.table_VD, np.float64),
            *map(np.asarray, (one.target_B, one.seen.row_H, one.seen.item_H)),
        )
        for chunk in (None, scale.items // 3):
            program = jax.jit(partial(ranking.target_ranks, item_chunk=chunk))
            found, _ = program(*one)
            found_2B = np.stack([found.filtered, found.unfiltered])
            where = "whole" if chunk is None else "in chunks"
            differing = float((found_2B != expected_2B).mean())
            yield judged(f"ranks of {kind}, {where}", "highest", differing, bar)


def training_rows(scale: Scale, method: str) -> Iterator[Row]:
    """The loss of a few dispatches of 4 steps: this device against the host's CPU."""
    try:
        host = jax.devices("cpu")[-1]
    except RuntimeError as missing:  # JAX_PLATFORMS has left it out
        yield {"check": f"training, {method}", "not_run": str(missing)}
        return
    log = shapes.made_log(scale.shape, num_users=4 * scale.batch_size)
    split = data.leave_one_out(log)
    chosen = without_dropout(scale, method)
    found = []
    for device in (jax.devices()[0], host):
        with jax.default_device(device):
            trainer = Trainer(split, chosen, num_steps=4)
            found.append([float(trainer()) for _ in range(DISPATCHES)])
    ours, theirs = np.array(found)
    differing = float(np.abs(ours / theirs - 1).max())
    name = f"loss of {4 * DISPATCHES} steps, {method}"
    yield judged(name, "default", differing, TRAINING_BAR)
