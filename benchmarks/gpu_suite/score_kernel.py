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


class Side(NamedTuple):
    """Rows of scores, or their columns.

    factor_NK: bfloat16. K is D; or 2 D, if what was rounded away follows as a second
      half: scores are then of three products, and nearly those of float32.
    offset_N: float32, in nats; -inf where there is to be nothing.
    key_N: int32. Nothing is where the row's is the column's.

    Within the kernel, references to such arrays.
    """

    factor_NK: Any
    offset_N: Any
    key_N: Any


def sums(
    rows: Side, columns: Side, *, width: int, interpret: Any = None
) -> tuple[Array, Array]:
    """sum_v p_nv and sum_v p_nv factor_vd, p_nv = exp(s_nv + offset_n + offset_v).

    s are the products of the rows' factors and the columns', and d < D. p is 0 where
    keys are the same; it is rounded to bfloat16, and both sums are of the rounded.

    Args:
      width: D; 64, 128, 192 or 256. With second halves 192 at the most.
      interpret: `mosaic_gpu.InterpretGPUParams`, to run without a GPU.

    Returns:
      [N] and [N, D], float32.
    """
    out_SND, sum_SN = _call(rows, columns, width, interpret, is_summed=True)
    num_rows = len(rows.key_N)
    return sum_SN.sum(axis=0)[:num_rows], out_SND.sum(axis=0)[:num_rows]


def weighted_sums(
    rows: Side, columns: Side, *, width: int, interpret: Any = None
) -> Array:
    """The second result of `sums` alone, for less work."""
    (out_SND,) = _call(rows, columns, width, interpret, is_summed=False)
    return out_SND.sum(axis=0)[: len(rows.key_N)]


def _call(
    rows: Side, columns: Side, width: int, interpret: Any, *, is_summed: bool
) -> list[Array]:
    """Of each split, and a few rows more: [S, N, D], and [S, N] if it is asked for."""
    num_rows, num_factors = rows.factor_NK.shape
    assert width % PIECE == 0 and width <= MOST_WIDTH, f"width {width}"
    assert num_factors in (width, 2 * width), (num_factors, width)
    assert num_factors <= MOST_FACTORS, f"{num_factors} do not fit in shared memory"
    how = cut(num_rows, len(columns.key_N), num_factors)
    rows = _padded(rows, -num_rows % BLOCK)
    columns = _padded(columns, how.num_columns - len(columns.key_N))
    sizes = _Sizes(len(rows.factor_NK), num_factors, width)
    return _kernel(how, sizes, is_summed, interpret)(*rows, *columns)


def _padded(side: Side, more: int) -> Side:
    """With so many more, which count as nothing.

    Of factors that are not there copies find 0; but where one of a piece's 8 rows is
    there, all have to be.
    """
    return Side(
        jnp.pad(side.factor_NK, ((0, -len(side.factor_NK) % 8), (0, 0))),
        jnp.pad(side.offset_N, (0, more), constant_values=-jnp.inf),
        jnp.pad(side.key_N, (0, more)),
    )


class _Sizes(NamedTuple):
    """rows: a multiple of 8. factors: K. width: D."""

    rows: int
    factors: int
    width: int


