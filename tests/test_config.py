"""Config files, options from signatures, the command line, and their error lines."""

import argparse
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, Literal

import pytest
from flax import linen as nn

from jaxrec import command, config, experiment, signature
from jaxrec.errors import InputError


class Encoder(nn.Module):
    num_items: int
    width: int = 64
    dropout: float = 0.1
    dtype: str = "float32"
    table_init: Any = nn.initializers.normal(0.02)


class Recurrent(nn.Module):
    num_items: int
    width: int = 32
    num_layers: int = 1


def ce(hidden, table, *, exclude_window: bool = False):
    """A loss: the arrays are the program's, the rest are options."""


def sampled_ce(hidden, table, *, num_negatives: int, exclude: str = "window"):
    """One option has no default."""


def adam(
    learning_rate: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    clip_norm: float | None = None,
    schedule: Literal["constant", "cosine"] = "constant",
): ...


@dataclasses.dataclass(frozen=True)
class Training:
    seed: int = 0
    max_epochs: int = 100
    metrics: tuple[str, ...] = ("ndcg@10",)
    tensorboard: bool = False


def load(name: str = "ml-1m", path: str | None = None): ...


MODELS = {"encoder": Encoder, "recurrent": Recurrent}
LOSSES = {"ce": ce, "sampled_ce": sampled_ce}
TARGETS = {
    "data": lambda section: load,
    "model": lambda section: config.resolve(section["name"], MODELS, what="model"),
    "loss": lambda section: config.resolve(section["name"], LOSSES, what="loss"),
    "optim": lambda section: adam,
    "train": lambda section: Training,
}
STATED = {
    "method": "encoder_ce",
    "model": {"name": "encoder", "dropout": 0.5},
    "loss": {"name": "ce"},
    "optim": {"name": "adam"},
}
COMPLETE = {
    "method": "encoder_ce",
    "data": {"name": "ml-1m", "path": None},
    "model": {"name": "encoder", "width": 64, "dropout": 0.5, "dtype": "float32"},
    "loss": {"name": "ce", "exclude_window": False},
    "optim": {
        "name": "adam",
        "learning_rate": 1e-3,
        "betas": (0.9, 0.999),
        "clip_norm": None,
        "schedule": "constant",
    },
    "train": {
        "seed": 0,
        "max_epochs": 100,
        "metrics": ("ndcg@10",),
        "tensorboard": False,
    },
}


def stated(**sections) -> dict:
    """STATED with some options changed."""
    return STATED | {key: STATED.get(key, {}) | new for key, new in sections.items()}


def override(*options: str) -> dict:
    return config.override(STATED, options, TARGETS, source="configs/x.py")


