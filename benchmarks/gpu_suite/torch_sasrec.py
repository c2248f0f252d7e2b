"""A plain PyTorch SASRec that trains on given batches when it is asked to.

Needs PyTorch and NumPy, nothing of this library:

    python -m benchmarks.gpu_suite.torch_sasrec batches.npz --num-items 3416
        --width 64 --device cuda --times 3

Prints a line of JSON about its settings, and then reads the number of a setting from
each line of the input and answers with a line when its steps are done. With
--paper-repo the model is the one of the paper's code.
"""

import argparse
import importlib.util
import json
import os
import sys
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MIB = 2**20
NUM_LAYERS, DROPOUT, LEARNING_RATE = 2, 0.1, 1e-3


class Setting(NamedTuple):
    """A way to train: scores of targets alone, a mode of torch.compile, autocast.

    is_mixed: multiplies in bfloat16, its parameters float32.
    """

    name: str
    are_targets_alone: bool = False
    mode: str | None = None
    is_mixed: bool = False

    def mixed(self) -> "Setting":
        return self._replace(name=f"{self.name}, bfloat16", is_mixed=True)


_TARGETS = Setting("scores of targets alone", True)
_COMPILED = Setting("scores of targets alone, torch.compile", True, "default")
_GRAPHS = Setting("scores of targets alone, CUDA graphs", True, "reduce-overhead")
# Those without a mode run anywhere.
PLAIN = [
    Setting("as written"),
    *(_TARGETS, _TARGETS.mixed()),
    *(_COMPILED, _COMPILED.mixed(), _GRAPHS, _GRAPHS.mixed()),
]
_PAPER_COMPILED = Setting("torch.compile", mode="default")
PAPER = [
    *(PLAIN[0], PLAIN[0].mixed()),
    *(_PAPER_COMPILED, _PAPER_COMPILED.mixed()),
]


