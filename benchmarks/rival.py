"""Is a training step faster than that of a plain PyTorch SASRec on the same device?

    python -m benchmarks.rival

The rival is what one writes with torch.nn: padded windows, nn.MultiheadAttention, the
scores of every position and item, cross_entropy, Adam. Its batches lie on the device
before the clock starts, float32 matmuls may use TF32, as ours do on recent GPUs, and on
a GPU it is timed as it is, compiled by torch.compile, and compiled into CUDA graphs;
Adam is the fused one. Ours is a dispatch of the training loop, which cuts and packs its
windows as it goes. Both take turns on the same users.
"""

import argparse
import importlib.util
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure, shapes
from benchmarks.measure import Variant
from benchmarks.shapes import SHAPES
from benchmarks.trainer import Trainer
from jaxrec import batches, data
from jaxrec.command import run_command
from jaxrec.errors import InputError

QUESTION = "is a training step faster than that of a plain PyTorch SASRec"
# On one H200, milliseconds of a step.
STEP_BARS_MS = {"ml-1m": 0.30, "beauty": 0.30}
NOTES = (
    "memory is the program's arguments, results and temporaries for jaxrec, and the "
    "most that the allocator had handed out for PyTorch, which does not tell on a CPU.",
    "Neither PAD nor a target's own padding counts in either loss; PAD is a class of "
    "the rival's softmax and not of ours.",
)


def make_model(num_items: int, width: int, max_length: int, num_layers: int = 2) -> Any:
    """The rival: SASRec of torch.nn, its dropout 0.1, one head."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.query_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attention = nn.MultiheadAttention(width, 1, 0.1, batch_first=True)
            self.feed_forward = nn.Sequential(
                nn.Linear(width, width),
                nn.Dropout(0.1),
                nn.ReLU(),
                nn.Linear(width, width),
                nn.Dropout(0.1),
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
            self.positions = nn.Embedding(max_length, width)
            self.dropout, self.norm = nn.Dropout(0.1), nn.LayerNorm(width)
            self.blocks = nn.ModuleList(Block() for _ in range(num_layers))
            for table in (self.items, self.positions):
                nn.init.normal_(table.weight, std=0.02)
            mask = nn.Transformer.generate_square_subsequent_mask(max_length)
            self.register_buffer("mask", mask)

        def forward(self, tokens):
            x = self.items(tokens) * width**0.5 + self.positions.weight
            x = self.dropout(x)
            for block in self.blocks:
                x = block(x, self.mask)
            return self.norm(x) @ self.items.weight.T

    torch.manual_seed(0)
    return SASRec()


class Rival:
    """Steps of the rival on given batches, again and again.

    Args:
      tokens_SBL, target_SBL: int [steps, B, L].
      compile_mode: of torch.compile; None leaves it out.
    """

    def __init__(
        self,
        tokens_SBL: np.ndarray,
        target_SBL: np.ndarray,
        *,
        num_items: int,
        width: int,
        device: str,
        compile_mode: str | None = None,
    ):
        import torch  # pyright: ignore[reportMissingImports]

        self.torch, self.device = torch, device
        torch.set_float32_matmul_precision("high")
        model = make_model(num_items, width, tokens_SBL.shape[2]).to(device)
        is_fused = device == "cuda"
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=is_fused)
        self.tokens = torch.tensor(tokens_SBL, device=device).long()
        self.target = torch.tensor(target_SBL, device=device).long()

        def loss_of(tokens, target):
            score = model(tokens).flatten(0, 1)
            flat = target.flatten()
            return torch.nn.functional.cross_entropy(score, flat, ignore_index=0)

        forward = loss_of
        if compile_mode is not None:
            forward = torch.compile(loss_of, mode=compile_mode)

        def step(tokens, target):
            optimiser.zero_grad(set_to_none=True)
            loss = forward(tokens, target)
            loss.backward()
            optimiser.step()
            return loss.detach().clone()

        self.step = step

    def __call__(self) -> float:
        """All the steps; the loss of the last one, waited for."""
        loss = None
        for tokens, target in zip(self.tokens, self.target, strict=True):
            loss = self.step(tokens, target)
        assert loss is not None, "no batch"
        return float(loss)

    def memory_mb(self) -> float | None:
        """The most that was allocated at once in further steps."""
        if self.device != "cuda":
            return None
        self.torch.cuda.reset_peak_memory_stats()
        self()
        return measure.shown(self.torch.cuda.max_memory_allocated() / measure.MIB)


def padded_batches(trainer: Trainer) -> tuple[np.ndarray, np.ndarray]:
    """The trainer's own windows as tokens and targets, int32 [steps, B, L]."""
    built = trainer.run.experiment
    windows = [
        batches.windows(
            built.log,
            built.log.offset_U1[user_B],
            trainer.run.train_end_U[user_B],
            length=built.recipe.max_length + 1,
        )
        for user_B in trainer.part[0]
    ]
    found = [batches.next_item(window_BX) for window_BX in windows]
    return (
        np.stack([np.asarray(one.tokens_BL) for one in found]),
        np.stack([np.asarray(one.target_BL) for one in found]),
    )