def error_of(function, *args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(textwrap.dedent(text))
    return path


# Reading


def test_read_gives_plain_values(tmp_path):
    path = write(
        tmp_path / "mine.py",
        """
        from ml_collections import ConfigDict, config_dict
        def get_config():
            config = ConfigDict({"model": {"name": "encoder", "sizes": [1, (2, 3)]}})
            config.model.limit = config_dict.placeholder(int)
            return config
        """,
    )
    assert config.read(path) == {
        "method": "mine",
        "model": {"name": "encoder", "sizes": (1, (2, 3)), "limit": None},
    }
    assert type(config.read(path)["model"]) is dict


def test_read_takes_a_dict_and_its_method(tmp_path):
    path = write(
        tmp_path / "x.py", "def get_config(): return {'method': 'm', 'train': {}}"
    )
    assert config.read(path) == {"method": "m", "train": {}}


def test_modules_beside_a_file_are_its_own(tmp_path):
    for folder, width in (("a", 1), ("b", 2)):
        write(tmp_path / folder / "_shared.py", f"WIDTH = {width}")
        file = write(
            tmp_path / folder / "x.py",
            """
            import _shared
            def get_config():
                return {"model": {"width": _shared.WIDTH}}
            """,
        )
        path = list(sys.path)
        assert config.read(file)["model"] == {"width": width}
        assert sys.path == path and "_shared" not in sys.modules


def test_packaged_configs_are_found_from_anywhere(tmp_path, monkeypatch):
    write(tmp_path / "package" / "tiny.py", "def get_config(): return {}")
    monkeypatch.setattr(config, "_packaged", lambda: tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    assert config.read("configs/tiny.py") == {"method": "tiny"}
    assert config.read("tiny.py") == {"method": "tiny"}
    # A file of the user's own comes first.
    write(tmp_path / "configs" / "tiny.py", "def get_config(): return {'method': 'my'}")
    assert config.read("configs/tiny.py") == {"method": "my"}


def test_every_packaged_config_is_complete():
    files = sorted(config._packaged().glob("[!_]*.py"))
    assert files
    for file in files:
        settings = config.complete(
            config.read(f"configs/{file.name}"),
            experiment.targets(),
            supplied=experiment.SUPPLIED,
            source=file.name,
        )
        assert settings.keys() == {"method", *config.SECTIONS}
        assert config.from_json(config.to_json(settings)) == settings


def test_no_such_file(tmp_path, monkeypatch):
    write(tmp_path / "package" / "quickstart.py", "")
    write(tmp_path / "package" / "_paper.py", "")
    write(tmp_path / "my" / "own.py", "")
    monkeypatch.setattr(config, "_packaged", lambda: tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    assert error_of(config.read, "my/ownn.py") == (
        "no config file my/ownn.py; did you mean my/own.py?"
    )
    assert error_of(config.read, "configs/quikstart.py") == (
        "no config file configs/quikstart.py; did you mean configs/quickstart.py?"
    )
    assert error_of(config.read, "zzz") == (
        "no config file zzz; there are configs/quickstart.py."
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "{path} has no function get_config(): add one."),
        ("\nx = = 1", "{path} cannot be read: {path}:2: invalid syntax."),
        (
            "\n\nimport nowhere_to_be_found",
            "{path} cannot be read: {path}:3: ModuleNotFoundError: "
            "No module named 'nowhere_to_be_found'.",
        ),
        (
            "def get_config():\n  return {'model': {'width': int('a')}}",
            "{path} cannot be read: {path}:2: ValueError: "
            "invalid literal for int() with base 10: 'a'.",
        ),
        (
            "def get_config(): return 3",
            "get_config() of {path} must return a ConfigDict or a dict: got int.",
        ),
        (
            "def get_config(): return {'modle': {}}",
            "{path} has no section 'modle'; did you mean model? sections: "
            "data, model, loss, optim, train, eval.",
        ),
        (
            "def get_config(): return {'model': 3}",
            "{path}: model must be a dict: got 3.",
        ),
        (
            "def get_config(): return {'model': {'f': int}}",
            "{path}: model holds a type (<class 'int'>); a config holds only none, "
            "booleans, numbers, strings, and tuples or dicts of these. Write times as "
            "ISO 8601 text.",
        ),
    ],
)
def test_wrong_file(tmp_path, text, message):
    path = write(tmp_path / "x.py", text)
    assert error_of(config.read, path) == message.format(path=path)


def test_an_error_deep_in_a_library_names_the_line_of_the_file(tmp_path):
    path = write(tmp_path / "x.py", "import json\ndef get_config(): json.loads('')")
    assert f"{path}:2: JSONDecodeError" in error_of(config.read, path)


# Names


def test_resolve():
    assert config.resolve("ce", LOSSES, what="loss") is ce
    assert config.resolve("math:hypot", LOSSES, what="loss") is math.hypot


def test_resolve_looks_in_the_current_directory(tmp_path, monkeypatch):
    write(tmp_path / "my_losses_1.py", "def loss(): return 7")
    monkeypatch.chdir(tmp_path)
    assert config.resolve("my_losses_1:loss", {}, what="loss")() == 7
    sys.modules.pop("my_losses_1")


def test_resolve_errors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "my_losses_2.py", "def softmax(): ...\nimport nowhere_1")

    def message(name):
        return error_of(config.resolve, name, LOSSES, what="loss")

    assert message("sampled") == (
        "no loss is named 'sampled'; did you mean sampled_ce? names: ce, sampled_ce; "
        "your own is named as module:function."
    )
    assert message("nowhere_2:f") == (
        "loss 'nowhere_2:f' cannot be imported: ModuleNotFoundError: "
        "No module named 'nowhere_2'."
    )
    assert message("my_losses_2:softmax") == (
        f"loss 'my_losses_2:softmax' cannot be imported: {file}:2: "
        "ModuleNotFoundError: No module named 'nowhere_1'."
    )
    write(file, "def softmax(): ...\ndef _softmax(): ...")
    assert message("my_losses_2:sofmax") == (
        "loss 'my_losses_2:sofmax': my_losses_2 has no function 'sofmax'; "
        "did you mean softmax? functions: softmax."
    )
    sys.modules.pop("my_losses_2")


