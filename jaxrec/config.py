"""Experiments: read from a file, changed on the command line, completed by signatures.

An experiment is a plain dict: one section for each function that it calls, and
`method`, the short name that its results carry.

    {"method": "sasrec_ce", "data": {...}, "model": {"name": "sasrec", ...}, ...}

A section is exactly the keyword arguments of its function, whose signature is the only
place where an option's type and default are written (see `signature`). In the sections
model, loss and optim `name` chooses the function: one of ours, or the user's own as
"module:function".

A config file may build its experiment with ml_collections, and need not: nothing here
imports it.
"""

import contextlib
import difflib
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxrec import signature
from jaxrec.errors import InputError

SECTIONS = ("data", "model", "loss", "optim", "train", "eval")
NAMED = ("model", "loss", "optim")

Targets = Mapping[str, Callable[[dict], Callable]]
Supplied = Mapping[str, Collection[str]]
Schema = Mapping[str, Mapping[str, signature.Option]]


def read(path: str | os.PathLike) -> dict:
    """The experiment of a config file, as the file states it.

    A config file is Python with `get_config()`, which returns an ml_collections
    ConfigDict or a dict. Modules beside it can be imported while it runs.

    Args:
      path: of the file. One that does not exist is looked for among the packaged
        configs, so that `configs/quickstart.py` is found from any folder.

    Returns:
      The sections as plain dicts; `method` is the file's name if the file gives none.

    Raises:
      InputError: no such file, an error in the file (with its line), or a section that
        does not exist.
    """
    file = _find(Path(path))
    namespace: dict[str, Any] = {"__name__": file.stem, "__file__": str(file)}
    with _running(file.parent, f"{path} cannot be read"):
        exec(compile(file.read_bytes(), str(file), "exec"), namespace)
        if not callable(namespace.get("get_config")):
            raise InputError(f"{path} has no function get_config(): add one.")
        config = namespace["get_config"]()
    config = _as_dict(config)
    if not isinstance(config, Mapping):
        raise InputError(
            f"get_config() of {path} must return a ConfigDict or a dict: "
            f"got {type(config).__name__}."
        )
    return _checked({"method": file.stem, **config}, str(path))


def resolve(name: str, table: Mapping[str, Callable], *, what: str) -> Callable:
    """The function of that name: an entry of the table, or imported.

    >>> resolve("math:sqrt", {}, what="loss")(9.0)
    3.0

    Args:
      name: a key of the table, or "module:function"; the current directory is searched
        first.
      table: our own functions.
      what: the noun for the error message, such as "loss".

    Raises:
      InputError: neither in the table nor to be imported; it says which, and why.
    """
    if name in table:
        return table[name]
    module_name, colon, attribute = str(name).partition(":")
    if not (module_name and colon and attribute):
        near = suggestion(str(name), table, what="names")
        raise InputError(
            f"no {what} is named {name!r}{near}; your own is named as module:function."
        )
    with _running(Path.cwd(), f"{what} {name!r} cannot be imported", keep=True):
        module = importlib.import_module(module_name)
    function = getattr(module, attribute, None)
    if not callable(function):
        public = [k for k, v in vars(module).items() if callable(v) and k[0] != "_"]
        raise InputError(
            f"{what} {name!r}: {module_name} has no function {attribute!r}"
            f"{suggestion(attribute, public, what='functions')}."
        )
    return function


def complete(
    config: Mapping,
    targets: Targets,
    *,
    supplied: Supplied | None = None,
    source: str = "the config",
) -> dict:
    """The experiment with every option of every section, checked.

    Args:
      config: as from `read`; a missing section is an empty one.
      targets: section -> function of the section's dict that returns the callable
        whose keyword arguments the section is.
      supplied: section -> options that the program passes itself.
      source: what messages call the config.

    Returns:
      A new dict: `method`, then the sections, their options in the signature's order.

    Raises:
      InputError: an unknown or a missing option, or a value of another type than its
        annotation's.
    """
    config = _checked(config, source)
    schema = _schema(config, targets, supplied or {}, source)
    for section, options in schema.items():
        given = config.get(section, {})
        for key in given:
            if key not in options:
                raise _no_option(f"{section}.{key}", schema, source)
        config[section] = {
            key: _value(f"{section}.{key}", option, given, source)
            for key, option in options.items()
        }
    return {key: config[key] for key in ("method", *SECTIONS) if key in config}


