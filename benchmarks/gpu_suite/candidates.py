"""Which of several ways to compute the same is the fastest on this device?

What is shipped was chosen by times on a CPU. Here it takes turns with what a GPU may
like better: other tiles of the softmax, other precisions of its matmuls and of those of
the ranks, scores kept in bfloat16, and the attention of jax.nn, by XLA and by cuDNN.
What a device cannot do is told, and the others go on.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks import measure
from benchmarks.gpu_suite import million
from benchmarks.gpu_suite.part import Flags, Row, Task, told
from benchmarks.measure import Variant
from jaxrec import attention, softmax
from jaxrec.ranking import item_mask

Array = jax.Array

NOTES = (
    "time_ratio: times as long as what is shipped takes. not_run: why not.",
    "error: norm(difference) / norm, of the gradient of the table, from that of the "
    "shipped program at the highest precision; of ranks, the share that differs.",
)
PRECISIONS = (
    *("default", "highest", "BF16_BF16_F32", "BF16_BF16_F32_X3", "BF16_BF16_F32_X6"),
    *("TF32_TF32_F32", "TF32_TF32_F32_X3"),
)
SHIPPED = "shipped"
MOST_SCORES, FEWEST_SCORES = 2**28, 2**20  # of a tile


def in_turn(
    make: Mapping[str, Callable[[], Variant]], about: Row, *, seconds: float = 45
) -> list[Row]:
    """Times every candidate that this device can run.

    Args:
      make: by the candidate's name; the first is what is shipped, and has to run.
      about: columns of every row.
    """
    variants, missing = [], []
    for name, maker in make.items():
        try:
            variant = maker()
            jax.block_until_ready(variant.call())
        except Exception as error:
            if not variants:
                raise
            missing.append({**about, "candidate": name, "not_run": told(error)})
            continue
        row = {**about, "candidate": name, **variant.row}
        variants.append(variant._replace(row=row))
    return [*judged(measure.in_turn(variants, seconds=seconds)), *missing]


def judged(rows: list[Row]) -> list[Row]:
    """Adds how a row compares with the first, and which is the fastest.

    >>> found = judged([{"ms": 4.0}, {"ms": 2.0}])
    >>> [(row["time_ratio"], row["is_fastest"]) for row in found]
    [(1.0, False), (0.5, True)]
    """
    fastest = min(row["ms"] for row in rows)
    return [
        {
            **row,
            "time_ratio": measure.shown(row["ms"] / rows[0]["ms"]),
            "is_fastest": row["ms"] == fastest,
        }
        for row in rows
    ]


def times() -> int:
    """Calls of one timing: those of a GPU are short."""
    return 1 if measure.on_cpu() else 3


# The softmax over the catalogue.


class Case(NamedTuple):
    """Sizes of a loss.

    rows: of the table; slots: places in the packed rows of a batch; positions: those
    with a target; tiles: to try, if only some.
    """

    name: str
    rows: int
    slots: int
    positions: int
    width: int
    tiles: tuple[tuple[int, int], ...] = ()


CASES = (
    Case("ml-1m", 3_417, 14_000, 13_768, 64),
    Case("beauty", 54_543, 800, 720, 64),
    Case("a million items", 1_000_001, 25_600, 25_600, 128),
)
SMALL_CASES = (Case("tiny", 300, 56, 40, 8, ((16, 304), (16, 160))),)


def cases(flags: Flags) -> tuple[Case, ...]:
    return SMALL_CASES if flags.is_tiny else CASES


def softmax_arguments(case: Case) -> tuple:
    """States, table, positions, and what competes: of `softmax.loss_sum`.

    As in a training step, where the program knows the room alone, not how many of its
    positions have a target.
    """

    @jax.jit
    def make(key):
        keys = jax.random.split(key, 3)
        return (
            jax.random.normal(keys[0], (case.slots, case.width)),
            0.02 * jax.random.normal(keys[1], (case.rows, case.width)),
            softmax.Positions(
                jax.random.randint(keys[2], (case.slots,), 1, case.rows),
                (jnp.arange(case.slots) < case.positions).astype(jnp.float32),
                jnp.zeros((case.slots,), jnp.int32),
                jnp.int32(case.positions),
            ),
        )

    return *make(jax.random.key(0)), item_mask(case.rows, case.rows - 1), None


def softmax_program(
    arguments: tuple, context: AbstractContextManager[Any], **dtypes: str
) -> jax.stages.Compiled:
    """The shipped loss and both gradients, traced under some setting.

    Args:
      dtypes: `dtype` and `score_dtype` of `softmax.loss_sum`.
    """
    with context:
        # A function of its own, or an earlier setting's trace would be found again.
        return measure.compiled(
            lambda *arguments: jax.value_and_grad(softmax.loss_sum, (0, 1))(
                *arguments, is_dense=True, **dtypes
            ),
            *arguments,
        )


class Tiling(NamedTuple):
    """Positions and rows of a tile, and whether a chunk's exponentials are kept."""

    positions: int
    rows: int
    is_kept: bool

    def setting(self) -> AbstractContextManager[Any]:
        """In which `softmax` is traced with it."""
        most_kept = 10**6 if self.is_kept else 0
        sizes = softmax._sizes()._replace(most_kept=most_kept)
        return mock.patch.multiple(
            softmax, tile_shape=lambda *_: self[:2], _sizes=lambda: sizes
        )


