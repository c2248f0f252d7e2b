"""The numbers of a run on a console, in JSON lines, for TensorBoard and for W&B."""

import contextlib
import importlib.util
import json
import subprocess
import sys
import types

import pytest

from jaxrec import experiment, screens
from jaxrec.errors import InputError
from jaxrec.writers import Console, JsonLines, TensorBoard, WeightsAndBiases

VALUES = {
    "epoch": 3,
    "loss": 5.4321,
    "valid/hr@10": 0.25,
    "valid/ndcg@10": 0.12345,
    "is_best": True,
    "tokens_per_s": 123456.7,
    "train_s": 50.0,
    "valid_s": 11.0,
    "total_s": 200.0,
}


def written(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_console_shows_an_epoch_in_a_line(capsys):
    lines = []
    console = Console("ndcg@10", 10, 2, lines.append)
    console.tick(0.5, 1000.0)  # for a terminal only
    console.write(144, VALUES)
    console.write(192, {**VALUES, "epoch": 4, "is_best": False})
    console.close()
    first, second = lines
    expected = (
        "epoch 3/10 loss 5.4321 valid ndcg@10 0.1235* hr@10 0.2500 "
        "123,457 tok/s 61.0 s at most 7 min 07 s left"
    )
    assert first.split() == expected.split()
    assert "ndcg@10 0.1235 " in second
    assert second.endswith("at most 6 min 06 s left")
    assert "\x1b" not in first + second and not capsys.readouterr().out


def test_console_shows_the_monitor_first_and_once():
    lines = []
    Console("hr@10", 3, 2, lines.append).write(1, VALUES)
    assert "valid hr@10 0.2500*" in lines[0]
    assert lines[0].count("hr@10") == 1
    assert lines[0].endswith("61.0 s")  # nothing is left of 3 epochs


def test_console_on_a_terminal_shows_the_present_epoch(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    console = Console("ndcg@10", 10, 2, print)
    console.tick(0.5, 1000.0)
    assert capsys.readouterr().out.endswith("epoch   3   50%  1,000 tok/s")
    console.write(144, VALUES)
    erase, line = capsys.readouterr().out.split("\x1b[K")
    assert erase == "\r" and line.startswith("epoch   3/10")
    console.close()


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = types.SimpleNamespace(s=1000.0)
    monkeypatch.setattr("time.monotonic", lambda: now.s)
    return now


def test_a_dumb_terminal_is_a_log_file(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    console = Console("ndcg@10", 10, 2, print)
    console.tick(0.5, 1000.0)
    console.write(144, VALUES)
    console.close()
    assert capsys.readouterr().out.count("\n") == 1


def test_a_log_file_says_now_and_then_that_a_long_epoch_goes_on(clock):
    lines = []
    console = Console("ndcg@10", 10, 2, lines.append)
    for second in range(0, 150, 10):  # a tick every 10 s, a line every 60 s
        clock.s = 1000.0 + second
        console.tick(second / 150, 1000.0)
    console.write(144, VALUES)
    console.tick(0.01, 1000.0)  # the line of the epoch was just said
    shares = [line.split()[2] for line in lines[:-1]]
    assert shares == ["40%", "80%"] and lines[-1].startswith("epoch   3/10")


class Kernel(types.ModuleType):
    """IPython as a kernel has it: outputs that can be changed later."""

    def __init__(self):
        super().__init__("IPython")
        self.outputs, self.messages = [], 0
        self.get_ipython = lambda: types.SimpleNamespace(kernel=object())
        self.display = types.ModuleType("IPython.display")
        self.display.display = self.show

    def show(self, data, *, raw, display_id):
        assert raw and display_id is True
        self.outputs.append(data["text/plain"])
        self.messages += 1
        place = len(self.outputs) - 1
        return types.SimpleNamespace(update=lambda *a, **k: self.change(place, *a, **k))

    def change(self, place, data, *, raw):
        assert raw
        self.outputs[place] = data["text/plain"]
        self.messages += 1


@pytest.fixture
def kernel(monkeypatch):
    kernel = Kernel()
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setitem(sys.modules, "IPython.display", kernel.display)
    return kernel


def test_a_notebook_has_one_output_of_the_best_the_last_and_the_present(
    kernel, clock, capsys
):
    console = Console("ndcg@10", 100, 0, print)
    for epoch in range(1, 51):
        for share in (0.25, 0.5, 0.75, 1.0):
            clock.s += 0.2
            console.tick(share, 1000.0)
        console.write(epoch, {**VALUES, "epoch": epoch, "is_best": epoch <= 7})
    clock.s += 1.0
    console.tick(0.5, 1000.0)
    (output,) = kernel.outputs
    assert [line.split()[1] for line in output.splitlines()] == [
        "7/100",
        "50/100",
        "51",
    ]
    # At most two states a second: of 40 s and 50 lines.
    assert kernel.messages <= 2 * 40 + 50 + 1
    console.close()
    (output,) = kernel.outputs
    assert [line.split()[1] for line in output.splitlines()] == ["7/100", "50/100"]
    assert capsys.readouterr() == ("", "")


def test_a_notebook_shows_a_best_epoch_once(kernel, clock):
    console = Console("ndcg@10", 10, 2, print)
    console.write(144, VALUES)
    console.close()
    assert len(kernel.outputs[0].splitlines()) == kernel.messages == 1


def test_only_print_goes_to_the_notebook(kernel):
    lines = []
    Console("ndcg@10", 10, 2, lines.append).write(144, VALUES)
    assert len(lines) == 1 and not kernel.outputs


def test_ipython_without_a_kernel_is_no_notebook(kernel):
    kernel.get_ipython = lambda: types.SimpleNamespace()
    assert not screens.in_notebook()
    kernel.get_ipython = lambda: None
    assert not screens.in_notebook()


def test_json_lines_are_on_disk_as_they_are_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonLines(path)
    writer.tick(0.5, 1.0)
    writer.write(48, {"epoch": 1, "loss": 0.1})
    assert written(path) == [{"step": 48, "epoch": 1, "loss": 0.1}]
    writer.write(96, {"epoch": 2, "loss": 0.05})
    writer.close()
    assert [line["step"] for line in written(path)] == [48, 96]


@pytest.mark.parametrize("keep", [0, 2, 9])
def test_json_lines_drop_the_epochs_that_a_resumed_run_does_again(tmp_path, keep):
    path = tmp_path / "metrics.jsonl"
    whole = [json.dumps({"step": 48 * e, "epoch": e}) + "\n" for e in (1, 2, 3)]
    torn = '{"step": 192, "epo'  # the machine stopped while it wrote
    path.write_text("".join(whole) + torn)
    writer = JsonLines(path, keep=keep)
    assert path.read_text() == "".join(whole[:keep])
    writer.write(7, {"epoch": keep + 1})
    writer.close()
    assert written(path)[-1] == {"step": 7, "epoch": keep + 1}
    assert len(written(path)) == min(keep, 3) + 1
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_holds_every_number(tmp_path):
    pytest.importorskip("tensorboardX", reason="jaxrec[tensorboard] is not installed")
    from tensorboardX.proto import event_pb2

    writer = TensorBoard(tmp_path / "events")
    writer.tick(0.5, 1.0)
    writer.write(144, {**VALUES, "name": "no number"})
    writer.close()
    (file,) = (tmp_path / "events").iterdir()
    scalars = {}
    for record in records(file.read_bytes()):
        event = event_pb2.Event.FromString(record)
        for value in event.summary.value:
            assert event.step == 144
            scalars[value.tag] = value.simple_value
    # TensorBoard allows no @ in a name; values are float32.
    expected = {name.replace("@", "_"): float(VALUES[name]) for name in VALUES}
    assert scalars == pytest.approx(expected)


def records(data):
    """TFRecord: length (8 bytes), its checksum (4), the record, its checksum (4)."""
    while data:
        length = int.from_bytes(data[:8], "little")
        yield data[12 : 12 + length]
        data = data[16 + length :]


def test_tensorboard_that_is_not_installed_is_an_input_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(InputError, match=r"pip install 'jaxrec\[tensorboard\]'"):
        TensorBoard(tmp_path)


class Wandb(types.ModuleType):
    """As much of wandb as is used, which remembers what it was given."""

    class Error(Exception):
        pass

    def __init__(self):
        super().__init__("wandb")
        self.runs, self.is_logged_in = [], True
        self.Settings = dict

    def init(self, **given):
        if not self.is_logged_in:
            raise self.Error("No API key configured.")
        run = types.SimpleNamespace(given=given, logged=[], axes=[], codes=[])
        run.log = lambda values: run.logged.append(values)
        run.define_metric = lambda name, step_metric: run.axes.append(
            (name, step_metric)
        )
        run.finish = lambda exit_code: run.codes.append(exit_code)
        self.runs.append(run)
        return run


@pytest.fixture
def wandb(monkeypatch):
    stub = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return stub


def test_wandb_has_the_config_and_every_epoch(wandb, tmp_path):
    config = {"method": "sasrec_ce", "train": {"seed": 3}}
    writer = WeightsAndBiases(tmp_path / "mine", config)
    writer.tick(0.5, 1.0)
    writer.write(144, VALUES)
    writer.close()
    (run,) = wandb.runs
    assert run.logged == [{"step": 144, **VALUES}]
    assert run.axes == [("*", "epoch")] and run.codes == [0]
    assert run.given["config"] == config and run.given["name"] == "mine"
    assert run.given["project"] == "jaxrec"
    assert run.given["dir"] == str(tmp_path / "mine")


def test_wandb_goes_on_with_the_run_of_the_folder(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    for folder in ("a", "a", "b"):
        WeightsAndBiases(tmp_path / folder, {}).close()
    first, again, other = (run.given for run in wandb.runs)
    assert first["id"] == again["id"] != other["id"]
    assert again["resume"] == "allow" and again["project"] == "mine"


def test_wandb_is_told_of_a_failure(wandb, tmp_path):
    with pytest.raises(KeyboardInterrupt), contextlib.ExitStack() as stack:
        stack.callback(WeightsAndBiases(tmp_path, {}).close)
        raise KeyboardInterrupt
    assert wandb.runs[0].codes == [1]


def test_wandb_that_cannot_start_is_an_input_error(wandb, tmp_path):
    wandb.is_logged_in = False
    with pytest.raises(InputError, match="No API key configured. Log in .*offline"):
        WeightsAndBiases(tmp_path, {})


@pytest.mark.parametrize("found", [None, types.ModuleType("wandb")])
def test_wandb_that_is_not_installed_is_an_input_error(tmp_path, monkeypatch, found):
    """Nor is a folder of that name, which imports as an empty package."""
    monkeypatch.setitem(sys.modules, "wandb", found)
    with pytest.raises(InputError, match=r"pip install 'jaxrec\[wandb\]'"):
        WeightsAndBiases(tmp_path, {})


@pytest.mark.parametrize(
    ("option", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")]
)
def test_an_option_without_its_package_is_an_input_error(monkeypatch, option, package):
    """Said before the data is read."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == package else find(name)
    )
    settings = {
        "method": "x",
        "data": {"path": "nowhere.csv"},
        "model": {"name": "sasrec"},
        "loss": {"name": "ce"},
        "optim": {"name": "adam"},
        "train": {option: True},
    }
    with pytest.raises(InputError, match=rf"pip install 'jaxrec\[{option}\]'"):
        experiment.build(settings)


@pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="jaxrec[wandb] is not installed"
)
def test_a_real_run_offline(tmp_path):
    code = (
        "from jaxrec.writers import WeightsAndBiases as W\n"
        f"for epoch in (1, 2): w = W({str(tmp_path)!r}, {{'method': 'x'}}); "
        "w.write(epoch, {'epoch': epoch, 'loss': 1.0, 'is_best': True}); w.close()"
    )
    environment = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    environment |= {"PYTHONPATH": ":".join(sys.path), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    written = {path.name for path in (tmp_path / "wandb").glob("offline-run-*/*.wandb")}
    assert written == {f"run-{(tmp_path / 'wandb' / 'run-id').read_text()}.wandb"}
