"""The normaliser of each position's softmax, added up tile by tile.

Scores are lowered before they are exponentiated, by what `shift` finds without a pass
over them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.score_tiles import Scores

Array = jax.Array

# Bounds, in nats, on what is exponentiated: not even the sum over a table of 10^8 rows
# overflows (e^88), and the target's own term does not vanish (e^-87), nor does any that
# would show beside it.
_HIGHEST, _LOWEST = 70.0, -45.0


class Sums(NamedTuple):
    """What is known of some positions from the tiles so far; each [N] or [n].

    shift: float32, what scores are lowered by before they are exponentiated.
    exp_sum: float32, the sum of exp(score - shift) over what competes.
    own: float32, the target's score.
    is_missing: bool, whether the target is in a tile, but does not compete.
    """

    shift: Array
    exp_sum: Array
    own: Array
    is_missing: Array

    @classmethod
    def of_none(cls, shift: Array) -> "Sums":
        """Before any tile."""
        zero = jnp.zeros_like(shift)
        return cls(shift, zero, zero, zero > 0)

    def and_of(self, scores: Scores, exp_sum: Array) -> "Sums":
        """With one tile more, of whose terms the sum is given."""
        return self._replace(
            exp_sum=self.exp_sum + exp_sum,
            # As the sum has it: another sum of products differs in its bits.
            own=jnp.where(scores.is_here_n, scores.own_n(), self.own),
            is_missing=self.is_missing | scores.is_missing_n(),
        )

    def total(self) -> Array:
        """The normaliser; 0 for a position that no tile has seen."""
        return self.exp_sum + jnp.where(
            self.is_missing, jnp.exp(self.own - self.shift), 0
        )

    def scale(self, weight: Array) -> Array:
        """The weight over the normaliser; `weight` is float32, as long as the sums."""
        total = self.total()
        return weight / jnp.where(total > 0, total, 1)


def shift(own_N: Array, bound_N: Array, highest: Callable[[], Array]) -> Array:
    """What the scores of each position are lowered by before they are exponentiated.

    The highest of them would do, but to find it takes a pass over all. The target's own
    does too, or more where some score may be far above it, as long as the target's term
    stays a number.

    Args:
      own_N: scores of the targets.
      bound_N: no score is above it, but for rounding.
      highest: finds the highest scores of competing rows. A condition on a device: what
        it costs on a GPU has not been measured.
    """
    shift_N = jnp.maximum(own_N, bound_N - _HIGHEST)
    is_far = jnp.any(own_N - shift_N < _LOWEST)
    shift_N = jax.lax.cond(
        is_far, lambda: jnp.maximum(highest(), own_N), lambda: shift_N
    )
    # Whatever it is, the softmax is the same.
    return jax.lax.stop_gradient(shift_N)


def bound(hidden_ND: Array, table_VD: Array) -> Array:
    """[N], which no score exceeds: |h| max_v |table_v|, by Cauchy and Schwarz."""
    squares = jnp.square(hidden_ND).sum(axis=-1) * jnp.square(table_VD).sum(-1).max()
    return jnp.sqrt(squares)