# Completing


def test_complete_fills_in_every_default():
    completed = config.complete(STATED, TARGETS)
    assert completed == COMPLETE
    assert list(completed) == list(COMPLETE)
    for section in ("model", "optim", "train"):
        assert list(completed[section]) == list(COMPLETE[section])
    assert config.complete(completed, TARGETS) == completed
    assert "train" not in STATED and STATED["loss"] == {"name": "ce"}


def test_complete_leaves_out_what_the_program_passes():
    supplied = {"model": ("dtype",)}
    completed = config.complete(STATED, TARGETS, supplied=supplied)
    assert "dtype" not in completed["model"]
    wrong = stated(model={"dtype": "bfloat16"})
    message = error_of(config.complete, wrong, TARGETS, supplied=supplied)
    assert message.startswith("the config has no option 'model.dtype'")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"model": {"widht": 3}},
            "x.py has no option 'model.widht'; did you mean model.width? options: "
            "model.name, model.width, model.dropout, model.dtype.",
        ),
        # The program's own arguments, and a default that is no plain value.
        ({"model": {"num_items": 3}}, "x.py has no option 'model.num_items'; "),
        ({"model": {"table_init": "zeros"}}, "x.py has no option 'model.table_init'; "),
        ({"model": {"parent": None}}, "x.py has no option 'model.parent'; "),
        ({"loss": {"hidden": 3}}, "x.py has no option 'loss.hidden'; "),
        (
            {"loss": {"name": "sampled_ce"}},
            "x.py must set loss.num_negatives, to int.",
        ),
        ({"model": {"name": None}}, "x.py must set model.name, to a string."),
        ({"model": {"name": "encodr"}}, "no model is named 'encodr'; did you mean "),
        ({"model": {"width": 64.0}}, "x.py: model.width must be int: got 64.0."),
        ({"model": {"width": True}}, "x.py: model.width must be int: got True."),
        ({"model": {"width": "64"}}, "x.py: model.width must be int: got '64'."),
        ({"model": {"dropout": False}}, "x.py: model.dropout must be float: got "),
        ({"train": {"tensorboard": 1}}, "x.py: train.tensorboard must be bool: got 1."),
        ({"optim": {"clip_norm": "1"}}, "x.py: optim.clip_norm must be float or none"),
        (
            {"optim": {"betas": (0.9,)}},
            "x.py: optim.betas must be tuple[float, float]: got (0.9,).",
        ),
        (
            {"optim": {"schedule": "cosin"}},
            "x.py: optim.schedule must be 'constant' or 'cosine': got 'cosin'.",
        ),
    ],
)
def test_complete_errors(sections, message):
    wrong = stated(**sections)
    found = error_of(config.complete, wrong, TARGETS, source="x.py")
    assert found.startswith(message)


