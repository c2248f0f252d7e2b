"""Batches against slow Python loops on a ragged log, and the laws of plans."""

import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import batches
from jaxrec.data import Dataset
from jaxrec.errors import InputError

LENGTH = 4
NUM_ITEMS = 50
# Users without an item, with one, with L - 1 to L + 2 and with many.
USER_LENGTHS = [0, 1, LENGTH - 1, LENGTH, LENGTH + 1, LENGTH + 2, 0, 3 * LENGTH, 1]


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


@functools.cache
def dataset():
    offsets = np.concatenate([[0], np.cumsum(USER_LENGTHS)])
    items = np.random.default_rng(0).integers(1, NUM_ITEMS + 1, offsets[-1])
    return Dataset(
        items=items.astype(np.int32),
        offsets=offsets,
        user_ids=np.arange(len(USER_LENGTHS)),
        item_ids=np.arange(1, NUM_ITEMS + 1),
    )


def spans():
    """(start, end) of each user, of a prefix of each, and of two fillers."""
    offsets = dataset().offsets.tolist()
    whole = list(zip(offsets[:-1], offsets[1:], strict=True))
    prefixes = [(start, start + (end - start) // 2) for start, end in whole]
    return [*whole, *prefixes, (0, 0), (7, 7)]


def cut(length):
    """Histories as lists, and the windows that `windows` cuts out of them."""
    start_B, end_B = jnp.asarray(spans(), jnp.int32).T
    log = batches.log_on_device(dataset())
    histories = [dataset().items[start:end].tolist() for start, end in spans()]
    return histories, batches.windows(log, start_B, end_B, length=length)


def padded(items, length):
    return items + [0] * (length - len(items))


# ---- Windows and targets


def test_log_on_device_is_the_log():
    log = batches.log_on_device(dataset())
    assert log.item_I.dtype == log.offset_U1.dtype == jnp.int32
    np.testing.assert_array_equal(log.item_I, dataset().items)
    np.testing.assert_array_equal(log.offset_U1, dataset().offsets)


def test_log_on_device_refuses_what_int32_cannot_count():
    too_large = types.SimpleNamespace(num_interactions=2**31 - 2**20 + 1, name="clicks")
    with pytest.raises(InputError, match="clicks has 2146435073"):
        batches.log_on_device(too_large)


@pytest.mark.parametrize("length", [1, LENGTH, 4 * LENGTH])
def test_windows_are_the_last_items_right_padded(length):
    histories, window_BL = cut(length)
    assert window_BL.dtype == jnp.int32
    expected = [padded(items[-length:], length) for items in histories]
    assert window_BL.tolist() == expected


def test_next_item_predicts_each_successor():
    histories, window_BX = cut(LENGTH + 1)
    batch = batches.next_item(window_BX)
    for b, items in enumerate(histories):
        items = items[-LENGTH - 1 :]
        assert batch.tokens_BL[b].tolist() == padded(items[:-1], LENGTH)
        assert batch.target_BL[b].tolist() == padded(items[1:], LENGTH)
        assert batch.weight_BL[b].tolist() == padded([1.0] * len(items[1:]), LENGTH)
        assert batch.seen_BX[b].tolist() == padded(items, LENGTH + 1)
    assert batch.tokens_BL.dtype == batch.target_BL.dtype == jnp.int32
    assert batch.weight_BL.dtype == jnp.float32


def test_cloze_hides_items_behind_mask_and_predicts_them():
    histories, window_BL = cut(LENGTH)
    mask_id = NUM_ITEMS + 1
    batch = batches.cloze(
        jax.random.key(3), window_BL, mask_id=mask_id, probability=0.5
    )
    assert batch.tokens_BL.dtype == batch.target_BL.dtype == jnp.int32
    assert batch.weight_BL.dtype == jnp.float32
    num_hidden = 0
    for b, items in enumerate(histories):
        items = items[-LENGTH:]
        for place in range(LENGTH):
            token, target = batch.tokens_BL[b, place], batch.target_BL[b, place]
            weight = batch.weight_BL[b, place]
            if place >= len(items):
                assert (token, target, weight) == (0, 0, 0)
            elif weight:
                assert (token, target, weight) == (mask_id, items[place], 1)
                num_hidden += 1
            else:
                assert (token, target) == (items[place], 0)
        assert batch.seen_BX[b].tolist() == padded(items, LENGTH)
    assert 0 < num_hidden < sum(min(len(items), LENGTH) for items in histories)


@pytest.mark.parametrize("probability", [0.2, 0.7])
def test_cloze_rate_and_independence(probability):
    size, length = 2000, 8
    window_BL = jnp.ones((size, length), jnp.int32)
    batch = batches.cloze(
        jax.random.key(1), window_BL, mask_id=9, probability=probability
    )
    hidden_BL = np.asarray(batch.weight_BL)

    def assert_rate(is_true, chance):  # within 5 standard errors of a binomial
        stderr = math.sqrt(chance * (1 - chance) / is_true.size)
        assert abs(is_true.mean() - chance) < 5 * stderr

    assert_rate(hidden_BL, probability)
    for place in range(length):
        assert_rate(hidden_BL[:, place], probability)
    assert_rate(hidden_BL[:, 1:] * hidden_BL[:, :-1], probability**2)
    assert_rate(hidden_BL[1:] * hidden_BL[:-1], probability**2)
    # A window may have none.
    assert_rate(hidden_BL.max(axis=1) == 0, (1 - probability) ** length)
    other = batches.cloze(
        jax.random.key(2), window_BL, mask_id=9, probability=probability
    )
    assert_rate(hidden_BL * np.asarray(other.weight_BL), probability**2)


@pytest.mark.parametrize("probability, hidden", [(0.0, False), (1.0, True)])
def test_cloze_at_the_ends(probability, hidden):
    _, window_BL = cut(LENGTH)
    batch = batches.cloze(
        jax.random.key(0), window_BL, mask_id=99, probability=probability
    )
    np.testing.assert_array_equal(batch.weight_BL, (window_BL > 0) & hidden)


# ---- Rows


def packed_windows():
    """Windows of the ragged log and their packing in rows one longer than they."""
    _, window_BL = cut(LENGTH)
    length_B = np.asarray((window_BL > 0).sum(axis=1))
    (slot_B,), (num_rows,) = batches.assign_slots(length_B[None], LENGTH + 1)
    packing = batches.place(
        window_BL, jnp.asarray(slot_B), num_rows=num_rows + 1, row_length=LENGTH + 1
    )
    return np.asarray(window_BL), slot_B, packing


def test_pack_puts_tokens_positions_and_segments_at_their_slots():
    window_BL, slot_B, packing = packed_windows()
    expected_3N = np.zeros((3, packing.num_rows * packing.row_length), np.int32)
    for b, row in enumerate(window_BL):
        for place, token in enumerate(row):
            if token:
                expected_3N[:, slot_B[b] + place] = token, place, b + 1
    for rows_RT, expected_N in zip(
        batches.pack(jnp.asarray(window_BL), packing), expected_3N, strict=True
    ):
        assert rows_RT.dtype == jnp.int32
        assert rows_RT.shape == (packing.num_rows, packing.row_length)
        np.testing.assert_array_equal(rows_RT.ravel(), expected_N)


def test_unpack_inverts_pack():
    window_BL, _, packing = packed_windows()
    tokens_RT, position_RT, segment_RT = batches.pack(jnp.asarray(window_BL), packing)
    hidden_RTD = jnp.stack([tokens_RT, position_RT, segment_RT], axis=-1)
    back_BLD = batches.unpack(hidden_RTD.astype(jnp.float32), packing)
    is_real_BL = window_BL > 0
    number_B1 = np.arange(1, len(window_BL) + 1)[:, None]
    np.testing.assert_array_equal(back_BLD[..., 0], window_BL)
    np.testing.assert_array_equal(back_BLD[..., 1], np.arange(LENGTH) * is_real_BL)
    np.testing.assert_array_equal(back_BLD[..., 2], number_B1 * is_real_BL)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_unpack_gradient_is_the_one_that_autodiff_scatters(dtype):
    window_BL, _, packing = packed_windows()
    rng = np.random.default_rng(1)
    shape = (packing.num_rows, packing.row_length, 3)
    hidden_RTD = jnp.asarray(rng.normal(size=shape), dtype)
    grad_BLD = jnp.asarray(rng.normal(size=(*window_BL.shape, 3)), dtype)

    def plain(hidden_RTD):
        hidden_ND = hidden_RTD.reshape(-1, 3)
        hidden_BLD = hidden_ND[jnp.minimum(packing.place_BL, len(hidden_ND) - 1)]
        return jnp.where((window_BL > 0)[..., None], hidden_BLD, 0)

    hidden_BLD, vjp = jax.vjp(lambda x: batches.unpack(x, packing), hidden_RTD)
    expected_BLD, expected_vjp = jax.vjp(plain, hidden_RTD)
    np.testing.assert_array_equal(hidden_BLD, expected_BLD)
    # Equal to the bit: each entry is one entry of the incoming gradient, or 0.
    np.testing.assert_array_equal(vjp(grad_BLD)[0], expected_vjp(grad_BLD)[0])


# ---- Plans


def assert_no_overlap(length_B, slot_B, num_rows, row_length):
    """Every token has a place of its own, and no window crosses the end of a row."""
    owner_N = np.full(num_rows * row_length, -1)
    for b, (slot, length) in enumerate(zip(slot_B, length_B, strict=True)):
        if length == 0:
            continue
        assert slot // row_length == (slot + length - 1) // row_length
        assert (owner_N[slot : slot + length] == -1).all()
        owner_N[slot : slot + length] = b
    np.testing.assert_array_equal(
        np.bincount(owner_N[owner_N >= 0], minlength=len(length_B)), length_B
    )


def cut_rows(rng, num_rows, row_length):
    """Lengths that fill num_rows rows to the last token, in any order."""
    length_B = []
    for _ in range(num_rows):
        cuts = rng.choice(row_length - 1, rng.integers(6), replace=False) + 1
        length_B += np.diff([0, *np.sort(cuts), row_length]).tolist()
    return rng.permutation(np.array(length_B))


@pytest.mark.parametrize("seed", range(20))
def test_assign_slots_places_all_in_few_rows(seed):
    rng = np.random.default_rng(seed)
    best, row_length = int(rng.integers(1, 40)), int(rng.integers(8, 60))
    length_B = cut_rows(rng, best, row_length)
    length_B = np.append(length_B, [0, 0])
    (slot_B,), (num_rows,) = batches.assign_slots(length_B[None], row_length)
    assert slot_B.dtype == np.int32
    assert_no_overlap(length_B, slot_B, num_rows, row_length)
    # Best fit decreasing is known to stay below 11/9 of the optimum and a constant.
    assert best <= num_rows <= math.ceil(1.25 * best) + 1


@pytest.mark.parametrize(
    "length_B, row_length, expected",
    [
        ([], 5, 0),
        ([0, 0], 5, 0),
        ([5, 5, 5], 5, 3),
        ([1] * 10, 5, 2),
        ([3, 3, 2, 2], 5, 2),
        ([3, 3, 3], 5, 3),
        ([1], 1, 1),
    ],
)
def test_assign_slots_number_of_rows(length_B, row_length, expected):
    length_B = np.array(length_B, int)
    (slot_B,), (num_rows,) = batches.assign_slots(length_B[None], row_length)
    assert num_rows == expected
    assert_no_overlap(length_B, slot_B, num_rows, row_length)


def test_assign_slots_packs_each_batch_alone():
    rng = np.random.default_rng(0)
    length_SB = rng.integers(0, 9, (6, 40))
    slot_SB, num_rows_S = batches.assign_slots(length_SB, 8)
    for length_B, slot_B, num_rows in zip(length_SB, slot_SB, num_rows_S, strict=True):
        (alone_B,), (rows,) = batches.assign_slots(length_B[None], 8)
        np.testing.assert_array_equal(slot_B, alone_B)
        assert num_rows == rows
        assert_no_overlap(length_B, slot_B, num_rows, 8)


def test_assign_slots_refuses_a_window_longer_than_a_row():
    with pytest.raises(AssertionError, match="longer than a row"):
        batches.assign_slots(np.array([[2, 6]]), 5)


def plan(**changes):
    user_N = np.arange(100, 137)
    length_N = 1 + user_N % 9
    options = dict(seed=1, epoch=2, batch_size=8, row_length=9) | changes
    return batches.plan_epoch(user_N, length_N, **options)


@pytest.mark.parametrize("batch_size", [1, 8, 37, 64])
def test_plan_is_a_permutation_of_the_users_filled_up(batch_size):
    user_SB = plan(batch_size=batch_size).user_SB
    num_steps = -(-37 // batch_size)
    assert user_SB.shape == (num_steps, batch_size) and user_SB.dtype == np.int32
    flat = user_SB.ravel()
    np.testing.assert_array_equal(np.sort(flat[:37]), np.arange(100, 137))
    assert (flat[37:] == -1).all()
    assert (flat[:37] != np.arange(100, 137)).any()


@pytest.mark.parametrize("row_length", [9, 20])
def test_plan_places_every_window(row_length):
    user_SB, slot_SB, num_rows = plan(row_length=row_length)
    assert slot_SB.shape == user_SB.shape and slot_SB.dtype == np.int32
    assert num_rows % 2 == 0
    needed = []
    for user_B, slot_B in zip(user_SB, slot_SB, strict=True):
        length_B = np.where(user_B < 0, 0, 1 + user_B % 9)
        assert_no_overlap(length_B, slot_B, num_rows, row_length)
        needed.append((slot_B // row_length).max() + 1)
    assert max(needed) <= num_rows < max(needed) + 2


def test_plan_depends_on_seed_and_epoch_only():
    np.random.seed(0)
    first = plan()
    np.random.seed(1)
    for x, y in zip(first, plan(), strict=True):
        np.testing.assert_array_equal(x, y)
    for changes in ({"seed": 2}, {"epoch": 3}, {"seed": 2, "epoch": 1}):
        assert (first.user_SB != plan(**changes).user_SB).any()


def test_plan_without_strata_is_in_any_order():
    first = plan(stratify=False).user_SB.ravel()[:37]
    np.testing.assert_array_equal(np.sort(first), np.arange(100, 137))
    # The order is one of all users: the batch size only cuts it.
    other = plan(stratify=False, batch_size=5).user_SB.ravel()[:37]
    np.testing.assert_array_equal(first, other)
    assert (first != plan().user_SB.ravel()[:37]).any()


def test_strata_leave_no_batch_fuller_than_another():
    """Of 40 epochs with a last batch of 127, none takes more rows than the tokens of
    its batches do, but for what does not fit; at random the fullest takes a sixth more.
    """
    length_N = np.minimum(np.random.default_rng(2).geometric(0.01, 47 * 128 + 127), 200)
    options = dict(seed=0, batch_size=128, row_length=200)
    mean = length_N.sum() / 48 / 200

    def rows(**changes):
        return [
            batches.plan_epoch(
                np.arange(len(length_N)), length_N, epoch=i, **options | changes
            ).num_rows
            for i in range(40)
        ]

    assert max(rows()) <= mean + 6  # four of them the rounding
    assert min(rows(stratify=False)) > 1.1 * mean


def stratified(length_N, batch_size, seed=0):
    rng = np.random.default_rng(seed)
    return batches.stratified_order(length_N, batch_size=batch_size, rng=rng)


@pytest.mark.parametrize(
    ("num_users", "batch_size"), [(37, 8), (40, 8), (5, 8), (9, 1)]
)
def test_full_batches_have_nearly_equally_many_tokens(num_users, batch_size):
    """Two batches differ by at most b_i - a_i in the i-th stratum, which lies between
    a_i and b_i <= a_(i+1): all in all by at most the longest less the shortest."""
    length_N = np.random.default_rng(5).geometric(0.05, num_users)
    order_N = stratified(length_N, batch_size)
    np.testing.assert_array_equal(np.sort(order_N), np.arange(num_users))
    num_full = num_users // batch_size * batch_size
    total_S = length_N[order_N[:num_full]].reshape(-1, batch_size).sum(axis=1)
    if len(total_S):
        assert np.ptp(total_S) <= np.ptp(length_N)


def test_any_user_may_be_anywhere():
    """Each equally often in each batch, in each place of it and in the short last one;
    and two of different strata together as often as chance has it."""
    num_users, batch_size, num_epochs = 14, 4, 3000
    length_N = np.array([1, 1, 9, 9, 2, 2, 7, 7, 3, 3, 8, 8, 5, 5])
    order = np.stack(
        [stratified(length_N, batch_size, seed=i) for i in range(num_epochs)]
    )

    def close(counts, chance):
        stderr = np.sqrt(num_epochs * chance * (1 - chance))
        assert (abs(counts - num_epochs * chance) < 5 * stderr).all()

    places = np.stack([(order == user).sum(axis=0) for user in range(num_users)])
    close(places[:, :12].reshape(num_users, 3, 4).sum(axis=2), 4 / 14)
    close(places[:, :12].reshape(num_users, 3, 4).sum(axis=1), 3 / 14)
    close(places[:, 12:].sum(axis=1), 2 / 14)
    # The longest user and the shortest, never of one stratum.
    batch = [np.argmax(order == user, axis=1) // batch_size for user in (0, 2)]
    is_full = (batch[0] < 3) & (batch[1] < 3)
    together = (batch[0] == batch[1])[is_full].mean()
    assert abs(together - 1 / 3) < 5 * np.sqrt(2 / 9 / is_full.sum())


def test_plan_batches_keeps_the_order():
    user_N, length_N = np.array([7, 3, 9, 1, 4]), np.array([2, 2, 2, 2, 1])
    user_SB, slot_SB, num_rows = batches.plan_batches(
        user_N, length_N, batch_size=3, row_length=4
    )
    assert user_SB.tolist() == [[7, 3, 9], [1, 4, -1]]
    # Longest first, each where it leaves the least: by hand.
    assert slot_SB.tolist() == [[0, 2, 4], [0, 2, 0]]
    assert num_rows == 2
