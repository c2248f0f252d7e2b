"""The parts of the GPU suite, in the order in which they are run."""

from collections.abc import Mapping
from functools import partial

from benchmarks import memory, negatives, profile_step, ranking_speed, sizes
from benchmarks.gpu_suite import (
    beside_torch,
    candidates,
    correctness,
    fused,
    million,
    questions,
    reproduction,
)
from benchmarks.gpu_suite.part import Part
from benchmarks.shapes import METHODS, SHAPES

FASTEST = "which of several ways to compute {} is the fastest"
PARTS: Mapping[str, Part] = {
    "correctness": Part(
        "are losses, gradients, attention, packing, ranks and training right",
        correctness.tasks,
        5,
        correctness.NOTES,
    ),
    "step": Part(
        "is a training step faster than that of a plain PyTorch SASRec",
        beside_torch.tasks,
        6,
        beside_torch.NOTES,
    ),
    "million-loss": Part(
        "what does the exact cross-entropy of a million items take",
        million.cross_entropy_tasks,
        1,
        million.NOTES,
    ),
    "million-ranks": Part(
        "what do the exact ranks among a million items take",
        million.ranks_tasks,
        1,
        million.NOTES,
    ),
    **{
        f"reproduce-{method}": Part(
            f"how long does {method} train on ML-1M, and how good does it get",
            partial(reproduction.tasks, method),
            6,
            reproduction.NOTES,
        )
        for method in METHODS
    },
    "tiles": Part(
        FASTEST.format("the softmax, by its tiles,"),
        candidates.tiles_tasks,
        6,
        candidates.NOTES,
    ),
    "scores": Part(
        FASTEST.format("scores, by their precision,"),
        candidates.scores_tasks,
        6,
        candidates.NOTES,
    ),
    "attention": Part(
        FASTEST.format("attention"),
        candidates.attention_tasks,
        2,
        candidates.NOTES,
    ),
    "fused": Part(
        "is a softmax whose scores stay in registers faster",
        fused.tasks,
        6,
        fused.NOTES,
    ),
    **{
        f"profile-{dataset}": Part(
            f"where does the time of a step of {dataset} go",
            partial(questions.profile_tasks, dataset),
            5,
            profile_step.NOTES,
        )
        for dataset in SHAPES
    },
    **{
        f"sizes-{axis}": Part(
            f"what does a training step cost against its {axis}",
            partial(questions.sizes_tasks, axis),
            4,
        )
        for axis in sizes.AXES
    },
    "ranking": Part(
        "how many users a second are ranked exactly",
        questions.ranking_tasks,
        4,
        ranking_speed.NOTES,
    ),
    "memory": Part(
        "how much memory does the softmax over a whole catalogue need",
        questions.memory_tasks,
        4,
        memory.NOTES,
    ),
    "negatives": Part(
        "what do negatives of each sequence's own cost, in memory and time",
        questions.negatives_tasks,
        4,
        negatives.NOTES,
    ),
}