def test_complete_accepts_an_int_for_a_float_and_a_list_for_a_tuple():
    completed = config.complete(stated(optim={"betas": [0, 1]}), TARGETS)
    assert completed["optim"]["betas"] == (0.0, 1.0)
    assert all(type(beta) is float for beta in completed["optim"]["betas"])


def test_a_section_that_chooses_needs_a_name():
    message = error_of(config.complete, {"method": "m"}, TARGETS, source="x.py")
    assert message == "x.py must set model.name, to a string."


# Signatures


def test_options_of_annotations_as_text():
    """As `from __future__ import annotations` leaves them."""

    def function(x, *args, a: "int" = 1, b: "Unknown" = "b", **kwargs): ...  # noqa: F821

    assert signature.options(function) == {"a": (int, 1), "b": (Any, "b")}


def test_options_without_annotations_take_the_type_of_the_default():
    def function(a=1, b=None, c: int = None, *, d): ...  # type: ignore

    assert signature.options(function) == {
        "a": (int, 1),
        "b": (Any, None),
        "c": (int | None, None),
        "d": (Any, signature.REQUIRED),
    }


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("3", int, 3),
        ("-3", int, -3),
        ("3", float, 3.0),
        ("3e-4", float, 3e-4),
        ("none", int | None, None),
        ("None", str | None, None),
        ("none", str, "none"),
        ("3", str, "3"),
        ("true", bool, True),
        ("False", bool, False),
        ("true", str, "true"),
        ("'a'", str, "'a'"),
        ("", str, ""),
        ("a=b", str, "a=b"),
        ("(1,2)", tuple[int, int], (1, 2)),
        ("1, 2", tuple[float, ...], (1.0, 2.0)),
        ("[1]", tuple, (1,)),
        ("()", tuple[int, ...], ()),
        ("hr@10,ndcg@10", tuple[str, ...], ("hr@10", "ndcg@10")),
        ("('a', 'b')", tuple[str, ...], ("a", "b")),
        ("{'a': 1}", dict, {"a": 1}),
        ("3", int | str, 3),
        ("x", int | str, "x"),
        ("x", Literal["x", "y"], "x"),
        ("3", Any, 3),
        ("x", Any, "x"),
    ],
)
def test_parse(text, hint, value):
    parsed = signature.parse(text, hint)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("64.0", int),
        ("1e3", int),
        ("true", int),
        ("none", int),
        ("a", float),
        ("1", bool),
        ("yes", bool),
        ("none", bool),
        ("(1,2,3)", tuple[int, int]),
        ("(1,'a')", tuple[int, ...]),
        ("3", tuple[int, ...]),
        ("3", Literal["x"]),
        ("true", Literal[1]),
        ("__import__('os')", int),
        ("{1}", int),
        ("[" * 500, int),
    ],
)
def test_parse_rejects(text, hint):
    with pytest.raises(TypeError):
        signature.parse(text, hint)


# Changes on the command line


@pytest.mark.parametrize(
    ("option", "section", "key", "value"),
    [
        ("--config.train.max_epochs=1", "train", "max_epochs", 1),
        ("--config.optim.learning_rate=3e-4", "optim", "learning_rate", 3e-4),
        ("--config.optim.learning_rate=1", "optim", "learning_rate", 1.0),
        ("--config.optim.clip_norm=2", "optim", "clip_norm", 2.0),
        ("--config.optim.betas=(0.5,0.6)", "optim", "betas", (0.5, 0.6)),
        ("--config.model.dtype=bfloat16", "model", "dtype", "bfloat16"),
        ("--config.data.path=a=b", "data", "path", "a=b"),
        ("--config.data.path=none", "data", "path", None),
        ("--config.data.name=beauty", "data", "name", "beauty"),
        ("--config.train.tensorboard", "train", "tensorboard", True),
        ("--noconfig.train.tensorboard", "train", "tensorboard", False),
        ("--config.train.tensorboard=false", "train", "tensorboard", False),
        ("--config.train.metrics=hr@5", "train", "metrics", ("hr@5",)),
    ],
)
def test_override(option, section, key, value):
    changed = override(option)
    assert changed == COMPLETE | {section: COMPLETE[section] | {key: value}}
    assert type(changed[section][key]) is type(value)