def settings_of(device: str) -> Iterator[tuple[str, str | None]]:
    """Names of ways to run the rival, and their mode of torch.compile."""
    yield "as written", None
    if device == "cuda":
        yield "torch.compile", "default"
        yield "torch.compile, CUDA graphs", "reduce-overhead"


def compare(
    dataset: str, *, num_steps: int, batch_size: int, seconds: float
) -> list[dict[str, Any]]:
    """Ours and every setting of the rival's, on one data set."""
    import torch  # pyright: ignore[reportMissingImports]

    shape = SHAPES[dataset]
    device = "cpu" if measure.on_cpu() else "cuda"
    users = num_steps * batch_size
    split = data.leave_one_out(shapes.made_log(shape, num_users=users))
    changes = {"train": {"batch_size": batch_size}}
    trainer = Trainer(
        split, shapes.settings(shape, "sasrec_ce", **changes), num_steps=num_steps
    )
    tokens_SBL, target_SBL = padded_batches(trainer)
    about = {"dataset": dataset, "method": "sasrec_ce", "batch": batch_size}
    ours = {**about, "system": "jaxrec", "setting": "as installed"}
    ours["memory_mb"] = measure.program_mb(trainer.program)
    variants = [Variant(ours, trainer, trainer.num_steps)]
    for name, mode in settings_of(device):
        rival = Rival(
            tokens_SBL,
            target_SBL,
            num_items=shape.num_items,
            width=shape.width,
            device=device,
            compile_mode=mode,
        )
        row = {**about, "system": f"plain PyTorch {torch.__version__}", "setting": name}
        rival()  # compiles
        row["memory_mb"] = rival.memory_mb()
        variants.append(Variant(row, rival, trainer.num_steps))
    rows = measure.in_turn(variants, seconds=seconds)
    for row in rows[1:]:
        row["time_ratio"] = measure.shown(row["ms"] / rows[0]["ms"])
    if device == "cuda":
        bar = STEP_BARS_MS[dataset]
        rows[0] |= {"bar_ms": bar, "bar_met": rows[0]["ms"] <= bar}
    return rows


def run(
    *,
    datasets: Sequence[str] = tuple(SHAPES),
    num_steps: int | None = None,
    batch_size: int = 128,
    seconds: float = 60,
    output: Path = measure.RESULTS,
) -> Path:
    """Measures and writes the record.

    Raises:
      InputError: torch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise InputError("the rival needs PyTorch: pip install 'jaxrec[torch]'.")
    num_steps = num_steps or (1 if measure.on_cpu() else 48)
    found = (
        compare(name, num_steps=num_steps, batch_size=batch_size, seconds=seconds)
        for name in datasets
    )
    rows = list(itertools.chain.from_iterable(found))
    measure.tell(rows)
    return measure.save("rival", QUESTION, rows, notes=NOTES, output=output)


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser("python -m benchmarks.rival")
    parser.add_argument("--output", type=Path, default=measure.RESULTS)
    flags = parser.parse_args(argv)
    run(output=flags.output)


if __name__ == "__main__":
    sys.exit(run_command(main))
