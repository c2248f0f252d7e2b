"""What a result says of where it comes from; files that are whole or not there."""

import importlib.util
import json
import os
import platform
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

import jaxrec
from jaxrec import record
from jaxrec.errors import InputError


def test_write_json_is_readable(tmp_path):
    value = {"ndcg@10": 0.1234567890123456789, "list": [1, None, True], "text": "é"}
    record.write_json(tmp_path / "result.json", value)
    text = (tmp_path / "result.json").read_text()
    assert json.loads(text) == value
    assert (
        text.startswith('{\n  "ndcg@10": 0.12345678901234568,\n') and text[-1] == "\n"
    )
    assert os.listdir(tmp_path) == ["result.json"]


def test_write_json_leaves_the_old_file_where_it_fails(tmp_path):
    path = tmp_path / "result.json"
    record.write_json(path, {"a": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        record.write_json(path, {"a": 2, "b": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["result.json"]
    record.write_json(str(path), {"a": 3})
    assert json.loads(path.read_text()) == {"a": 3}


def test_write_json_where_there_is_no_place_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder cannot be written"):
        record.write_json(tmp_path / "folder", {"a": 1})
    with pytest.raises(InputError, match="No such file"):
        record.write_json(tmp_path / "none" / "x.json", {"a": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_write_json_moves_a_whole_file(tmp_path, monkeypatch):
    """A reader sees the old file or the new one, never a part."""
    path, seen = tmp_path / "result.json", []
    record.write_json(path, {"a": 1})
    move = type(path).replace

    def spy(part, target):
        seen.append((json.loads(part.read_text()), json.loads(path.read_text())))
        return move(part, target)

    monkeypatch.setattr(type(path), "replace", spy)
    record.write_json(path, {"a": 2})
    assert seen == [({"a": 2}, {"a": 1})]


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX")
def test_write_json_is_as_readable_to_others_as_any_file(tmp_path):
    (tmp_path / "plain").write_text("")
    record.write_json(tmp_path / "result.json", {})
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_versions_name_every_package_that_matters():
    found = record.versions()
    assert list(found)[:2] == ["python", "jaxrec"]
    for name in ("jax", "flax", "optax", "numpy", "pandas"):
        assert found[name] == importlib.import_module(name).__version__
    assert found["jaxrec"] in (jaxrec.__version__, "not installed")
    assert all(isinstance(version, str) for version in found.values())


def test_device_is_the_processor_where_there_is_no_accelerator():
    name, cores = record.device().removeprefix("cpu: ").rsplit(", ", 1)
    assert name
    number, unit = cores.split()
    assert 1 <= int(number) <= os.cpu_count() and unit == "cores"


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        (["model name\t: Xeon: 4", "flags\t\t: fpu amx_bf16"], "Xeon: 4"),
        (["model name\t: Xeon", "flags\t\t: fpu avx512_bf16"], "Xeon without AMX"),
        (["model name\t: Ryzen", "flags\t\t: fpu avx512_bf16"], "Ryzen"),
        (["BogoMIPS\t: 50", "Features\t: fp bf16"], platform.machine()),
    ],
)
def test_xeons_of_one_name_with_and_without_amx(lines, name, monkeypatch):
    text = "\n".join(["processor\t: 0", *lines, "", "processor\t: 1", *lines, ""])
    read = Path.read_text

    def read_text(path, *arguments, **options):
        is_it = str(path) == "/proc/cpuinfo"
        return text if is_it else read(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert record.device().removeprefix("cpu: ").rpartition(",")[0] == name


def test_device_without_affinity(monkeypatch):
    """macOS and Windows do not tell which cores a process may use."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert record.device().endswith(f", {os.cpu_count()} cores")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """record.py in a repository of its own: (git, module)."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    for name in list(os.environ):
        if name.startswith("GIT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    path = tmp_path / "record.py"
    shutil.copy(record.__file__, path)
    spec = importlib.util.spec_from_file_location("copied_record", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def git(*args):
        who = ["-c", "user.name=n", "-c", "user.email=n@example.com"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *who, *args],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    return git, module


def test_commit_names_the_source_tree(checkout, tmp_path):
    git, module = checkout
    assert module.commit() is None  # no repository
    git("init", "-q")
    assert module.commit() is None  # no commit
    git("commit", "-q", "--allow-empty", "-m", "first")
    assert module.commit() is None  # another project's repository: an installed copy
    git("add", "record.py")
    git("commit", "-q", "-m", "second")
    head = git("rev-parse", "HEAD")
    assert len(head) == 40 and module.commit() == head
    (tmp_path / "notes.txt").write_text("of no consequence")
    assert module.commit() == head
    with open(tmp_path / "record.py", "a") as file:
        file.write("# changed\n")
    assert module.commit() == head + "+"


def test_commit_without_git(checkout, monkeypatch):
    _, module = checkout
    monkeypatch.setenv("PATH", "")
    assert module.commit() is None