def test_override_without_options_completes():
    assert override() == COMPLETE


def test_the_last_change_counts():
    changed = override("--config.train.seed=1", "--config.train.seed=2")
    assert changed["train"]["seed"] == 2


def test_override_of_the_method():
    assert override("--config.method=3")["method"] == "3"


def test_another_name_comes_first_and_keeps_what_both_have():
    config_ = stated(model={"width": 16})
    options = ["--config.model.num_layers=2", "--config.model.name=recurrent"]
    changed = config.override(config_, options, TARGETS)
    assert changed["model"] == {"name": "recurrent", "width": 16, "num_layers": 2}
    # The same name again forgives no wrong option.
    wrong = stated(model={"widht": 16})
    error_of(config.override, wrong, ["--config.model.name=encoder"], TARGETS)


def test_a_required_option_may_come_from_the_command_line():
    changed = override("--config.loss.num_negatives=5", "--config.loss.name=sampled_ce")
    assert changed["loss"] == {
        "name": "sampled_ce",
        "num_negatives": 5,
        "exclude": "window",
    }


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "--config.model.widht=3",
            "configs/x.py has no option 'model.widht'; did you mean model.width? "
            "options: model.name, model.width, model.dropout, model.dtype.",
        ),
        (
            "--config.train.learning_rate=3",
            "configs/x.py has no option 'train.learning_rate'; did you mean "
            "optim.learning_rate? options: train.seed, train.max_epochs, "
            "train.metrics, train.tensorboard.",
        ),
        (
            "--config.data.nam=3",
            "configs/x.py has no option 'data.nam'; did you mean data.name? options: "
            "data.name, data.path.",
        ),
        (
            "--config.seed=3",
            "configs/x.py has no option 'seed'; did you mean train.see",
        ),
        ("--config.model=3", "configs/x.py has no option 'model'; "),
        ("--config.model.width.x=3", "configs/x.py has no option 'model.width.x'; opt"),
        ("--config.=3", "configs/x.py has no option ''; options: data.name, "),
        ("--config.model.width=64.0", "--config.model.width must be int: got '64.0'."),
        ("--config.model.width", "--config.model.width must be int: got 'true'."),
        ("--noconfig.model.width", "--config.model.width must be int: got 'false'."),
        (
            "--noconfig.train.tensorboard=true",
            "--noconfig.train.tensorboard takes no value: got 'true'.",
        ),
        ("--config.model.name=", "no model is named ''; names: encoder, recurrent; "),
        (
            "--config.model.name=Recurent",
            "no model is named 'Recurent'; did you mean r",
        ),
    ],
)
def test_override_errors(option, message):
    assert error_of(override, option).startswith(message)


# JSON


def test_json_round_trip():
    completed = config.complete(stated(optim={"clip_norm": 0.1}), TARGETS)
    text = config.to_json(completed)
    assert config.from_json(text) == completed
    assert config.to_json(config.from_json(text)) == text
    assert '\n    "width": 64,\n' in text
    assert json.loads(text)["optim"]["betas"] == [0.9, 0.999]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "run/config.json is not JSON: "),
        ("[1]", "run/config.json must be a JSON object of sections: got [1]."),
        (
            '{"modle": {}}',
            "run/config.json has no section 'modle'; did you mean model?",
        ),
    ],
)
def test_json_errors(text, message):
    found = error_of(config.from_json, text, source="run/config.json")
    assert found.startswith(message)


# Commands


