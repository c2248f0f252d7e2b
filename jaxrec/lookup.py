"""The caller's ids, and where each of them is."""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxrec.errors import InputError


class Lookup:
    """Positions of ids, found by their text, so that ids typed on a command line are.

    >>> Lookup(np.array([10, 20]), "users").positions([20, "10", 20.0, "x"]).tolist()
    [1, 0, 1, -1]

    Args:
      id_N: the ids, all different.
      what: they are, in the plural, for messages.
    """

    def __init__(self, id_N: np.ndarray, what: str):
        self.id_N, self.what = id_N, what

    @functools.cached_property
    def _position(self) -> dict[str, int]:
        return {_text(one): n for n, one in enumerate(self.id_N.tolist())}

    def positions(self, ids: Iterable[Any]) -> np.ndarray:
        """Where each of the ids is: int64, -1 where it is none of ours.

        Raises:
          InputError: one id in place of a list of them.
        """
        if isinstance(ids, str):
            raise InputError(
                f"{self.what} must be a list of ids: got {ids!r}. Use [{ids!r}]."
            )
        find = self._position.get
        return np.array([find(_text(one), -1) for one in ids], np.int64)

    def known(self, ids: Iterable[Any], *, where: str, advice: str) -> np.ndarray:
        """As `positions`, of ids that are all ours.

        Args:
          where: they should be, for the message.
          advice: what to do about an id that is not.

        Raises:
          InputError: there are others; it names the first of them.
        """
        ids = ids if isinstance(ids, str) else list(ids)
        position_N = self.positions(ids)
        strange = [ids[n] for n in np.flatnonzero(position_N < 0)]
        if strange:
            raise InputError(
                f"{len(strange)} of {len(ids)} {self.what} are not in {where}: "
                f"{strange[:3]}. Its {self.what} are such as {self.id_N[:3].tolist()}. "
                f"{advice}"
            )
        return position_N


def _text(one: Any) -> str:
    """An id's text; of a whole float, as pandas makes of integers, the integer's."""
    if isinstance(one, float) and one.is_integer():
        return str(int(one))
    return str(one)