def shipped_tiling(case: Case) -> Tiling:
    positions, rows = softmax.tile_shape(case.rows, case.slots)
    num_tiles = -(-case.rows // rows)
    return Tiling(positions, rows, num_tiles <= softmax._sizes().most_kept)


def tilings(case: Case) -> Iterator[Tiling]:
    """To try: neither tiny tiles nor huge ones, nor many that are kept at once."""
    tiles = list(case.tiles)
    for parts in (64, 16, 4, 1):
        positions = -(-case.positions // parts // 16) * 16
        for rows in (2_048, 8_192, 32_768, 131_072, case.rows):
            tile = positions, -(-min(rows, case.rows) // 16) * 16
            if FEWEST_SCORES <= tile[0] * tile[1] <= MOST_SCORES:
                tiles.append(tile)
    for positions, rows in tiles:
        num_tiles = -(-case.rows // rows)
        yield Tiling(positions, rows, is_kept=False)
        if num_tiles <= 16 and positions * rows * num_tiles <= MOST_SCORES:
            yield Tiling(positions, rows, is_kept=True)


def tile_rows(case: Case) -> list[Row]:
    """The shipped tiling and others."""
    arguments = softmax_arguments(case)
    shipped = shipped_tiling(case)

    def maker(tiling: Tiling) -> Variant:
        program = softmax_program(arguments, tiling.setting())
        row: Row = {
            "tile_positions": tiling.positions,
            "tile_rows": tiling.rows,
            "is_kept": tiling.is_kept,
            "temp_mb": measure.temp_mb(program),
        }
        return Variant(row, measure.repeated(program, arguments, times()), times())

    make = {SHIPPED: partial(maker, shipped)}
    for tiling in tilings(case):
        if tiling != shipped:
            way = "kept" if tiling.is_kept else "computed twice"
            name = f"{tiling.positions} x {tiling.rows}, {way}"
            make[name] = partial(maker, tiling)
    return in_turn(make, {"loss": case.name})


def tiles_tasks(flags: Flags) -> Iterator[Task]:
    for case in cases(flags):
        yield Task(case.name, partial(tile_rows, case))


def by_positions(
    hidden_ND: Array,
    table_VD: Array,
    positions: softmax.Positions,
    allowed_V: Array,
    excluded: None,
    *,
    size: int,
    num_positions: int,
) -> tuple[Array, tuple[Array, Array]]:
    """`softmax.loss_sum` and its gradients, scores [size, V] kept in bfloat16.

    Chunks of positions against the whole table; the log of the normaliser, and all
    that is summed, in float32. The first `num_positions`, a multiple of `size`, have
    targets, which this program is told.
    """
    del excluded  # nothing is
    num_more = len(hidden_ND) - num_positions
    small_VD = table_VD.astype(jnp.bfloat16)

    def step(carry, chunk):
        total, table_grad_VD = carry
        hidden_nD, target_n, weight_n = chunk
        small_nD = hidden_nD.astype(jnp.bfloat16)
        score_nV = jnp.dot(small_nD, small_VD.T)
        score_nV = jnp.where(allowed_V[None], score_nV, -jnp.inf)
        wide_nV = score_nV.astype(jnp.float32)
        log_total_n1 = jax.nn.logsumexp(wide_nV, axis=1, keepdims=True)
        own_n1 = jnp.take_along_axis(wide_nV, target_n[:, None], axis=1)
        total += (weight_n[:, None] * (log_total_n1 - own_n1)).sum()
        is_own_nV = jnp.arange(len(table_VD))[None] == target_n[:, None]
        grad_nV = weight_n[:, None] * (jnp.exp(wide_nV - log_total_n1) - is_own_nV)
        grad_nV = grad_nV.astype(jnp.bfloat16)
        wide = {"preferred_element_type": jnp.float32}
        table_grad_VD += jnp.dot(grad_nV.T, small_nD, **wide)
        return (total, table_grad_VD), jnp.dot(grad_nV, small_VD, **wide)

    chunked = [
        x[:num_positions].reshape(-1, size, *x.shape[1:])
        for x in (hidden_ND, positions.target_N, positions.weight_N)
    ]
    start = jnp.zeros(()), jnp.zeros_like(table_VD)
    (total, table_grad_VD), hidden_grad = jax.lax.scan(step, start, tuple(chunked))
    hidden_grad_ND = hidden_grad.reshape(num_positions, -1)
    return total, (jnp.pad(hidden_grad_ND, ((0, num_more), (0, 0))), table_grad_VD)


def score_rows(case: Case) -> list[Row]:
    """The shipped loss at other precisions, and with scores kept in bfloat16.

    dtype and score_dtype are options of the loss: what the matmuls of its gradients and
    of its scores multiply.
    """
    arguments = softmax_arguments(case)
    highest = jax.default_matmul_precision("highest")
    _, (_, exact_VD) = softmax_program(arguments, highest)(*arguments)

    def variant(program: jax.stages.Compiled) -> Variant:
        _, (_, table_grad_VD) = program(*arguments)
        difference = jnp.linalg.norm(table_grad_VD - exact_VD)
        row = {"temp_mb": measure.temp_mb(program)}
        row["error"] = measure.shown(float(difference / jnp.linalg.norm(exact_VD)))
        return Variant(row, measure.repeated(program, arguments, times()), times())

    def at(precision: str | None, **dtypes: str) -> Variant:
        context = nullcontext()
        if precision is not None:
            context = jax.default_matmul_precision(precision)
        return variant(softmax_program(arguments, context, **dtypes))

    def kept(size: int) -> Variant:
        fn = partial(by_positions, size=size, num_positions=case.positions)
        return variant(measure.compiled(fn, *arguments))

    make = {SHIPPED: partial(at, None)}
    make |= {f"at {name}": partial(at, name) for name in PRECISIONS[1:]}
    small = {"dtype": "bfloat16", "score_dtype": "bfloat16"}
    make["dtype=bfloat16"] = partial(at, None, dtype="bfloat16")
    make["dtype=bfloat16, score_dtype=bfloat16"] = partial(at, None, **small)
    for size in chunk_sizes(case):
        make[f"bfloat16 scores, {size} positions"] = partial(kept, size)
    return in_turn(make, {"loss": case.name})


def chunk_sizes(case: Case) -> list[int]:
    """The largest few of equal chunks of positions whose scores are not too many.

    >>> chunk_sizes(CASES[0]), chunk_sizes(CASES[2])
    ([13768, 6884, 3442], [200, 100, 50])
    """
    sizes = [case.positions >> n for n in range(12) if case.positions % (1 << n) == 0]
    return [size for size in sizes if size * case.rows <= MOST_SCORES][:3]


RANKS = million.FULL._replace(users=8_000)


def precision_of_ranks_rows(scale: million.Scale) -> list[Row]:
    """Ranks with their scores at other precisions than the highest."""
    dot = jnp.dot
    exact: list[Array] = []

    def at(precision: str | None) -> Variant:
        def instead(*arrays, **options):
            # Ranks ask for the highest by name, which only another dot can refuse.
            if precision is not None:
                options["precision"] = jax.lax.DotAlgorithmPreset[precision]
            return dot(*arrays, **options)

        with mock.patch.object(jnp, "dot", instead):
            program, arguments = million.ranks_program(scale)
        found, _ = program(*arguments)
        exact.append(found)
        row = {"temp_mb": measure.temp_mb(program)}
        row["error"] = measure.shown(float((found != exact[0]).mean()))
        return Variant(row, measure.repeated(program, arguments, 1))

    make = {SHIPPED: partial(at, None)}
    make |= {f"at {name}": partial(at, name) for name in PRECISIONS[2:]}
    return in_turn(make, {"ranks": f"{scale.users:,} users"})


def scores_tasks(flags: Flags) -> Iterator[Task]:
    for case in cases(flags):
        yield Task(case.name, partial(score_rows, case))
    scale = million.SMALL if flags.is_tiny else RANKS
    yield Task("ranks", partial(precision_of_ranks_rows, scale))


# Attention.


class Heads(NamedTuple):
    """Sizes of attention: packed rows, windows if they are padded, T, H and K."""

    name: str
    rows: int
    windows: int
    length: int
    num_heads: int
    width: int
    is_causal: bool


HEADS = (
    Heads("SASRec on ml-1m", 70, 128, 200, 1, 64, True),
    Heads("BERT4Rec on ml-1m", 70, 128, 200, 2, 32, False),
)
SMALL_HEADS = (Heads("tiny", 2, 3, 8, 1, 8, True),)


def attention_tasks(flags: Flags) -> Iterator[Task]:
    for heads in SMALL_HEADS if flags.is_tiny else HEADS:
        yield Task(heads.name, partial(attention_rows, heads))


def attention_rows(heads: Heads) -> list[Row]:
    """Forward and backward, without dropout (jax.nn has none) but where it is said."""
    length = heads.length
    # Three windows to a packed row; a padded row has one, of half the length.
    segment_RT = jnp.tile((jnp.arange(length) * 3 // length + 1)[None], (heads.rows, 1))
    is_same_R1TM = (segment_RT[:, :, None] == segment_RT[:, None, :])[:, None]
    if heads.is_causal:
        is_same_R1TM &= jnp.tri(length, dtype=bool)[None, None]
    lengths_B = jnp.full((heads.windows,), length // 2, jnp.int32)
    options: dict[str, Any] = {"is_causal": heads.is_causal}
    theirs: Any = jax.nn.dot_product_attention

    def shipped(query, key, value, *, rate: float = 0.0):
        dropout_key = jax.random.key(1) if rate else None
        return attention.attend(
            *(query, key, value, segment_RT),
            **options,
            rate=rate,
            dropout_key=dropout_key,
        )

    def blocks(query, key, value):
        # As on a CPU: fewer scores that are masked, more operations.
        with mock.patch.object(attention, "_GPU_QUERIES", attention._QUERIES):
            return shipped(query, key, value)

    def packed(query, key, value, *, implementation: str):
        mask = {"mask": is_same_R1TM, "implementation": implementation}
        return theirs(query, key, value, **mask)

    def padded(query, key, value, *, implementation: str):
        # A causal model needs no mask for padding on the right.
        seen: dict[str, Any] = {}
        if not heads.is_causal:
            seen["key_value_seq_lengths"] = lengths_B
        seen |= {**options, "implementation": implementation}
        return theirs(query, key, value, **seen)

    small, wide = jnp.bfloat16, jnp.float32
    ways = [
        (SHIPPED, shipped, heads.rows, wide),
        ("shipped, dropout 0.1", partial(shipped, rate=0.1), heads.rows, wide),
        ("shipped, bfloat16", shipped, heads.rows, small),
    ]
    if heads.is_causal:
        ways.append(("blocks of 64 queries", blocks, heads.rows, wide))
    for title, implementation, dtype in (
        ("XLA", "xla", wide),
        ("XLA, bfloat16", "xla", small),
        ("cuDNN, bfloat16", "cudnn", small),  # has no float32
    ):
        for name, fn, rows in (
            (f"{title}, packed", packed, heads.rows),
            (f"{title}, padded", padded, heads.windows),
        ):
            ways.append((name, partial(fn, implementation=implementation), rows, dtype))
    make: dict[str, Callable[[], Variant]] = {}
    for name, fn, rows, dtype in ways:
        shape = (rows, length, heads.num_heads, heads.width)
        make[name] = partial(attention_variant, fn, shape, dtype)
    return in_turn(make, {"attention": heads.name})


def attention_variant(fn: Callable, shape: tuple[int, ...], dtype: Any) -> Variant:
    """A call of fn and its gradients, on random arrays."""
    keys = jax.random.split(jax.random.key(0), 4)
    arrays = tuple(jax.random.normal(key, shape, dtype) for key in keys)

    def both(query, key, value, grad):
        out, vjp = jax.vjp(fn, query, key, value)
        return out, vjp(grad)

    program = measure.compiled(both, *arrays)
    row = {"rows": shape[0], "temp_mb": measure.temp_mb(program)}
    number = 1 if measure.on_cpu() else 20
    return Variant(row, measure.repeated(program, arrays, number), number)
