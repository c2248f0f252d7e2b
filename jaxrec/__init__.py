"""Sequential recommendation in JAX: encoders, losses, full-catalogue evaluation.

The names below are imported when they are first used, so that `import jaxrec` costs
nothing. Everything else is in the modules: `jaxrec.losses`, `jaxrec.models`, ...
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxrec import evaluate, train
    from jaxrec.data import Dataset, Split
    from jaxrec.datasets import load
    from jaxrec.errors import InputError
    from jaxrec.recommend import Recommender

__version__ = "0.1.0"
__all__ = [
    "Dataset",
    "InputError",
    "Recommender",
    "Split",
    "evaluate",
    "load",
    "train",
]

# `train` and `evaluate` are modules (jaxrec.train.train): a function of the same name
# here would become the module as soon as anything imports the module.
_HOME = {
    "Dataset": "data",
    "InputError": "errors",
    "Recommender": "recommend",
    "Split": "data",
    "load": "datasets",
}
_MODULES = ("evaluate", "train")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"jaxrec.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"jaxrec.{_HOME[name]}"), name)
    raise AttributeError(f"module 'jaxrec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
