"""Optimisers as optax chains: what a config's section `optim` means."""

import math

import jax
import optax

from jaxrec.errors import InputError


def schedule(
    *, learning_rate: float, warmup_steps: int, decay: str, decay_steps: int
) -> optax.Schedule:
    """Linear warm-up to `learning_rate`, then constant, cosine or linear to zero.

    Args:
      learning_rate: the peak.
      warmup_steps: steps from 0 to the peak; 0 starts at it.
      decay: "constant", "cosine" or "linear".
      decay_steps: the step at which the decay has reached zero, warm-up included.
    """
    if not 0 < learning_rate < math.inf:
        raise InputError(
            f"optim.learning_rate must be positive and finite: got {learning_rate}."
        )
    if warmup_steps < 0:
        raise InputError(f"optim.warmup_steps must be at least 0: got {warmup_steps}.")
    steps = decay_steps - warmup_steps
    if decay == "constant":
        rest = optax.constant_schedule(learning_rate)
    elif decay not in ("cosine", "linear"):
        raise InputError(
            f"optim.decay must be 'constant', 'cosine' or 'linear': got {decay!r}."
        )
    elif steps <= 0:
        raise InputError(
            f"optim.decay={decay!r} needs optim.decay_steps above optim.warmup_steps: "
            f"got decay_steps={decay_steps}, warmup_steps={warmup_steps}."
        )
    elif decay == "cosine":
        rest = optax.cosine_decay_schedule(learning_rate, steps)
    else:
        rest = optax.linear_schedule(learning_rate, 0.0, steps)
    if warmup_steps == 0:
        return rest
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, rest], [warmup_steps])


def adam(
    *,
    learning_rate: float = 1e-3,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    warmup_steps: int = 0,
    decay: str = "constant",
    decay_steps: int = 0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Adam with the paper's values (torch's defaults); see `schedule`.

    Args:
      clip_norm: gradients are scaled down to this global norm; None for none.
    """
    rate = schedule(
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        decay=decay,
        decay_steps=decay_steps,
    )
    return _clipped(clip_norm, optax.adam(rate, b1=b1, b2=b2, eps=eps))


def adamw(
    *,
    learning_rate: float = 1e-3,
    b1: float = 0.9,
    b2: float = 0.98,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    warmup_steps: int = 0,
    decay: str = "constant",
    decay_steps: int = 0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay on matrices only (not on biases and norms)."""
    rate = schedule(
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        decay=decay,
        decay_steps=decay_steps,
    )
    adamw = optax.adamw(
        rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=_is_matrix
    )
    return _clipped(clip_norm, adamw)


def _is_matrix(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _clipped(clip_norm: float | None, optimiser: optax.GradientTransformation):
    if clip_norm is None:
        return optimiser
    if clip_norm <= 0:
        raise InputError(
            f"optim.clip_norm must be positive, or None for none: got {clip_norm}."
        )
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimiser)


OPTIMISERS = {"adam": adam, "adamw": adamw}