class _Own(NamedTuple):
    """In shared memory, of the rows of each warpgroup that computes."""

    side: Side
    sum: Any  # or None
    out: Any
    term: Any  # the exponentials, in the interpreter; it multiplies no others


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

    def side(*shape: int) -> Side:
        factors = shared((*shape, sizes.factors), jnp.bfloat16)
        return Side(factors, shared(shape), shared(shape, jnp.int32))

    def body(*refs):
        rows, columns, out = Side(*refs[:3]), Side(*refs[3:6]), refs[6]
        (*sum_out, own, ring, barriers) = refs[7:]
        fetching = pl.when(lax.axis_index("warpgroup") == COMPUTING)
        computing = pl.when(lax.axis_index("warpgroup") < COMPUTING)
        fetching(lambda: _fetch(how, columns, ring, barriers))
        computing(lambda: _compute(how, rows, out, sum_out, own, ring, barriers))

    term_shape = COMPUTING, ROWS, how.tile
    own = _Own(
        side=side(COMPUTING, ROWS),
        sum=shared((COMPUTING, ROWS)) if is_summed else None,
        out=shared((COMPUTING, ROWS, OUT_PIECE)),
        term=shared(term_shape, jnp.bfloat16) if is_interpreted else None,
    )
    ring = side(AHEAD, how.tile)  # the tiles that are there or on their way
    barriers = _Barriers(
        own=gpu.Barrier(num_arrivals=len(Side._fields), num_barriers=COMPUTING),
        full=gpu.Barrier(num_arrivals=len(Side._fields), num_barriers=AHEAD),
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


def _fetch(how: Cut, columns: Side, ring: Side, barriers: _Barriers) -> None:
    """Has the split's tiles copied into the ring, each as soon as there is room."""
    gpu.set_max_registers(REGISTERS_OF_FETCHING, action="decrease")

    def copy(i, slot):
        first = (lax.axis_index("split") * how.tiles + i) * how.tile
        _copy(columns, pl.ds(first, how.tile), ring, slot, barriers.full)

    # As many turns more as tiles are ahead: until no one needs the last ones.
    @pl.loop(0, how.tiles + AHEAD)
    def _(i):
        slot = _slot(i)
        pl.when(i >= AHEAD)(lambda: gpu.barrier_wait(barriers.free.at[slot]))
        pl.when(i < how.tiles)(lambda: copy(i, slot))


def _copy(source: Side, where: Any, target: Side, slot: Array, barriers: Any) -> None:
    """Begins to; the slot's barrier tells when all of it is there."""
    for some, its in zip(source, target, strict=True):
        gpu.copy_gmem_to_smem(some.at[where], its.at[slot], barriers.at[slot])


def _compute(
    how: Cut,
    rows: Side,
    out: Any,
    sum_out: list[Any],
    own: _Own,
    ring: Side,
    barriers: _Barriers,
) -> None:
    """The sums of a warpgroup's rows over the split's tiles."""
    gpu.set_max_registers(REGISTERS, action="increase")
    warpgroup, split = lax.axis_index("warpgroup"), lax.axis_index("split")
    where = pl.ds(lax.axis_index("block") * BLOCK + warpgroup * ROWS, ROWS)
    _copy(rows, where, own.side, warpgroup, barriers.own)
    gpu.barrier_wait(barriers.own.at[warpgroup])
    own = jax.tree.map(lambda ref: ref.at[warpgroup], own)
    by_row, by_column = gpu.Layout.WGMMA.reduce(1), gpu.Layout.WGMMA.reduce(0)
    width, shape = out.shape[-1], (ROWS, how.tile)

    def along(axis: int, side: Side) -> list[Array]:
        """Offsets and keys, for every score."""
        layout = (by_row, by_column)[axis]
        found = (gpu.layout_cast(x[...], layout) for x in side[1:])
        return [lax.broadcast_in_dim(x, shape, [axis]) for x in found]

    def all_tiles(total_ref):
        def tile(i, sum_n):
            slot = _slot(i)
            gpu.barrier_wait(barriers.full.at[slot])
            tile = Side(*(ref.at[slot] for ref in ring))
            score_nC = pl.run_scoped(
                partial(_scores, own.side.factor_NK, tile.factor_NK, width),
                gpu.WGMMAAccumulatorRef(shape, jnp.float32),
            )
            offset_nC, key_nC = along(0, own.side)
            column_offset_nC, column_key_nC = along(1, tile)
            term_nC = jnp.exp2(LOG2_E * (score_nC + (offset_nC + column_offset_nC)))
            term_nC = jnp.where(key_nC == column_key_nC, 0, term_nC)
            term_nC = term_nC.astype(jnp.bfloat16)
            right = tile.factor_NK
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
            gpu.copy_smem_to_gmem(own.sum, sum_out[0].at[split, where])
        total_nD = total_ref[...]
        for first in range(0, width, OUT_PIECE):
            own.out[...] = total_nD[:, first : first + OUT_PIECE]
            gpu.commit_smem()
            columns = pl.ds(first, OUT_PIECE)
            gpu.copy_smem_to_gmem(own.out, out.at[split, where, columns])
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
