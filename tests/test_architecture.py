"""The house plan, read from the imports: one way, no cycle, one door a library."""

import ast
import graphlib
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

import jaxrec

PACKAGE = pathlib.Path(jaxrec.__file__).parent

# The ground floor, the pure rooms above it, then all that is not named here, and the
# commands on top. A room imports rooms of its own storey and of those below.
GROUND = {"backend", "errors"}
PURE = {
    "attention",
    "binary",
    "dropout",
    "hands",
    "indices",
    "layer_norm",
    "layers",
    "losses",
    "metrics",
    "models",
    "negatives",
    "normaliser",
    "optim",
    "sampled_softmax",
    "score_tiles",
    "softmax",
}
COMMANDS = {"compare", "evaluate", "recommend", "report", "train"}

# Third-party package: the rooms that may import it as they are imported themselves, and
# those that may import it inside a function (None: any but the pure ones).
DOORS: dict[str, tuple[set[str], set[str] | None]] = {
    "flax": ({"layers", "models"}, set()),
    "optax": ({"optim", "steps"}, set()),
    "orbax": (set(), {"checkpoint"}),
    "pandas": (set(), None),
    "pyarrow": (set(), None),
    "tensorboardX": (set(), None),
    "wandb": (set(), {"writers"}),
    "IPython": (set(), {"screens"}),
    "torch": (set(), {"torch_weights"}),
    "ml_collections": (set(), {"config"}),
    "absl": (set(), {"config"}),
}


def room_of(path: pathlib.Path) -> str:
    """losses.py and a folder losses/ are the same room."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def files() -> dict[str, list[pathlib.Path]]:
    """Room -> its files. The lazy front door and a wheel's configs are no rooms."""
    rooms: dict[str, list[pathlib.Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if room_of(path) not in ("__init__", "configs"):
            rooms.setdefault(room_of(path), []).append(path)
    return rooms


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """(dotted name, is run at import) of everything that a source text imports."""
    tree = ast.parse(source)
    late = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test))
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the import in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((name, id(node) not in late) for name in names)


def arrows() -> dict[str, set[str]]:
    """Room -> the rooms it imports, at any time."""
    graph = {}
    for room, paths in files().items():
        names = [name for path in paths for name, _ in imports(path.read_text())]
        inner = {name.split(".")[1] for name in names if name.startswith("jaxrec.")}
        graph[room] = inner - {room, "__version__"}
    return graph


def storey(room: str) -> int:
    named = [GROUND, PURE, set(), COMMANDS]
    return next((i for i, rooms in enumerate(named) if room in rooms), 2)


def test_imports_reads_every_form():
    source = """
import jax.numpy as jnp
from jaxrec import losses, models
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import pandas as pd
def read():
    from orbax import checkpoint
"""
    assert dict(imports(source)) == {
        "jax.numpy": True,
        "jaxrec.losses": True,
        "jaxrec.models": True,
        "typing.TYPE_CHECKING": True,
        "pandas": False,
        "orbax.checkpoint": False,
    }


def test_no_cycle():
    try:
        graphlib.TopologicalSorter(arrows()).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"these rooms import one another: {' <- '.join(error.args[1])}")


def test_arrows_point_down():
    wrong = [
        f"{room} imports {other}"
        for room, others in arrows().items()
        for other in others
        if storey(other) > storey(room)
    ]
    assert not wrong


def test_rooms_import_only_rooms():
    """A name taken from `jaxrec` itself would go through the lazy front door."""
    unknown = {
        f"{room} imports jaxrec.{other}"
        for room, others in arrows().items()
        for other in others - files().keys()
    }
    assert not unknown


@pytest.mark.parametrize("library", DOORS)
def test_one_door_for_each_library(library):
    early, late = DOORS[library]
    late = files().keys() - GROUND - PURE if late is None else late
    wrong = [
        f"{room} imports {name} {'when imported' if is_early else 'in a function'}"
        for room, paths in files().items()
        for path in paths
        for name, is_early in imports(path.read_text())
        if name.split(".")[0] == library
        and room not in (early if is_early else early | late)
    ]
    assert not wrong


def modules_after(statement: str) -> set[str]:
    code = f"{statement}; import json, sys; print(json.dumps([*sys.modules]))"
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    return set(json.loads(result.stdout))


def test_import_jaxrec_imports_nothing_heavy():
    heavy = {"jax", "numpy", *DOORS}
    assert not heavy & modules_after("import jaxrec, jaxrec.config, jaxrec.command")


def test_reading_a_config_imports_no_jax(tmp_path):
    (tmp_path / "x.py").write_text("def get_config(): return {}")
    statement = f"from jaxrec import config; config.read({str(tmp_path / 'x.py')!r})"
    assert not {"jax", *DOORS} & modules_after(statement)


@pytest.mark.parametrize("name", jaxrec.__all__)
def test_public_name_is_there(name):
    assert getattr(jaxrec, name).__name__.removeprefix("jaxrec.") == name
    assert name in dir(jaxrec)


def test_public_names_agree():
    """The names for the type checker are the names that are served."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: statement.module
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    served = {name: f"jaxrec.{home}" for name, home in jaxrec._HOME.items()}
    served |= dict.fromkeys(jaxrec._MODULES, "jaxrec")
    assert seen == served
    assert sorted(served) == jaxrec.__all__


def test_unknown_public_name():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        jaxrec.trian  # noqa: B018