def train_parser() -> argparse.ArgumentParser:
    parser = command.command_parser("python -m jaxrec.train", "Trains.")
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument("--workdir")
    parser.add_argument("--resume", action="store_true")
    return parser


@pytest.mark.parametrize(
    "config_words", [["--config", "x.py"], ["--config=x.py"]], ids=["space", "equals"]
)
def test_parse_command(config_words):
    options = ["--config.a.b=1", "--config.a.c", "-1", "--noconfig.a.d", "--config.a.e"]
    argv = [*options, *config_words, "--resume"]
    flags, found = command.parse_command(train_parser(), argv)
    assert vars(flags) == {"config": "x.py", "workdir": None, "resume": True}
    assert found == [
        "--config.a.b=1",
        "--config.a.c=-1",
        "--noconfig.a.d",
        "--config.a.e",
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--config=x", "--confg.train.seed=1"],
            "python -m jaxrec.train has no flag '--confg.train.seed'; ",
        ),
        (
            ["--config=x", "--wrkdir=a"],
            "python -m jaxrec.train has no flag '--wrkdir'; did you mean --workdir? "
            "flags: --config, --workdir, --resume, --config.section.option.",
        ),
        (
            ["--config=x", "--work=a"],
            "python -m jaxrec.train has no flag '--work'; did",
        ),
        (
            ["--config=x", "stray"],
            "python -m jaxrec.train has no flag 'stray'; flags: ",
        ),
        (
            ["--resume"],
            "python -m jaxrec.train: the following arguments are required: --config; "
            "see python -m jaxrec.train --help.",
        ),
        (
            ["--config=x", "--workdir"],
            "python -m jaxrec.train: argument --workdir: exp",
        ),
    ],
)
def test_parse_command_errors(argv, message):
    found = error_of(command.parse_command, train_parser(), argv)
    assert found.startswith(message)


def test_help(capsys):
    with pytest.raises(SystemExit) as caught:
        command.parse_command(train_parser(), ["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m jaxrec.train [-h] --config FILE")
    assert "--config.train.max_epochs=1" in text


def raising(error: BaseException):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "status", "err"),
    [
        (lambda argv: None, 0, ""),
        (lambda argv: len(argv), 1, ""),
        (raising(InputError("no\n  file x")), 2, "error: no file x\n"),
        (raising(KeyboardInterrupt()), 130, "interrupted\n"),
    ],
)
def test_run_command(main, status, err, capsys):
    assert command.run_command(main, ["x"]) == status
    assert capsys.readouterr() == ("", err)


def test_sigterm_is_cleaned_up_after(tmp_path, capsys):
    part = tmp_path / "half"

    def main(argv):
        part.touch()
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            part.unlink()

    before = signal.getsignal(signal.SIGTERM)
    assert command.run_command(main, []) == 143
    assert capsys.readouterr().err == "interrupted: by SIGTERM\n"
    assert not part.exists() and signal.getsignal(signal.SIGTERM) == before


def test_run_command_keeps_the_traceback_of_a_bug():
    with pytest.raises(ZeroDivisionError):
        command.run_command(raising(ZeroDivisionError()), [])


@pytest.mark.parametrize("num_lines", [1, 100_000])
def test_run_command_is_quiet_when_the_reader_has_gone(num_lines):
    code = (
        "import sys; from jaxrec.command import run_command\n"
        "def main(argv):\n"
        f"  for i in range({num_lines}): print(i)\n"
        "sys.exit(run_command(main, []))"
    )
    read, write_ = os.pipe()
    os.close(read)
    process = subprocess.run(
        [sys.executable, "-c", code],
        stdout=write_,
        stderr=subprocess.PIPE,
        text=True,
        # With a buffer, one line is written only at the end.
        env=os.environ | {"PYTHONUNBUFFERED": ""},
    )
    os.close(write_)
    assert (process.returncode, process.stderr) == (141, "")
