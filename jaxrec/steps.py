"""One optimiser step, and many of them in one dispatch. Pure functions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrec import backend, batches, losses, models
from jaxrec.batches import Batch, Log, Packing
from jaxrec.checkpoint import TrainState
from jaxrec.objectives import Items, Objective, TakesPacked
from jaxrec.random import stream

Array = jax.Array

# Parts of a batch's rows on a CPU, at the most, and tokens of each at the least. More
# parts compile for longer.
_CPU_PARTS, _PART_TOKENS = 4, 2048


class Recipe(NamedTuple):
    """What a step is made of; nothing here changes while a run trains.

    encoder: a module of `models`, or with its two doors.
    max_length: L, tokens of a window that the encoder sees.
    history_length: the longest training history, for objectives that exclude it.
    mask_probability: of hiding an item, cloze only.
    ema_decay: of the moving average of parameters; 0 keeps none.
    """

    encoder: Any
    objective: Objective
    optimiser: optax.GradientTransformation
    max_length: int
    history_length: int
    seed: int
    mask_probability: float = 0.2
    ema_decay: float = 0.0


def init_state(recipe: Recipe) -> TrainState:
    """Step 0: parameters drawn from the seed's stream "params"."""
    tokens_11 = jnp.ones((1, 1), jnp.int32)
    variables = recipe.encoder.init(
        stream(recipe.seed, "params"), tokens_11, tokens_11 - 1, tokens_11, train=False
    )
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=recipe.optimiser.init(params),
        ema=jax.tree.map(jnp.copy, params) if recipe.ema_decay else None,
    )


def training_batch(
    recipe: Recipe, log: Log, start_B: Array, end_B: Array, step: Array
) -> Batch:
    """The windows of one step and their targets, by the encoder's objective."""
    encoder, length = recipe.encoder, recipe.max_length
    if encoder.objective == "next_item":
        return batches.next_item(
            batches.windows(log, start_B, end_B, length=length + 1)
        )
    return batches.cloze(
        jax.random.fold_in(stream(recipe.seed, "cloze"), step),
        batches.windows(log, start_B, end_B, length=length),
        mask_id=models.mask_id(encoder.num_items),
        probability=recipe.mask_probability,
    )


def batch_loss(
    params, recipe: Recipe, batch: Batch, packing: Packing, candidates, dropout_key
) -> tuple[Array, Array]:
    """(sum, weight) of a batch's loss: pack, encode, compare."""
    rows = batches.pack(batch.tokens_BL, packing)
    hidden_RTD = encode_rows(params, recipe.encoder, rows, dropout_key)
    if isinstance(recipe.objective.loss, TakesPacked):
        is_dense = recipe.encoder.objective == "next_item"
        hidden = losses.Packed(hidden_RTD, packing.place_BL, is_dense=is_dense)
    else:
        hidden = batches.unpack(hidden_RTD, packing)
    table_VD = recipe.encoder.apply({"params": params}, method="table")
    return recipe.objective.loss(
        hidden, table_VD, batch.target_BL, batch.weight_BL, candidates
    )


def encode_rows(params, encoder, rows, dropout_key) -> Array:
    """Hidden states [R, T, D] of packed rows in training, in one part or several.

    A CPU works on independent chains of operations side by side, each with its data in
    a core's cache, where one chain of larger operations leaves cores waiting at the end
    of each: benchmarks/LOG.md.

    Args:
      rows: tokens, positions and segments of `batches.pack`, int32 [R, T] each.
      dropout_key: consumed.
    """
    num_rows, row_length = rows[0].shape
    num_parts = 1
    if backend.is_cpu():
        num_parts = min(_CPU_PARTS, num_rows, num_rows * row_length // _PART_TOKENS)
        num_parts = max(1, num_parts)
    edges = [i * num_rows // num_parts for i in range(num_parts + 1)]
    parts = [
        encoder.apply(
            {"params": params},
            *(x_RT[first:last] for x_RT in rows),
            train=True,
            rngs={"dropout": jax.random.fold_in(dropout_key, first)},
        )
        for first, last in zip(edges[:-1], edges[1:], strict=True)
    ]
    return jnp.concatenate(parts)


def train_step(
    state: TrainState,
    recipe: Recipe,
    log: Log,
    train_end_U: Array,
    items: Items,
    user_B: Array,
    slot_B: Array,
    *,
    num_rows: int,
) -> tuple[TrainState, tuple[Array, Array]]:
    """One step on the windows of `user_B`; returns (loss sum, weight) beside the state.

    The gradient is that of the mean over all positions of the batch that have a target.

    Args:
      train_end_U: int32, where each user's training part ends in the log.
      user_B: int32, -1 for a filler.
      slot_B: int32, where each window begins in the packed rows.
      num_rows: R.
    """
    is_user_B = user_B >= 0
    start_B = jnp.where(is_user_B, log.offset_U1[user_B], 0)
    end_B = jnp.where(is_user_B, train_end_U[user_B], 0)
    batch = training_batch(recipe, log, start_B, end_B, state.step)
    packing = batches.place(
        batch.tokens_BL, slot_B, num_rows=num_rows, row_length=recipe.max_length
    )
    seen_BX = batch.seen_BX
    if recipe.objective.exclude == "history":
        seen_BX = batches.windows(log, start_B, end_B, length=recipe.history_length)
    candidates = recipe.objective.candidates(
        jax.random.fold_in(stream(recipe.seed, "negatives"), state.step),
        batch.target_BL,
        seen_BX,
        items,
    )
    dropout_key = jax.random.fold_in(stream(recipe.seed, "dropout"), state.step)

    def loss(params):
        loss_sum, weight = batch_loss(
            params, recipe, batch, packing, candidates, dropout_key
        )
        return loss_sum / jnp.maximum(weight, 1), (loss_sum, weight)

    gradients, sums = jax.grad(loss, has_aux=True)(state.params)
    updates, opt_state = recipe.optimiser.update(
        gradients, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        ema = optax.incremental_update(params, ema, 1 - recipe.ema_decay)
    return TrainState(state.step + 1, params, opt_state, ema), sums


def train_steps(
    state: TrainState,
    log: Log,
    train_end_U: Array,
    items: Items,
    user_SB: Array,
    slot_SB: Array,
    *,
    recipe: Recipe,
    num_rows: int,
) -> tuple[TrainState, tuple[Array, Array]]:
    """A step for each of the S batches, by lax.scan; sums of loss and weight of all."""

    def step(state, users_and_slots):
        return train_step(
            state, recipe, log, train_end_U, items, *users_and_slots, num_rows=num_rows
        )

    state, (loss_S, weight_S) = jax.lax.scan(step, state, (user_SB, slot_SB))
    return state, (loss_S.sum(), weight_S.sum())
