"""The paper's own training under our patience, with a stand-in for its model."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import paper_training
from jaxrec.command import run_command
from jaxrec.data import Holdout

NONE = Holdout(*np.zeros((3, 0), int))


class Stub(paper_training.Paper):
    """Epoch n leaves the weights n; nothing is trained or written."""

    def __init__(self):
        self.values, self.best, self.epochs, self.saved = [], {}, 0, []

    def train_epoch(self):
        self.epochs += 1

    def weights(self):
        return {"epoch": self.epochs}

    def save(self, path):
        self.saved.append(len(self.values))

    def restore(self, path):
        pass


def judge_by(curve):
    def judge(weights, holdout):
        return {"hr@10": 0.5, "ndcg@10": curve[weights["epoch"] - 1]}

    return judge


@pytest.mark.parametrize(
    ("curve", "patience", "most", "best", "epochs"),
    [
        ([1, 3, 2, 2, 9], 2, 5, 2, 4),  # the fifth is never seen
        ([1, 3, 2, 4, 2], 2, 5, 4, 5),
        ([2, 2, 2], 2, 9, 1, 3),  # an equal one is no better one
        ([1, 2, 3], 9, 3, 3, 3),  # the limit
    ],
)
def test_training_ends_as_ours_does(curve, patience, most, best, epochs):
    paper = Stub()

    def go_on():
        paper_training.fit(
            paper,
            judge_by(curve),
            NONE,
            patience=patience,
            max_epochs=most,
            path=Path("unused"),
        )

    go_on()
    assert (paper.best_epoch, len(paper.values)) == (best, epochs)
    assert paper.best == {"epoch": best}
    assert paper.saved == [*range(1, epochs + 1)]
    go_on()  # the same command again has nothing left to do
    assert len(paper.values) == epochs


def test_a_run_that_is_gone_on_with_draws_what_it_would_have_drawn(tmp_path):
    torch = pytest.importorskip("torch")

    def training():
        paper = object.__new__(paper_training.Paper)
        paper.torch, paper.values, paper.best = torch, [], {}
        paper.module = torch.nn.Module()
        paper.module.model = torch.nn.Linear(2, 1)
        paper.optimiser = torch.optim.Adam(paper.module.parameters())
        return paper

    def drawn():
        return torch.rand(3).tolist(), np.random.rand(3).tolist()

    paper, again = training(), training()
    paper.note({"hr@10": 0.5, "ndcg@10": 0.25})
    paper.save(tmp_path / "run.pt")
    expected = drawn()
    again.restore(tmp_path / "run.pt")
    assert drawn() == expected
    assert (again.values, again.best_epoch) == (paper.values, 1)
    for name, tensor in paper.weights().items():
        assert torch.equal(again.weights()[name], tensor)
        assert torch.equal(again.best[name], tensor)


def test_a_folder_that_is_no_checkout_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paper_training, "PACKAGES", ())
    status = run_command(paper_training.main, ["--paper-repo", str(tmp_path)])
    assert status != 0
    error = capsys.readouterr().err
    assert "--paper-repo must be a checkout" in error and error.count("\n") == 1