def override(
    config: Mapping,
    options: Iterable[str],
    targets: Targets,
    *,
    supplied: Supplied | None = None,
    source: str = "the config",
) -> dict:
    """The completed experiment with the command line's changes.

    Another `name` is taken first, since the other options depend on it. Of what the
    config states in that section, the new function gets the options that it has too.
    Another model or loss makes the method "<model>_<loss>", unless that is given.

    Args:
      config: as from `read`.
      options: "--config.section.option=value", "--config.section.flag" or
        "--noconfig.section.flag"; of two changes to one option the last one counts.
      targets, supplied, source: as in `complete`.

    Raises:
      InputError: as in `complete`, or a text that is no value of the option's type.
    """
    supplied = supplied or {}
    config = _checked(config, source)
    changes = dict(_parse_option(option) for option in options)
    if "method" in changes:
        config["method"] = changes.pop("method")
    elif "model.name" in changes or "loss.name" in changes:
        # The config's short name would call the result something that it is not.
        names = {s: config.get(s, {}).get("name", "") for s in ("model", "loss")}
        now = {s: changes.get(f"{s}.name") or names[s] for s in names}
        if now != names:
            config["method"] = "_".join(now.values())
    for section in NAMED:
        if section in targets and f"{section}.name" in changes:
            _rename(config, section, changes.pop(f"{section}.name"), targets)
    schema = _schema(config, targets, supplied, source)
    for path, text in changes.items():
        section, _, key = path.partition(".")
        if key not in schema.get(section, {}):
            raise _no_option(path, schema, source)
        hint = schema[section][key].hint
        try:
            config.setdefault(section, {})[key] = signature.parse(text, hint)
        except TypeError:
            raise InputError(
                f"--config.{path} must be {signature.describe(hint)}: got {text!r}."
            ) from None
    return complete(config, targets, supplied=supplied, source=source)


def to_json(config: Mapping) -> str:
    """The experiment as indented JSON; `from_json` gives an equal one back."""
    return json.dumps(config, indent=2) + "\n"


def from_json(text: str, *, source: str = "config.json") -> dict:
    """The experiment that `to_json` wrote.

    Raises:
      InputError: the text is not JSON, or not an experiment.
    """
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{source} is not JSON: {error}.") from None
    if not isinstance(config, dict):
        raise InputError(f"{source} must be a JSON object of sections: got {config!r}.")
    return _checked(config, source)


def suggestion(word: str, known: Iterable[str], *, what: str) -> str:
    """The end of a message about a name that does not exist.

    >>> suggestion("widht", ["width", "dropout"], what="options")
    '; did you mean width? options: width, dropout'

    Args:
      word: the name.
      known: the names there are.
      what: the noun for them, in the plural.
    """
    known = list(known)
    return _suggestion(difflib.get_close_matches(word, known), known, what=what)


def _packaged() -> Path:
    """The folder of our configs: in a wheel inside the package, else beside it."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    folder = _packaged()
    is_prefixed = path.parts[:1] == ("configs",)
    packaged = folder.joinpath(*path.parts[is_prefixed:])
    if packaged.is_file():
        return packaged
    ours = [Path("configs", file.name) for file in folder.glob("[!_]*.py")]
    files = sorted({*ours, *path.parent.glob("[!_]*.py")})
    close = difflib.get_close_matches(path.stem, [file.stem for file in files])
    near = [str(file) for file in files if file.stem in close]
    if near:
        raise InputError(f"no config file {path}; did you mean {' or '.join(near)}?")
    raise InputError(f"no config file {path}; there are {', '.join(map(str, files))}.")


@contextlib.contextmanager
def _running(folder: Path, what: str, *, keep: bool = False) -> Iterator[None]:
    """Runs a user's code with its folder importable, and makes its errors one line.

    Unless `keep`, the folder's modules are forgotten at the end: another folder's
    `_paper` is another module.
    """
    root = folder.resolve()
    before = set(sys.modules)
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    try:
        yield
    except InputError:
        raise
    except SyntaxError as error:
        place = f"{error.filename}:{error.lineno}"
        raise InputError(f"{what}: {place}: {error.msg}.") from error
    except Exception as error:
        raise InputError(
            f"{what}: {_place(error, root)}{type(error).__name__}: {error}."
        ) from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(root))
        for name in set() if keep else set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).resolve().parent == root:
                del sys.modules[name]


def _place(error: Exception, root: Path) -> str:
    """Where the error is in the user's own code, as "file:line: ", or nothing."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename).resolve()
        is_own = file.is_relative_to(root) and "site-packages" not in file.parts
        if is_own and file.is_file():  # unlike <frozen importlib>
            return f"{frame.filename}:{frame.lineno}: "
    return ""


