"""A state that comes back bit for bit, or a line that says why it cannot."""

import logging
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.checkpoint import Checkpoints, TrainState
from jaxrec.errors import InputError

OPTIMISER = optax.adam(1e-3)
PROGRESS = {"epoch": 3, "best_value": 0.1234567890123456789, "steps_done": 0}


def state_of(step, *, width=3, has_ema=False, has_bias=False) -> TrainState:
    """Random numbers in every place, so that none is mistaken for another."""
    rng = np.random.default_rng(step)
    params = {
        "table": jnp.zeros((5, width)),
        "block": {"kernel": jnp.zeros((width, 2))},
    }
    if has_bias:
        params["bias"] = jnp.zeros(2)
    state = TrainState(
        step=jnp.int32(step),
        params=params,
        opt_state=OPTIMISER.init(params),
        ema=params if has_ema else None,
    )

    def fill(leaf):
        if leaf.dtype == jnp.int32:
            return jnp.int32(step)
        return jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree.map(fill, state)


def best_of(state):
    return jax.tree.map(lambda x: x + 1, state.params)


def save(workdir, state, progress=PROGRESS):
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(state, best_of(state), progress)


def restore(workdir, like):
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore(like)


def assert_same(restored, state, progress=PROGRESS):
    got, best, got_progress = restored
    assert jax.tree.structure(got) == jax.tree.structure(state)
    for a, b in zip(
        jax.tree.leaves((got, best)),
        jax.tree.leaves((state, best_of(state))),
        strict=True,
    ):
        assert a.dtype == b.dtype and a.sharding == b.sharding
        np.testing.assert_array_equal(a, b)
    assert got_progress == progress
    assert list(map(type, got_progress.values())) == list(map(type, progress.values()))


@pytest.mark.parametrize("has_ema", [False, True])
def test_comes_back_bit_for_bit(tmp_path, has_ema):
    state = state_of(7, has_ema=has_ema)
    save(tmp_path, state)
    assert_same(restore(tmp_path, state_of(0, has_ema=has_ema)), state)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.exists
        best = checkpoints.restore_best(state_of(0).params)
    jax.tree.map(np.testing.assert_array_equal, best, best_of(state))


def test_only_the_latest_is_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 10):
            checkpoints.save(state_of(step), best_of(state_of(step)), {"epoch": step})
        assert_same(checkpoints.restore(state_of(0)), state_of(10), {"epoch": 10})
    assert os.listdir(tmp_path / "checkpoints") == ["10"]


def test_a_step_that_is_there_is_kept(tmp_path):
    save(tmp_path, state_of(4))
    save(tmp_path, state_of(4), {"epoch": 99})
    assert_same(restore(tmp_path, state_of(0)), state_of(4))


def test_a_relative_workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("run", state_of(1))
    assert_same(restore(tmp_path / "run", state_of(0)), state_of(1))


def test_an_interrupted_save_leaves_the_old_one(tmp_path, caplog):
    """What can no more be written stops the save halfway, as a full disk would."""
    save(tmp_path, state_of(1))
    caplog.set_level(logging.CRITICAL, logger="absl")  # orbax tells it at length
    before = set(threading.enumerate())
    with pytest.raises(TypeError, match="not JSON serializable"):
        save(tmp_path, state_of(2), {"epoch": object()})
    # Orbax's threads write on after the error; those of a process that stops do not.
    for thread in set(threading.enumerate()) - before:
        if thread.name == "write_metadata_after_commits":
            thread.join()
    left = sorted(os.listdir(tmp_path / "checkpoints"))
    assert left[0] == "1" and left[1].startswith("2.")
    assert_same(restore(tmp_path, state_of(0)), state_of(1))
    # The resumed run comes to the same step again.
    save(tmp_path, state_of(2), {"epoch": 2})
    assert_same(restore(tmp_path, state_of(0)), state_of(2), {"epoch": 2})
    assert os.listdir(tmp_path / "checkpoints") == ["2"]


def test_nothing_saved(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert not checkpoints.exists
        for attempt in (
            lambda: checkpoints.restore(state_of(0)),
            lambda: checkpoints.restore_best(state_of(0).params),
        ):
            with pytest.raises(
                InputError, match=f"no checkpoint in {tmp_path}.* again"
            ):
                attempt()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"width": 4}, r"block/kernel has shape \(3, 2\) .*, \(4, 2\) in the model"),
        ({"has_bias": True}, r"bias has shape None .*, \(2,\) in the model"),
    ],
)
def test_another_model_is_an_input_error(tmp_path, changes, reason):
    save(tmp_path, state_of(1))
    like = state_of(0, **changes)
    with Checkpoints(tmp_path) as checkpoints:
        for attempt in (
            lambda: checkpoints.restore(like),
            lambda: checkpoints.restore_best(like.params),
        ):
            with pytest.raises(InputError, match=f"checkpoints/1.*: {reason}.* config"):
                attempt()


def test_another_optimiser_is_an_input_error(tmp_path):
    save(tmp_path, state_of(1))
    like = state_of(0)
    other = like._replace(opt_state=optax.sgd(0.1, momentum=0.9).init(like.params))
    for like in (state_of(0, has_ema=True), other):
        with pytest.raises(InputError, match="cannot be restored: .*not match.*config"):
            restore(tmp_path, like)


def test_a_state_saved_on_one_device_comes_back_on_another(tmp_path):
    save(tmp_path, state_of(1))
    other = jax.devices()[3]
    like = jax.device_put(state_of(0), other)
    state, best, _ = restore(tmp_path, like)
    assert all(leaf.devices() == {other} for leaf in jax.tree.leaves((state, best)))
    jax.tree.map(np.testing.assert_array_equal, state, state_of(1))
