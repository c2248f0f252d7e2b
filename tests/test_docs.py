"""What the pages say is there: links, tests by name, commands with their options."""

import ast
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxrec import choices, config, experiment, splits
from jaxrec.errors import InputError

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md")
    for path in REPOSITORY.glob(pattern)
)
COMMANDS = ("train", "evaluate", "compare", "recommend", "report")
README = (REPOSITORY / "README.md").read_text()
OWN_DATA = "configs/own_data.py"


def fences(text: str) -> list[tuple[str, str]]:
    """(language, content) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def links(text: str) -> list[tuple[str, str]]:
    """(what is shown, where it leads) of each link and picture."""
    return re.findall(r"\[([^][]*)\]\(([^()\s]+)\)", prose(text))


def anchors(text: str) -> set[str]:
    """The headings of a page as GitHub names them."""
    heads = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def functions(source: str) -> set[str]:
    """The functions of a module, and Class::method of its classes."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = set()
    for node in ast.parse(source).body:
        if isinstance(node, kinds):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}::{x.name}" for x in node.body if isinstance(x, kinds)
            }
    return found


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """(module, arguments) of each `python -m` of the blocks without a language."""
    for language, content in fences(text):
        for line in content.replace("\\\n", " ").splitlines() if not language else ():
            for part in line.split(" && "):
                if part.startswith("python -m "):
                    _, _, module, *arguments = shlex.split(part, comments=True)
                    yield module, arguments


# --- links ---------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    path = REPOSITORY / page
    wrong = []
    for _, target in links(path.read_text()):
        if re.match(r"\w+:", target):
            continue  # elsewhere in the web
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            wrong.append(target)
    assert not wrong


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_are_named_exist(page):
    path = REPOSITORY / page
    wrong = []
    for shown, target in links(path.read_text()):
        file, separator, function = shown.partition("::")
        if separator:
            there = path.parent / target
            if there.name != file or function not in functions(there.read_text()):
                wrong.append(shown)
    assert not wrong


def test_every_yes_of_ours_names_its_test():
    """In the table of features the second column is ours, the last one the test."""
    missing, num_named = [], 0
    for line in (REPOSITORY / "docs/features.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| ") or set(line) <= set("|- "):
            continue
        assert len(cells) == 7, line
        num_named += "::" in cells[-1]
        if re.match("(yes|part)", cells[1]) and "::" not in cells[-1]:
            missing.append(cells[0])
        assert not (cells[1].startswith("no") and cells[-1]), line
    assert not missing and num_named > 40


# --- commands ------------------------------------------------------------------------


class Parsed(Exception):
    """The command line was understood; nothing more is to be done."""


@pytest.mark.parametrize(
    ("module", "arguments"),
    [x for x in commands(README) if x[0].startswith("jaxrec.")],
    ids=lambda x: x if isinstance(x, str) else " ".join(x)[:60],
)
def test_commands_of_the_readme_parse(module, arguments, monkeypatch):
    command = importlib.import_module(module)
    parse, seen = command.parse_command, []

    def stop(parser, argv):
        seen.append(parse(parser, argv))
        raise Parsed

    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(command, "parse_command", stop)
    with pytest.raises(Parsed):
        command.main(arguments)
    ((flags, options),) = seen
    path = flags.config if module == "jaxrec.train" else OWN_DATA
    settings = overridden(path, options)
    settings, _ = choices.resolve(settings, choices.NOMINAL)
    experiment.assemble(settings)


def test_every_command_is_in_the_readme():
    shown = {module for module, _ in commands(README)}
    assert {f"jaxrec.{name}" for name in COMMANDS} <= shown


def overridden(path: str, options) -> dict:
    return config.override(
        config.read(path),
        options,
        experiment.targets(),
        supplied=experiment.SUPPLIED,
        source=path,
    )


def test_options_in_the_text_of_the_readme_exist(monkeypatch):
    """As they are for one's own data; `--config.data.split` with what it needs."""
    monkeypatch.chdir(REPOSITORY)
    spans = re.findall(r"`((?:--(?:no)?config\.)[^`]+)`", prose(README))
    assert len(spans) >= 5
    for span in spans:
        words = [x if "=" in x or x[2:4] == "no" else f"{x}=true" for x in span.split()]
        section = overridden(OWN_DATA, words)["data"]
        if any(word.startswith("--config.data.split=") for word in words):
            given = {
                key: section[key]
                for key in ("holdout_n", "test_from", "valid_from", "holdout_users")
            }
            splits.choose(section["split"], seed=0, **given)


def test_a_wrong_option_would_be_found(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(InputError, match="max_epochs"):
        overridden(OWN_DATA, ["--config.train.max_epoch=1"])


@pytest.mark.parametrize("page", PAGES)
def test_modules_of_commands_exist(page):
    for module, _ in commands((REPOSITORY / page).read_text()):
        if module.split(".")[0] in ("jaxrec", "benchmarks"):
            assert (REPOSITORY / module.replace(".", "/")).with_suffix(".py").exists()


def test_settings_of_the_readme_are_a_config():
    """The Python blocks compile, and every dict named `settings` describes a run."""
    blocks = [content for language, content in fences(README) if language == "python"]
    described = 0
    for block in blocks:
        for node in ast.parse(block).body:
            if (
                isinstance(node, ast.Assign)
                and ast.unparse(node.targets[0]) == "settings"
            ):
                experiment.assemble(ast.literal_eval(node.value))
                described += 1
    assert described


def test_extras_that_are_named_exist():
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        known = tomllib.load(file)["project"]["optional-dependencies"]
    named = re.findall(r"(?:jaxrec|\.)\[([a-z,]+)\]", README)
    assert named and set(",".join(named).split(",")) <= known.keys()


def test_the_layout_names_files_that_exist():
    layout = next(text for _, text in fences(README) if "readers.py" in text)
    names = re.findall(r"\b[a-z_]+\.py\b", layout)
    assert len(names) > 30
    missing = [name for name in names if not (REPOSITORY / "jaxrec" / name).exists()]
    assert not missing