def _as_dict(config: Any) -> Any:
    """A ConfigDict as a plain dict, sections too; anything else as it is."""
    return config.to_dict() if hasattr(config, "to_dict") else config


def _checked(config: Mapping, source: str) -> dict:
    """A deep copy in plain values, also of an ml_collections ConfigDict."""
    config = _as_dict(config)
    copy = {}
    for key, value in config.items():
        if key not in ("method", *SECTIONS):
            near = suggestion(str(key), SECTIONS, what="sections")
            raise InputError(f"{source} has no section {key!r}{near}.")
        if not isinstance(value, str if key == "method" else Mapping):
            kind = "a string" if key == "method" else "a dict"
            raise InputError(f"{source}: {key} must be {kind}: got {value!r}.")
        try:
            copy[key] = signature.plain(value)
        except TypeError as error:
            raise InputError(
                f"{source}: {key} holds {error}; a config holds only none, booleans, "
                "numbers, strings, and tuples or dicts of these. Write times as ISO "
                "8601 text."
            ) from None
    return copy


def _schema(config: Mapping, targets: Targets, supplied: Supplied, source) -> Schema:
    """section -> its options, for the functions that the config names."""
    schema = {}
    for section, target in targets.items():
        given = config.get(section, {})
        if section in NAMED and not isinstance(given.get("name"), str):
            raise InputError(f"{source} must set {section}.name, to a string.")
        options = _options(target(given), section)
        passed = supplied.get(section, ())
        schema[section] = {k: v for k, v in options.items() if k not in passed}
    return schema


def _options(function: Callable, section: str) -> dict[str, signature.Option]:
    options = signature.options(function)
    if section in NAMED:
        # A Linen module has a `name` of its own, whose place ours takes.
        ours = {"name": signature.Option(str, signature.REQUIRED)}
        return ours | options | ours
    return options


def _rename(config: dict, section: str, name: str, targets: Targets) -> None:
    stated = config.get(section, {})
    if name != stated.get("name"):
        stated = {**stated, "name": name}
        options = _options(targets[section](stated), section)
        config[section] = {k: v for k, v in stated.items() if k in options}


def _value(path: str, option: signature.Option, given: Mapping, source: str) -> Any:
    value = given.get(path.partition(".")[2], option.default)
    kind = signature.describe(option.hint)
    if value is signature.REQUIRED:
        raise InputError(f"{source} must set {path}, to {kind}.")
    try:
        return signature.fit(signature.plain(value), option.hint)
    except TypeError:
        raise InputError(f"{source}: {path} must be {kind}: got {value!r}.") from None


def _parse_option(option: str) -> tuple[str, str]:
    """("section.key", text); a bare flag is "true", one with --no is "false"."""
    path, equals, text = option.partition("=")
    if path.startswith("--noconfig."):
        if equals:
            raise InputError(f"{path} takes no value: got {text!r}.")
        return path.removeprefix("--noconfig."), "false"
    return path.removeprefix("--config."), text if equals else "true"


def _no_option(path: str, schema: Schema, source: str) -> InputError:
    key_of = {f"{section}.{key}": key for section in schema for key in schema[section]}
    prefix = path.partition(".")[0] + "."
    keys = list(dict.fromkeys(key_of.values()))
    close = difflib.get_close_matches(path.rpartition(".")[2], keys)
    near = [option for option, key in key_of.items() if key in close]
    near = [option for option in near if option.startswith(prefix)] or near
    listed = [option for option in key_of if option.startswith(prefix)] or key_of
    end = _suggestion(near, listed, what="options")
    return InputError(f"{source} has no option {path!r}{end}.")


def _suggestion(near: list[str], known: Iterable[str], *, what: str) -> str:
    question = f"; did you mean {' or '.join(near)}?" if near else ";"
    return f"{question} {what}: {', '.join(known)}"
