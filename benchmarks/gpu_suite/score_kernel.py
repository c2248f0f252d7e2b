"""Sums over exponentials of scores that never leave the registers of a GPU.

A kernel of our own, Pallas on Mosaic GPU, for Hopper (compute capability 9.0) alone. A
block of rows stays where it is, and the columns go past it in tiles: a tile's scores
are a matmul, their exponentials go into a sum and, rounded to bfloat16, into a second
matmul, and neither is written to memory.

As with attention (Dao et al., "FlashAttention", 2022), whose keys and values are here
one array; for the softmax of a large vocabulary: Wijmans et al., "Cut Your Losses in
Large-Vocabulary Language Models", ICLR 2025.

It is tried by the part "fused" of benchmarks.gpu and is no part of jaxrec: no device
has run it yet. tests/test_score_kernel.py runs it in Pallas' interpreter of such
kernels, and benchmarks/gpu_programs.py compiles it for a device that is not there.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as gpu

Array = jax.Array

# Rows of a warpgroup, of which two compute and a third fetches the tiles. 64 is the
# least that Hopper multiplies at once; of more, the scores of 128 columns and the sums
# would not fit into the registers.
ROWS, COMPUTING = 64, 2
BLOCK = ROWS * COMPUTING
# Factors are in shared memory in pieces of 128 bytes, as its matmuls want them.
PIECE = 64
OUT_PIECE = 32  # columns of the result that leave through shared memory at a time
LAYOUT = gpu.TilingTransform((8, PIECE)), gpu.SwizzleTransform(128)
AHEAD = 2  # tiles that are there or on their way
# Of a matmul's result, and of what is in shared memory.
MOST_WIDTH, MOST_FACTORS = 256, 384
# Of 65,536 a block: the warpgroup that fetches gives its own to those that compute.
REGISTERS, REGISTERS_OF_FETCHING = 232, 40
MULTIPROCESSORS = 132  # of an H100 or H200
MOST_SPLITS = 8
LOG2_E = math.log2(math.e)


class Cut(NamedTuple):
    """How the columns are gone through.

    tile: columns at a time. tiles: that a block of rows goes through. splits: in so
    many parts the columns are given to blocks of their own.
    """

    tile: int
    tiles: int
    splits: int

    @property
    def num_columns(self) -> int:
        return self.tile * self.tiles * self.splits


def cut(num_rows: int, num_columns: int, num_factors: int) -> Cut:
    """The fewest turns of all multiprocessors, each with a block at a time.

    >>> cut(25_600, 1_000_001, 128), cut(1_000_001, 25_600, 128).splits
    (Cut(tile=128, tiles=1117, splits=7), 1)
    """
    # A longer tile of many factors would not fit into shared memory.
    tile = 128 if num_factors <= 256 else 64
    num_blocks, num_tiles = -(-num_rows // BLOCK), -(-num_columns // tile)

    def turns(splits: int) -> int:
        waves = -(-num_blocks * splits // MULTIPROCESSORS)
        return waves * (-(-num_tiles // splits) + 4)  # about 4 to begin and to end

    splits = min(range(1, min(MOST_SPLITS, num_tiles) + 1), key=turns)
    return Cut(tile, -(-num_tiles // splits), splits)


def sums(
    left_NK: Array,
    right_VK: Array,
    row_N: Array,
    column_V: Array,
    *,
    width: int,
    interpret: Any = None,
) -> tuple[Array, Array]:
    """sum_v p_nv and sum_v p_nv right_vd, p_nv = exp(s_nv + row_n + column_v).

    s = left right^T. p is rounded to bfloat16, and both sums are of the rounded.

    Args:
      left_NK, right_VK: bfloat16. K is D; or 2 D, if what was rounded away follows as a
        second half: scores are then of three products, and nearly those of float32.
      row_N, column_V: float32, in nats; -inf where there is to be nothing.
      width: D; 64, 128, 192 or 256. With second halves 192 at the most.
      interpret: `mosaic_gpu.InterpretGPUParams`, to run without a GPU.

    Returns:
      [N] and [N, D], float32.
    """
    arguments = left_NK, right_VK, row_N, column_V
    out_SND, sum_SM = _call(arguments, width, interpret, is_summed=True)
    num_rows = len(left_NK)
    return sum_SM.sum(axis=0)[:num_rows], out_SND.sum(axis=0)[:num_rows]


def weighted_sums(
    left_NK: Array,
    right_VK: Array,
    row_N: Array,
    column_V: Array,
    *,
    width: int,
    interpret: Any = None,
) -> Array:
    """The second result of `sums` alone, for less work."""
    arguments = left_NK, right_VK, row_N, column_V
    (out_SND,) = _call(arguments, width, interpret, is_summed=False)
    return out_SND.sum(axis=0)[: len(left_NK)]


def _call(
    arguments: tuple[Array, ...], width: int, interpret: Any, *, is_summed: bool
) -> list[Array]:
    """Of each split, and a few rows more: [S, N, D], and [S, N] if it is asked for."""
    left_NK, right_VK, row_N, column_V = arguments
    (num_rows, num_factors), num_columns = left_NK.shape, len(right_VK)
    assert width % PIECE == 0 and width <= MOST_WIDTH, f"width {width}"
    assert num_factors in (width, 2 * width), (num_factors, width)
    assert num_factors <= MOST_FACTORS, f"{num_factors} do not fit in shared memory"
    how = cut(num_rows, num_columns, num_factors)
    # Of rows that are not there copies find 0 and leave nothing; but where one of a
    # piece's 8 is there, all have to be. A column that is not there is to count as 0.
    left_NK, right_VK = (
        jnp.pad(x, ((0, -len(x) % 8), (0, 0))) for x in (left_NK, right_VK)
    )
    row_N = jnp.pad(row_N, (0, -num_rows % BLOCK))
    more = how.num_columns - num_columns
    column_V = jnp.pad(column_V, (0, more), constant_values=-jnp.inf)
    sizes = _Sizes(len(left_NK), num_factors, width)
    kernel = _kernel(how, sizes, is_summed, interpret)
    return kernel(left_NK, right_VK, row_N, column_V)


class _Sizes(NamedTuple):
    """rows: a multiple of 8. factors: K. width: D."""

    rows: int
    factors: int
    width: int


class _Own(NamedTuple):
    """In shared memory, of the rows of each warpgroup that computes."""

    left: Any
    row: Any
    sum: Any  # or None
    out: Any
    term: Any  # the exponentials, in the interpreter; it multiplies no others


class _Ring(NamedTuple):
    """In shared memory, the tiles that are there or on their way."""

    right: Any
    column: Any


class _Barriers(NamedTuple):
    """own: a warpgroup's rows are there. full: a tile is. free: no one needs it."""

    own: Any
    full: Any
    free: Any


