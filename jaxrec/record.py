"""What makes a result credible: versions, device, commit; and atomic files."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from jaxrec import __version__
from jaxrec.errors import InputError


def write_json(path: str | Path, value: Any) -> None:
    """Writes readable JSON, by `write_text`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 beside `path` and moves it there when it is whole.

    Half a surrogate pair, which an id may hold and no file can, becomes "?".

    Raises:
      InputError: it cannot be written there; an older file stays what it is.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8", errors="replace")
        part.replace(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror}. Choose another place."
        ) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def read_json(path: str | Path) -> Any:
    """What `write_json` wrote; an InputError if it cannot be read."""
    try:
        return json.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path} cannot be read: {error}. Restore it, or choose another workdir."
        ) from None


def command() -> str:
    """The command line of this process, its interpreter called python."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def date() -> str:
    """Today in UTC, such as 2026-11-22."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pandas")
    found = {"python": platform.python_version(), "jaxrec": __version__}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"  # run from a source tree
    return found


def device() -> str:
    """The accelerator, or the processor and its cores."""
    import jax

    first = jax.devices()[0]
    if first.platform != "cpu":
        return f"{jax.device_count()} x {first.device_kind}"
    return f"cpu: {_processor()}, {_num_cores()} cores"


def _num_cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):  # Linux: those that this process may use
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _processor() -> str:
    """Its name; and of a Xeon whether it lacks AMX, since it may have the name of one
    that does not, and then multiplies bfloat16 many times slower."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    pairs = (line.partition(":")[::2] for line in reversed(lines))
    told = {key.strip(): text.strip() for key, text in pairs}  # of the first core
    name = told.get("model name", platform.machine())
    lacks_amx = "Xeon" in name and "amx_bf16" not in told.get("flags", "").split()
    return f"{name} without AMX" if lacks_amx else name


def commit() -> str | None:
    """The commit of the source tree run from, "+" if it is changed; None outside."""

    def git(*args: str) -> str | None:
        folder = Path(__file__).resolve().parent
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *args], capture_output=True, text=True
            )
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    if head is None or git("ls-files", "--error-unmatch", __file__) is None:
        return None
    return head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