def make_plain(num_items: int, width: int, length: int) -> Any:
    """SASRec of torch.nn: hidden states [B, L, D] from tokens, one head."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.query_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attention = nn.MultiheadAttention(width, 1, DROPOUT, batch_first=True)
            self.feed_forward = nn.Sequential(
                nn.Linear(width, width),
                nn.Dropout(DROPOUT),
                nn.ReLU(),
                nn.Linear(width, width),
                nn.Dropout(DROPOUT),
            )

        def forward(self, x, mask):
            query = self.query_norm(x)
            mixed, _ = self.attention(
                query, x, x, attn_mask=mask, is_causal=True, need_weights=False
            )
            x = self.norm(query + mixed)
            return x + self.feed_forward(x)

    class SASRec(nn.Module):
        def __init__(self):
            super().__init__()
            self.items = nn.Embedding(num_items + 1, width, padding_idx=0)
            self.positions = nn.Embedding(length, width)
            self.dropout, self.norm = nn.Dropout(DROPOUT), nn.LayerNorm(width)
            self.blocks = nn.ModuleList(Block() for _ in range(NUM_LAYERS))
            for table in (self.items, self.positions):
                nn.init.normal_(table.weight, std=0.02)
            mask = nn.Transformer.generate_square_subsequent_mask(length)
            self.register_buffer("mask", mask)

        def forward(self, tokens):
            x = self.items(tokens) * width**0.5 + self.positions.weight
            x = self.dropout(x)
            for block in self.blocks:
                x = block(x, self.mask)
            return self.norm(x)

    torch.manual_seed(0)
    return SASRec()


def make_paper(repo: Path, num_items: int, width: int, length: int) -> Any:
    """The paper's SASRec: scores [B, L, V] from tokens and a mask."""
    import torch  # pyright: ignore[reportMissingImports]

    path = repo / "src" / "models.py"
    spec = importlib.util.spec_from_file_location("paper_models", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if importlib.util.find_spec("transformers") is None:
        # The file imports it first of all, though for BERT4Rec alone.
        sys.modules["transformers"] = unittest.mock.Mock()
    try:
        spec.loader.exec_module(module)
    finally:
        if isinstance(sys.modules.get("transformers"), unittest.mock.Mock):
            del sys.modules["transformers"]  # PyTorch looks for it, too
    torch.manual_seed(0)
    return module.SASRec(
        item_num=num_items,
        maxlen=length,
        hidden_units=width,
        num_blocks=NUM_LAYERS,
        num_heads=1,
        dropout_rate=DROPOUT,
    )


def targets_first(target_SBL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flat places of the positions with a target, and these; as many for every batch.

    Filled up with place 0 and no target, which is 0.
    """
    flat_SN = target_SBL.reshape(len(target_SBL), -1)
    most = int((flat_SN > 0).sum(axis=1).max())
    place_SM = np.argsort(flat_SN == 0, axis=1, kind="stable")[:, :most]
    target_SM = np.take_along_axis(flat_SN, place_SM, axis=1)
    return np.where(target_SM > 0, place_SM, 0), target_SM


def make_step(
    flags: argparse.Namespace, batches: dict[str, np.ndarray], setting: Setting
) -> Callable[[], float]:
    """Every batch so many times, a step each; returns the last one's loss, waited for.

    Args:
      batches: int [S, B, L] each.
      setting: of PLAIN or PAPER.
    """
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn import functional  # pyright: ignore[reportMissingImports]

    tokens_SBL, target_SBL = batches["tokens_SBL"], batches["target_SBL"]
    sizes = (flags.num_items, flags.width, tokens_SBL.shape[2])
    if flags.paper_repo:
        model = make_paper(flags.paper_repo, *sizes).to(flags.device)
    else:
        model = make_plain(*sizes).to(flags.device)
    model.train()
    place_SM, target_SM = targets_first(target_SBL)
    if not setting.are_targets_alone:
        target_SM = target_SBL.reshape(len(target_SBL), -1)
    on_device = [
        torch.tensor(x, device=flags.device).long()
        for x in (tokens_SBL, place_SM, target_SM)
    ]

    def loss_of(tokens, place, target):
        if flags.paper_repo:
            scores = model(tokens, (tokens > 0).float()).flatten(0, 1)
        else:
            hidden = model(tokens).flatten(0, 1)
            if setting.are_targets_alone:
                hidden = hidden.index_select(0, place)
            scores = hidden @ model.items.weight.T
        return functional.cross_entropy(scores, target, ignore_index=0)

    forward = loss_of
    if setting.mode is not None:
        forward = torch.compile(loss_of, mode=setting.mode)
    mixed = {"dtype": torch.bfloat16, "enabled": setting.is_mixed}
    is_fused = flags.device == "cuda"
    parameters = model.parameters()
    optimiser = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=is_fused)

    def call() -> float:
        last = torch.zeros(())
        for _ in range(flags.times):
            for batch in zip(*on_device, strict=True):
                optimiser.zero_grad(set_to_none=True)
                with torch.autocast(flags.device, **mixed):
                    loss = forward(*batch)
                loss.backward()
                optimiser.step()
                last = loss.detach().clone()  # a CUDA graph writes over its own
        return float(last)

    return call


def prepare(
    flags: argparse.Namespace, batches: dict[str, np.ndarray], setting: Setting
) -> tuple[Callable[[], float], dict[str, Any]]:
    """A setting that has run once, and what its row says."""
    import torch  # pyright: ignore[reportMissingImports]

    row: dict[str, Any] = {"setting": setting.name}
    if flags.device != "cuda":
        call = make_step(flags, batches, setting)
        call()
        return call, row
    held = torch.cuda.memory_allocated()  # of other settings
    call = make_step(flags, batches, setting)
    call()
    torch.cuda.reset_peak_memory_stats()
    call()
    peak = torch.cuda.max_memory_allocated() - held
    row["memory_mb"] = float(f"{peak / MIB:.4g}")
    return call, row


def serve(
    flags: argparse.Namespace, answer: Callable[[dict[str, Any]], None]
) -> dict[str, Any] | None:
    """Answers until there are no more questions; or returns why it cannot begin."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        return {"not_run": f"PyTorch: {error}"}
    if flags.device == "cuda" and not torch.cuda.is_available():
        return {"not_run": f"PyTorch {torch.__version__} finds no CUDA device"}
    torch.set_float32_matmul_precision("high")  # TF32
    if flags.device == "cpu":
        torch.set_num_threads(1)  # a dry run, maybe beside other work
    batches = dict(np.load(flags.batches))
    calls: list[Callable[[], float] | None] = []
    rows = []
    for setting in PAPER if flags.paper_repo else PLAIN:
        if flags.device != "cuda" and setting.mode is not None:
            continue
        try:
            call, row = prepare(flags, batches, setting)
        except Exception as error:
            line = f"{type(error).__name__}: {error}".partition("\n")[0]
            call, row = None, {"setting": setting.name, "not_run": line[:300]}
        calls.append(call)
        rows.append(row)
    name = "the paper's model" if flags.paper_repo else "plain SASRec"
    answer({"system": f"{name}, PyTorch {torch.__version__}", "settings": rows})
    for line in sys.stdin:
        call = calls[int(line)]
        assert call is not None, "a setting that cannot run"
        answer({"loss": call()})
    return None


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("batches", type=Path)
    parser.add_argument("--num-items", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--times", type=int, required=True)
    parser.add_argument("--paper-repo", type=Path)
    flags = parser.parse_args()
    # What a library prints must not come between the answers.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)

        def answer(found: dict[str, Any]) -> None:
            print(json.dumps(found), file=answers, flush=True)

        try:
            missing = serve(flags, answer)
        except Exception as error:
            answer({"failed": f"{type(error).__name__}: {error}"})
            raise
        if missing is not None:
            answer({"system": "PyTorch", "settings": [missing]})


if __name__ == "__main__":
    main()
