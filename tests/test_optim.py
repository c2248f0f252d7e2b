"""Schedules and optimiser steps against their formulas, written out in Python."""

import math

import jax
import numpy as np
import optax
import pytest

from jaxrec import optim
from jaxrec.errors import InputError

PEAK, WARMUP, END = 0.5, 10, 50
# A few float32 operations.
RTOL = 1e-5


def rate_at(step, decay, warmup_steps):
    """The learning rate by its definition."""
    if step < warmup_steps:
        return PEAK * step / warmup_steps
    done = min(1.0, (step - warmup_steps) / (END - warmup_steps))
    return {
        "constant": PEAK,
        "cosine": PEAK * (1 + math.cos(math.pi * done)) / 2,
        "linear": PEAK * (1 - done),
    }[decay]


@pytest.mark.parametrize("decay", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("warmup_steps", [0, 1, WARMUP])
def test_schedule_closed_form(decay, warmup_steps):
    schedule = optim.schedule(
        learning_rate=PEAK, warmup_steps=warmup_steps, decay=decay, decay_steps=END
    )
    for step in (0, 1, WARMUP - 1, WARMUP, WARMUP + 1, 30, END - 1, END, END + 1, 999):
        expected = rate_at(step, decay, warmup_steps)
        assert float(schedule(step)) == pytest.approx(expected, rel=RTOL, abs=1e-7)


def test_constant_needs_no_decay_steps():
    schedule = optim.schedule(
        learning_rate=PEAK, warmup_steps=4, decay="constant", decay_steps=0
    )
    assert [float(schedule(step)) for step in (0, 2, 4, 400)] == [
        0,
        PEAK / 2,
        PEAK,
        PEAK,
    ]


def adam_steps(params, gradients, *, rate_fn, b1, b2, eps, weight_decay=0.0):
    """Kingma & Ba's algorithm 1, with Loshchilov & Hutter's decay of `params`."""
    first, second = np.zeros_like(params), np.zeros_like(params)
    for step, gradient in enumerate(gradients):
        first = b1 * first + (1 - b1) * gradient
        second = b2 * second + (1 - b2) * gradient**2
        first_unbiased = first / (1 - b1 ** (step + 1))
        second_unbiased = second / (1 - b2 ** (step + 1))
        direction = first_unbiased / (np.sqrt(second_unbiased) + eps)
        params = params - rate_fn(step) * (direction + weight_decay * params)
    return params


def optimised(optimiser, params, gradients):
    """Parameters after a step for each gradient, compiled as in training."""

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = optimiser.init(params)
    for gradient in gradients:
        params, state = step(params, state, gradient)
    return jax.device_get(params)


def problem(*shapes):
    rng = np.random.default_rng(0)
    params = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    # The second gradients are as small as the default eps, so that it matters.
    gradients = [
        [scale * rng.normal(size=shape).astype(np.float32) for shape in shapes]
        for scale in np.float32([1, 1e-8, 3])
    ]
    return params, gradients


def test_adam_follows_its_formula_at_the_papers_values():
    (params,), gradients = problem((3, 2))
    expected = adam_steps(
        params.astype(float),
        [gradient for (gradient,) in gradients],
        rate_fn=lambda step: 1e-3,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
    )
    (after,) = optimised(optim.adam(), [params], gradients)
    np.testing.assert_allclose(after, expected, rtol=1e-6)
    # Of the steps themselves, which are small against the parameters.
    np.testing.assert_allclose(after - params, expected - params, rtol=2e-3)


def test_adam_eps_stands_beside_the_root():
    """A first step is learning_rate * g / (|g| + eps): a half where |g| is eps."""
    gradients = [np.float32([1e-8, -1e-8, 1.0, 0.0])]
    after = optimised(optim.adam(), np.zeros(4, np.float32), gradients)
    np.testing.assert_allclose(after, [-5e-4, 5e-4, -1e-3, 0], rtol=RTOL)


def test_adamw_decays_matrices_only():
    params, gradients = problem((3, 2), (3,), ())
    options = dict(b1=0.8, b2=0.95, eps=1e-3)
    after = optimised(
        optim.adamw(
            learning_rate=PEAK,
            weight_decay=0.1,
            warmup_steps=2,
            decay="linear",
            decay_steps=END,
            **options,
        ),
        params,
        gradients,
    )
    for place, (leaf, leaf_after) in enumerate(zip(params, after, strict=True)):
        expected = adam_steps(
            leaf.astype(float),
            [gradient[place] for gradient in gradients],
            rate_fn=lambda step: rate_at(step, "linear", 2),
            weight_decay=0.1 if leaf.ndim == 2 else 0.0,
            **options,
        )
        np.testing.assert_allclose(leaf_after, expected, rtol=RTOL)


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("norm, scale", [(5.0, 0.2), (1.0, 1.0), (0.5, 1.0)])
def test_clipping_is_by_the_norm_of_all_gradients(name, norm, scale):
    # eps = 1 makes Adam's first step g / (|g| + 1), so that the size of g is seen.
    optimiser = optim.OPTIMISERS[name](learning_rate=1.0, eps=1.0, clip_norm=1.0)
    gradient = {"x": np.float32([0.6 * norm, 0]), "y": np.float32([-0.8 * norm])}
    after = optimised(optimiser, jax.tree.map(np.zeros_like, gradient), [gradient])
    for leaf, before in zip(after.values(), gradient.values(), strict=True):
        clipped = scale * before
        expected = -clipped / (abs(clipped) + 1)
        np.testing.assert_allclose(leaf, expected, rtol=RTOL)


def test_no_clipping_by_default():
    gradient = np.float32([300.0, -400.0])
    optimiser = optim.adam(learning_rate=1.0, eps=100.0)
    after = optimised(optimiser, np.zeros(2, np.float32), [gradient])
    np.testing.assert_allclose(after, [-300 / 400, 400 / 500], rtol=RTOL)


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize(
    "options, message",
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite: got 0.0"),
        ({"learning_rate": -1e-3}, "learning_rate must be positive .*: got -0.001"),
        ({"learning_rate": math.inf}, "learning_rate must be .* finite: got inf"),
        ({"learning_rate": math.nan}, "learning_rate must be .* finite: got nan"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0: got -1"),
        ({"decay": "step"}, "'constant', 'cosine' or 'linear': got 'step'"),
        ({"decay": "cosine"}, "decay_steps=0, warmup_steps=0"),
        (
            {"decay": "linear", "decay_steps": 5, "warmup_steps": 5},
            "decay_steps=5, warmup_steps=5",
        ),
        ({"clip_norm": 0.0}, "clip_norm must be positive, or None for none: got 0.0"),
        ({"clip_norm": -1.0}, "clip_norm must be positive, or None for none: got -1.0"),
    ],
)
def test_bad_options_are_refused_by_name(name, options, message):
    with pytest.raises(InputError, match=message):
        optim.OPTIMISERS[name](**options)