def _kernel(how: Cut, sizes: _Sizes, is_summed: bool, interpret: Any):
    """The kernel; its results are of each split, and its sums of whole blocks."""
    num_blocks = -(-sizes.rows // BLOCK)
    is_interpreted = interpret is not None

    def shared(shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
        transforms = LAYOUT if dtype == jnp.bfloat16 else ()
        return gpu.SMEM(shape, dtype, transforms=transforms)

    def body(left, right, row, column, out, *rest):
        (*sum_out, own, ring, barriers) = rest
        fetching = pl.when(lax.axis_index("warpgroup") == COMPUTING)
        computing = pl.when(lax.axis_index("warpgroup") < COMPUTING)
        fetching(lambda: _fetch(how, right, column, ring, barriers))
        computing(lambda: _compute(how, left, row, out, sum_out, own, ring, barriers))

    term_shape = COMPUTING, ROWS, how.tile
    own = _Own(
        left=shared((COMPUTING, ROWS, sizes.factors), jnp.bfloat16),
        row=shared((COMPUTING, ROWS)),
        sum=shared((COMPUTING, ROWS)) if is_summed else None,
        out=shared((COMPUTING, ROWS, OUT_PIECE)),
        term=shared(term_shape, jnp.bfloat16) if is_interpreted else None,
    )
    ring = _Ring(
        right=shared((AHEAD, how.tile, sizes.factors), jnp.bfloat16),
        column=shared((AHEAD, how.tile)),
    )
    barriers = _Barriers(
        own=gpu.Barrier(num_arrivals=2, num_barriers=COMPUTING),
        full=gpu.Barrier(num_arrivals=2, num_barriers=AHEAD),
        free=gpu.Barrier(num_arrivals=COMPUTING, num_barriers=AHEAD),
    )
    out_shape = how.splits, sizes.rows, sizes.width
    sum_shape = how.splits, num_blocks * BLOCK
    shapes = [out_shape, sum_shape] if is_summed else [out_shape]
    return gpu.kernel(
        body,
        out_type=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
        scratch_types=(own, ring, barriers),
        # The last one varies first: blocks that are at work together share a split,
        # whose tiles they find in the cache; and of it alone there may be over 65,535.
        grid=(how.splits, num_blocks),
        grid_names=("split", "block"),
        num_threads=COMPUTING + 1,
        thread_name="warpgroup",
        compiler_params=gpu.CompilerParams(approx_math=True),
        interpret=interpret if is_interpreted else False,
    )


def _slot(i: Array) -> Array:
    """Of the i-th tile in the ring."""
    return lax.rem(i, jnp.int32(AHEAD))


def _fetch(how: Cut, right: Any, column: Any, ring: _Ring, barriers: _Barriers) -> None:
    """Has the split's tiles copied into the ring, each as soon as there is room."""
    gpu.set_max_registers(REGISTERS_OF_FETCHING, action="decrease")

    def copy(i, slot):
        first = (lax.axis_index("split") * how.tiles + i) * how.tile
        full = barriers.full.at[slot]
        columns = pl.ds(first, how.tile)
        gpu.copy_gmem_to_smem(right.at[columns], ring.right.at[slot], full)
        gpu.copy_gmem_to_smem(column.at[columns], ring.column.at[slot], full)

    # As many turns more as tiles are ahead: until no one needs the last ones.
    @pl.loop(0, how.tiles + AHEAD)
    def _(i):
        slot = _slot(i)
        pl.when(i >= AHEAD)(lambda: gpu.barrier_wait(barriers.free.at[slot]))
        pl.when(i < how.tiles)(lambda: copy(i, slot))


def _compute(
    how: Cut,
    left: Any,
    row: Any,
    out: Any,
    sum_out: list[Any],
    own: _Own,
    ring: _Ring,
    barriers: _Barriers,
) -> None:
    """The sums of a warpgroup's rows over the split's tiles."""
    gpu.set_max_registers(REGISTERS, action="increase")
    warpgroup, split = lax.axis_index("warpgroup"), lax.axis_index("split")
    own = jax.tree.map(lambda ref: ref.at[warpgroup], own)
    rows = pl.ds(lax.axis_index("block") * BLOCK + warpgroup * ROWS, ROWS)
    here = barriers.own.at[warpgroup]
    gpu.copy_gmem_to_smem(left.at[rows], own.left, here)
    gpu.copy_gmem_to_smem(row.at[rows], own.row, here)
    gpu.barrier_wait(here)
    by_row, by_column = gpu.Layout.WGMMA.reduce(1), gpu.Layout.WGMMA.reduce(0)
    row_n = gpu.layout_cast(own.row[...], by_row)
    width = out.shape[-1]

    def all_tiles(total_ref):
        def tile(i, sum_n):
            slot = _slot(i)
            gpu.barrier_wait(barriers.full.at[slot])
            right = ring.right.at[slot]
            shape = ROWS, how.tile
            score_nC = pl.run_scoped(
                partial(_scores, own.left, right, width),
                gpu.WGMMAAccumulatorRef(shape, jnp.float32),
            )
            column_C = gpu.layout_cast(ring.column.at[slot][...], by_column)
            offset_nC = lax.broadcast_in_dim(row_n, shape, [0])
            offset_nC += lax.broadcast_in_dim(column_C, shape, [1])
            term_nC = jnp.exp2(LOG2_E * (score_nC + offset_nC)).astype(jnp.bfloat16)
            gpu.wgmma(total_ref, _factor(term_nC, own), _half(right, width, 0))
            if sum_out:
                sum_n += term_nC.astype(jnp.float32).sum(axis=1)
            gpu.wgmma_wait(0)
            gpu.barrier_arrive(barriers.free.at[slot])
            return sum_n

        sum_n = gpu.layout_cast(jnp.zeros((ROWS,), jnp.float32), by_row)
        sum_n = lax.fori_loop(0, how.tiles, tile, sum_n if sum_out else None)
        if sum_out:
            own.sum[...] = sum_n
            gpu.commit_smem()
            gpu.copy_smem_to_gmem(own.sum, sum_out[0].at[split, rows])
        total_nD = total_ref[...]
        for first in range(0, width, OUT_PIECE):
            own.out[...] = total_nD[:, first : first + OUT_PIECE]
            gpu.commit_smem()
            columns = pl.ds(first, OUT_PIECE)
            gpu.copy_smem_to_gmem(own.out, out.at[split, rows, columns])
            gpu.wait_smem_to_gmem(0)

    pl.run_scoped(all_tiles, gpu.WGMMAAccumulatorRef((ROWS, width), jnp.float32))


def _scores(left: Any, right: Any, width: int, score_ref: Any) -> Array:
    """[n, C] of two blocks in shared memory: high halves, and low ones if they have."""
    pairs = [(0, 0)] if left.shape[-1] == width else [(0, 0), (0, 1), (1, 0)]
    for i, j in pairs:
        right_KC = _half(right, width, j).transpose((1, 0))
        gpu.wgmma(score_ref, _half(left, width, i), right_KC)
    return score_ref[...]


def _half(ref: Any, width: int, i: int) -> Any:
    """Its high half, or its low one."""
    return ref if ref.shape[-1] == width else ref.at[:, pl.ds(i * width, width)]


def _factor(term_nC: Array, own: _Own) -> Any:
    """The exponentials as a matmul takes them: from registers, but when interpreted."""
    if own.term is None:
        return term_nC
    own.term[...] = term_nC
    gpu.commit_smem()
    return own.term
