"""Batches as pure functions of (log on the device, plan, step, key).

The host plans an epoch (`plan_epoch`): which users make up each batch and where each of
their windows lies in the packed rows of the encoder. The device does the rest inside
jit: cuts the windows out of the log, derives the targets and packs the tokens into
rows. Nothing depends on what was done before, so a run resumed at step s sees batch s.

Windows are right-padded: position 0 is the oldest item of the window, as in the paper.

Packing. Most windows are far shorter than the longest (on ML-1M 46% of a padded batch
is padding, on Beauty 89%). The encoder works on [R, T] rows that each hold several
windows end to end, told apart by segment numbers; the loss takes the hidden states of
its targets out of them (`losses.Packed`), or has [B, L] again (`unpack`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import indices
from jaxrec.data import Dataset
from jaxrec.errors import InputError

Array = jax.Array


class Log(NamedTuple):
    """A Dataset on the device, int32 throughout."""

    item_I: Array
    offset_U1: Array


class Batch(NamedTuple):
    """Windows of B sequences and what is to be predicted in them, all right-padded.

    tokens_BL: int32, encoder input; 0 is padding.
    target_BL: int32, the item to be predicted at each position; 0 is none.
    weight_BL: float32, 1 where there is a target, else 0.
    seen_BX: int32, every item of the window, inputs and targets; 0 is padding.
    """

    tokens_BL: Array
    target_BL: Array
    weight_BL: Array
    seen_BX: Array


class Packing(NamedTuple):
    """Where B sequences lie in R rows of T tokens.

    place_BL: int32, token l of sequence b is at `place` in the flattened rows; R * T
      (out of range) for padding.
    """

    place_BL: Array
    num_rows: int
    row_length: int


class Plan(NamedTuple):
    """An epoch of batches, made on the host.

    user_SB: int32 [steps, B], users of each batch; -1 fills the last one up.
    slot_SB: int32 [steps, B], where each window begins in the flattened rows.
    num_rows: R, enough for every batch of the plan.
    """

    user_SB: np.ndarray
    slot_SB: np.ndarray
    num_rows: int


def log_on_device(dataset: Dataset) -> Log:
    """The log as device arrays.

    Raises:
      InputError: more than 2^31 - 2^20 interactions: offsets are int32, and so are
        places up to a window past the end.
    """
    if dataset.num_interactions > 2**31 - 2**20:
        raise InputError(
            "a log on the device holds at most 2^31 - 2^20 interactions: "
            f"{dataset.name} has {dataset.num_interactions}. Split it or drop old ones."
        )
    return Log(
        jnp.asarray(dataset.items, jnp.int32), jnp.asarray(dataset.offsets, jnp.int32)
    )


def windows(log: Log, start_B: Array, end_B: Array, *, length: int) -> Array:
    """The last `length` items of `item_I[start:end]`, right-padded: int32 [B, L]."""
    first_B = jnp.maximum(start_B, end_B - length)
    index_BL = first_B[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
    tokens_BL = log.item_I.at[index_BL].get(mode="fill", fill_value=0)
    return jnp.where(index_BL < end_B[:, None], tokens_BL, 0)


def next_item(window_BX: Array) -> Batch:
    """Each item predicts its successor: windows of X = L + 1 items give L positions."""
    target_BL = window_BX[:, 1:]
    has_target_BL = target_BL > 0
    return Batch(
        tokens_BL=jnp.where(has_target_BL, window_BX[:, :-1], 0),
        target_BL=target_BL,
        weight_BL=has_target_BL.astype(jnp.float32),
        seen_BX=window_BX,
    )


def cloze(key: Array, window_BL: Array, *, mask_id: int, probability: float) -> Batch:
    """Hidden items predict themselves: each item is hidden with `probability`.

    A hidden item is always replaced by MASK (no 80/10/10 rule), positions are drawn
    independently, and a window may have none, as in the paper's code.
    """
    is_hidden_BL = jax.random.bernoulli(key, probability, window_BL.shape)
    is_hidden_BL &= window_BL > 0
    return Batch(
        tokens_BL=jnp.where(is_hidden_BL, mask_id, window_BL),
        target_BL=jnp.where(is_hidden_BL, window_BL, 0),
        weight_BL=is_hidden_BL.astype(jnp.float32),
        seen_BX=window_BL,
    )


def place(
    tokens_BL: Array, slot_B: Array, *, num_rows: int, row_length: int
) -> Packing:
    """The Packing of windows that begin at `slot_B` in the flattened rows."""
    length = tokens_BL.shape[1]
    place_BL = slot_B[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
    place_BL = jnp.where(tokens_BL > 0, place_BL, num_rows * row_length)
    return Packing(place_BL, num_rows, row_length)


def pack(tokens_BL: Array, packing: Packing) -> tuple[Array, Array, Array]:
    """Tokens, positions and segments of the rows, each int32 [R, T]; 0 on padding.

    A token's position counts from its window's first item; its segment is one more
    than its sequence's place in the batch.
    """
    place_BL, num_rows, row_length = packing
    batch_size, length = tokens_BL.shape

    def rows(x_BL: Array) -> Array:
        flat = jnp.zeros((num_rows * row_length,), jnp.int32)
        x_BL = jnp.broadcast_to(x_BL, tokens_BL.shape)
        return flat.at[place_BL].set(x_BL, mode="drop").reshape(num_rows, row_length)

    position_1L = jnp.arange(length, dtype=jnp.int32)[None]
    segment_B1 = jnp.arange(1, batch_size + 1, dtype=jnp.int32)[:, None]
    return rows(tokens_BL), rows(position_1L), rows(segment_B1)


def unpack(hidden_RTD: Array, packing: Packing) -> Array:
    """Hidden states back in the order of the windows, [B, L, D]; 0 on padding."""
    place_BL = packing.place_BL
    hidden_ND = hidden_RTD.reshape(-1, hidden_RTD.shape[-1])
    hidden_MD = indices.take_rows(hidden_ND, place_BL.reshape(-1))
    return hidden_MD.reshape(*place_BL.shape, -1)


def assign_slots(
    length_SB: np.ndarray, row_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Packs the windows of S batches into rows by best fit, longest first.

    Args:
      length_SB: tokens of each window, at most row_length.
      row_length: T.

    Returns:
      slot_SB int32, where a window begins in its batch's flattened rows, and int [S],
      the rows used. A window never crosses the end of a row.
    """
    assert length_SB.max(initial=0) <= row_length, "a window is longer than a row"
    num_batches, batch_size = length_SB.shape
    # Best fit leaves no two rows that would go into one, so this many are enough.
    full_rows = -(-length_SB.sum(axis=1).max(initial=0) // row_length)
    most_rows = int(min(batch_size, 2 * full_rows + 1))
    free_SR = np.full((num_batches, most_rows), row_length, np.int32)
    order_SB = np.argsort(-length_SB, axis=1, kind="stable")
    slot_SB = np.zeros((num_batches, batch_size), np.int32)
    batch_S = np.arange(num_batches)
    for window_S in order_SB.T:
        length_S = length_SB[batch_S, window_S]
        fitting_SR = np.where(free_SR >= length_S[:, None], free_SR, row_length + 1)
        row_S = fitting_SR.argmin(axis=1)
        slot_S = (row_S + 1) * row_length - free_SR[batch_S, row_S]
        slot_SB[batch_S, window_S] = np.where(length_S > 0, slot_S, 0)
        free_SR[batch_S, row_S] -= length_S
    return slot_SB, (free_SR < row_length).sum(axis=1)


# Row counts are rounded up to this, so that few of them, and few compilations, occur.
_ROW_MULTIPLE = 2


def plan_batches(
    user_N: np.ndarray, length_N: np.ndarray, *, batch_size: int, row_length: int
) -> Plan:
    """Cuts users, in the order given, into batches and packs each of them.

    Args:
      user_N: int, what `user_SB` will hold.
      length_N: tokens that each will have in the encoder, at most row_length.
      batch_size: B.
      row_length: T.
    """
    num_steps = -(-len(user_N) // batch_size)
    padding = num_steps * batch_size - len(user_N)
    user_SB = np.pad(user_N.astype(np.int32), (0, padding), constant_values=-1)
    length_SB = np.pad(length_N, (0, padding)).reshape(num_steps, batch_size)
    slot_SB, num_rows_S = assign_slots(length_SB, row_length)
    return Plan(
        user_SB.reshape(num_steps, batch_size),
        slot_SB,
        -(-int(num_rows_S.max()) // _ROW_MULTIPLE) * _ROW_MULTIPLE,
    )


def stratified_order(
    length_N: np.ndarray, *, batch_size: int, rng: np.random.Generator
) -> np.ndarray:
    """A random order whose batches have nearly equally many tokens: int [N].

    Users are sorted by length, those of one length at random. Those of the short last
    batch, if there is one, are taken at equal distances, from a random one on. The
    others are cut into `batch_size` strata, and each stratum is dealt out at random,
    one user to a batch: any two full batches are apart by no more tokens than the
    longest window and the shortest. So no batch needs many more rows than another (on
    ML-1M 70, where the fullest of an unstratified epoch needs 79), and a user is
    equally likely in every batch.

    Args:
      length_N: tokens of each user's window.
      batch_size: B.
      rng: consumed.

    >>> length_N = np.array([1, 9, 2, 8])
    >>> rng = np.random.default_rng(0)
    >>> order_N = stratified_order(length_N, batch_size=2, rng=rng)
    >>> np.sort(length_N[order_N].reshape(2, 2) > 5).tolist()  # a short one and a long
    [[False, True], [False, True]]
    """
    order_N = rng.permutation(len(length_N))
    order_N = order_N[np.argsort(length_N[order_N], kind="stable")]
    num_rest = len(order_N) % batch_size
    is_rest_N = np.zeros(len(order_N), bool)
    if num_rest:
        spaced = (np.arange(num_rest) + rng.random()) * (len(order_N) / num_rest)
        is_rest_N[spaced.astype(int)] = True
    stratum_BS = order_N[~is_rest_N].reshape(batch_size, -1)
    batch_SB = rng.permuted(stratum_BS, axis=1).T
    # Nor does the place in a batch tell of the length.
    batch_SB = rng.permuted(batch_SB, axis=1)
    return np.concatenate([batch_SB.reshape(-1), order_N[is_rest_N]])


def plan_epoch(
    user_N: np.ndarray,
    length_N: np.ndarray,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    row_length: int,
    stratify: bool = True,
) -> Plan:
    """`plan_batches` in an order drawn from (seed, epoch) and nothing else.

    Args:
      stratify: in `stratified_order`; else any order is equally likely.
    """
    rng = np.random.default_rng((seed, epoch))
    if stratify:
        order_N = stratified_order(length_N, batch_size=batch_size, rng=rng)
    else:
        order_N = rng.permutation(len(user_N))
    return plan_batches(
        user_N[order_N],
        length_N[order_N],
        batch_size=batch_size,
        row_length=row_length,
    )
