"""The tutorials: run from top to bottom at small sizes, and fit to be read."""

import ast
import asyncio
import json
import os
import pathlib
import re

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / "docs" / "notebooks"

# In place of the values in the cell tagged "parameters". Sizes are shared, so that a
# program is compiled once.
SIZES = {"WIDTH": 4, "LAYERS": 1, "WINDOW": 4}
SMALL = {
    "quickstart": {"NUM_USERS": 60, "NUM_ITEMS": 400, "MAX_EPOCHS": 2},
    "papers_claim": {**SIZES, "EPOCHS": 1},
    "own_loss_and_encoder": {**SIZES, "MAX_EPOCHS": 1},
    "comparing_runs": {**SIZES, "MAX_EPOCHS": 1, "SEEDS": (0,)},
}
AT_ONCE = 2  # kernels; much of a small run is on one core

# A path from the root, but no fraction, closing tag or address.
ABSOLUTE_PATH = re.compile(r"(?<![\w.<:/])/[A-Za-z][\w.-]*/|\b[A-Z]:\\|~/")


def read(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.ipynb").read_text())


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def parameters(notebook: dict) -> dict:
    (cell,) = (
        cell
        for cell in code_cells(notebook)
        if "parameters" in cell["metadata"].get("tags", ())
    )
    return cell


def texts(notebook: dict) -> list[str]:
    """All that a reader can see of the outputs, but the pictures."""
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    data = [output.get("data", {}) for output in outputs]
    return [
        *("".join(output.get("text", "")) for output in outputs),
        *("".join(of[mime]) for of in data for mime in of if mime.startswith("text/")),
    ]


def shown(notebook: dict) -> list[list[str]]:
    """Kinds of the tables, pictures and values below each code cell."""
    return [
        sorted(kind for output in cell["outputs"] for kind in output.get("data", {}))
        for cell in code_cells(notebook)
    ]


def test_every_notebook_is_tested():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_committed_as_it_was_executed(name):
    notebook = read(name)
    cells = code_cells(notebook)
    counts = [cell["execution_count"] for cell in cells]
    assert counts == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    assert any("image/png" in kinds for kinds in shown(notebook))
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 1_000_000


@pytest.mark.parametrize("name", SMALL)
def test_shows_nothing_of_the_machine_that_made_it(name):
    found = [ABSOLUTE_PATH.search(text) for text in texts(read(name))]
    assert not any(found), [match.string for match in found if match]


def test_an_absolute_path_is_found():
    for text in ("in /home/ann/x", "'C:\\x'", "(/opt/x)", "~/x"):
        assert ABSOLUTE_PATH.search(text), text
    for text in ("epoch 1/40", "<b>x</b>/y", "https://x.org/y", "runs/a/b", "8 tok/s"):
        assert not ABSOLUTE_PATH.search(text), text


@pytest.mark.parametrize("name", SMALL)
def test_links_lead_somewhere(name):
    cells = read(name)["cells"]
    text = "".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert link.startswith("https://") or (FOLDER / link).is_file(), link


def test_small_sizes_are_settings():
    for name, values in SMALL.items():
        tree = ast.parse("".join(parameters(read(name))["source"]))
        names = {ast.unparse(node.targets[0]) for node in tree.body}
        assert set(values) <= names, name


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> dict:
    """Every notebook after its run in a folder of its own; or what stopped it."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    for package in ("ipykernel", "matplotlib"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("notebooks")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(REPOSITORY / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.getenv("PYTHONPATH", "")]),
        # A home of their own: no setting and no data set of the person who tests.
        "IPYTHONDIR": str(folder / "ipython"),
        "JAXREC_DATA": str(folder / "data"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }

    async def run(name: str, places: asyncio.Semaphore):
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        lines = [f"{key} = {value!r}" for key, value in SMALL[name].items()]
        cell = parameters(notebook)
        cell["source"] = "\n".join([cell["source"], *lines])
        workdir = folder / name
        workdir.mkdir()
        resources = {"metadata": {"path": str(workdir)}}
        client = nbclient.NotebookClient(notebook, timeout=300, resources=resources)
        async with places:
            return await client.async_execute(env=environment)

    async def run_all():
        places = asyncio.Semaphore(AT_ONCE)
        runs = [run(name, places) for name in SMALL]
        return await asyncio.gather(*runs, return_exceptions=True)

    return dict(zip(SMALL, asyncio.run(run_all()), strict=True))


@pytest.mark.parametrize("name", SMALL)
def test_runs_from_top_to_bottom(executed, name):
    if isinstance(executed[name], BaseException):
        raise executed[name]
    # As many tables and pictures as are committed, in the same places.
    assert shown(executed[name]) == shown(read(name))
    # Python's warnings; a library may log that the machine is slow.
    assert not [text for text in texts(executed[name]) if "Warning: " in text]
