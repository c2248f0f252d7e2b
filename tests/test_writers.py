"""The numbers of a run on a console, in JSON lines and as TensorBoard events."""

import json
import sys

import pytest

from jaxrec.errors import InputError
from jaxrec.writers import Console, JsonLines, TensorBoard

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
    assert lines[0].endswith("at most 0 s left")


def test_console_on_a_terminal_shows_the_present_epoch(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    console = Console("ndcg@10", 10, 2, print)
    console.tick(0.5, 1000.0)
    assert capsys.readouterr().out.endswith("epoch   3   50%  1,000 tok/s")
    console.write(144, VALUES)
    erase, line = capsys.readouterr().out.split("\x1b[K")
    assert erase == "\r" and line.startswith("epoch   3/10")
    console.close()


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
