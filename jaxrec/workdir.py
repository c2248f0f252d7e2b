"""The folder of a run: whether one may begin, or go on, in it; never by accident."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxrec import config, data, experiment, record, signature
from jaxrec.errors import InputError
from jaxrec.experiment import Experiment

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NEW, INTERRUPTED, FINISHED = "new", "interrupted", "finished"

# Options that a run may go on with another value of: they change no bit of an epoch,
# but for steps_per_dispatch: XLA may add in another order where it is cut otherwise.
FREE = {
    "data": ("path",),
    "train": (
        "max_epochs",
        "patience",
        "checkpoint_every_s",
        "steps_per_dispatch",
        "tensorboard",
        "wandb",
        "compile_cache",
        "show_users",
    ),
}

# What was done before there was an option, where that is not its default.
BEFORE = {"train": {"stratify": False}}


def default(built: Experiment) -> Path:
    """runs/<data>-<method>-seed<seed>, under the current folder."""
    name, method = built.split.dataset.name, built.config["method"]
    return Path("runs") / f"{name}-{method}-seed{built.training.seed}"


def standing(workdir: Path, built: Experiment, *, resume: bool) -> str:
    """NEW, INTERRUPTED or FINISHED: what is in the folder. Writes nothing.

    A run that was stopped before its first checkpoint has nothing to lose: a new one
    may take its place.

    Raises:
      InputError: the folder holds something else, or a run and `resume` is False, or
        one that was started with other options or on other data.
    """
    is_finished = (workdir / "result.json").exists()
    has_saved = any((workdir / "checkpoints").glob("[0-9]*"))
    if not (is_finished or has_saved):
        check_is_free(workdir)
        if resume:
            raise InputError(
                f"there is no run to resume in {workdir}: drop --resume (in Python "
                "resume=True)."
            )
        return NEW
    if not resume:
        raise InputError(
            f"{workdir} holds a run already. Add --resume (in Python resume=True) to "
            "go on with it, or choose another workdir."
        )
    check_options(workdir, built.config)
    check_data(workdir, built)
    if not is_finished:
        return INTERRUPTED
    # By the result's own config: config.json may be of a run that goes on from it.
    ended = record.read_json(workdir / "result.json")["config"]["train"]
    wanted = built.config["train"]
    limits = ("max_epochs", "patience")
    return FINISHED if all(ended[k] == wanted[k] for k in limits) else INTERRUPTED


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Makes the folder, and keeps other processes from training in it meanwhile.

    The system lets go of it however this process ends. A folder that was made here and
    stays empty is removed. Windows, and file systems without locks, guard nothing.

    Raises:
      InputError: another process trains there, or the folder cannot be made.
    """
    is_new = not workdir.exists()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(workdir, error) from None
    with _locked(workdir):
        try:
            yield
        finally:
            if is_new:
                with contextlib.suppress(OSError):  # not empty, or gone
                    workdir.rmdir()


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    try:
        folder = os.open(workdir, os.O_RDONLY)
    except OSError as error:
        raise _unwritable(workdir, error) from None
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another process trains in {workdir}: wait until it has ended, or "
                "choose another workdir."
            ) from None
        except OSError:
            pass  # no locks, or none on folders, as on some network file systems
        yield
    finally:
        os.close(folder)


def begin(workdir: Path, built: Experiment) -> None:
    """Writes what the run was started with."""
    statistics = {**data.statistics(built.split), "split_sha256": built.split.sha256()}
    try:
        record.write_json(workdir / "data.json", statistics)
        record.write_json(workdir / "config.json", built.config)
    except OSError as error:
        raise _unwritable(workdir, error) from None


def _unwritable(workdir: Path, error: OSError) -> InputError:
    return InputError(
        f"the workdir {workdir} cannot be written: {error.strerror}. Choose another."
    )


def check_is_free(workdir: Path) -> None:
    """Raises InputError if the folder holds anything that a new run would bury."""
    files = {"config.json", "data.json", "metrics.jsonl"}
    ours = files | {"checkpoints", "tensorboard", "wandb"}
    try:
        names = {path.name for path in workdir.iterdir()} if workdir.exists() else set()
    except OSError as error:
        raise InputError(
            f"the workdir {workdir} cannot be used: {error.strerror}. Choose another."
        ) from None
    if strange := sorted(names - ours)[:3]:
        raise InputError(
            f"{workdir} is not empty, and holds no run of ours: {', '.join(strange)}. "
            "Choose another workdir."
        )


def check_options(workdir: Path, settings: Mapping) -> None:
    """Raises InputError if a run would go on with another value of what matters."""
    path = workdir / "config.json"
    old = config.from_json(path.read_text(), source=str(path)) if path.exists() else {}
    if not old:
        raise InputError(
            f"the run in {workdir} cannot go on: its config.json, which tells its "
            "options, is gone or empty. Choose another workdir."
        )
    differences = [
        words
        for section in config.SECTIONS
        for words in _differences(section, old.get(section, {}), settings)
    ]
    if differences:
        raise InputError(
            f"the run in {workdir} was started with other options: "
            f"{'; '.join(differences)}. Give the same ones, or another workdir."
        )


def _differences(section: str, old: Mapping, settings: Mapping) -> list[str]:
    """In words; what the run did not know of counts with what was done then."""
    now = settings.get(section, {})
    if old.get("name") != now.get("name"):
        # Their other options are not of one callable.
        return [f"{section}.name was {old.get('name')!r}, is {now.get('name')!r}"]
    found = []
    for key, was in {**old, **_unknown(section, old, now)}.items():
        if key in FREE.get(section, ()) or now.get(key) == was:
            continue
        had = "was" if key in old else "is not in its config.json, so was"
        found.append(f"{section}.{key} {had} {was!r}, is {now.get(key)!r}")
    return found


def _unknown(section: str, old: Mapping, now: Mapping) -> dict:
    """Options that a run did not know of, as they were for it."""
    options = signature.options(experiment.targets()[section](now))
    defaults = {
        key: signature.plain(option.default)
        for key, option in options.items()
        if option.default is not signature.REQUIRED
    } | BEFORE.get(section, {})
    return {key: defaults[key] for key in now if key in defaults and key not in old}


def check_data(workdir: Path, built: Experiment) -> None:
    """Raises InputError unless the run was started on this very split."""
    old = record.read_json(workdir / "data.json").get("split_sha256", "")
    new = built.split.sha256()
    if old != new:
        raise InputError(
            f"the run in {workdir} was started on other data: its split has the hash "
            f"{old[:12]}, this one {new[:12]}. Restore the file, or set data.path to "
            "where it is."
        )
