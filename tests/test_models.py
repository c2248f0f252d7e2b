"""Encoders against slow float64 references, closed forms and exact zeros."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, expit

from jaxrec import dropout, models
from jaxrec.errors import InputError

NUM_ITEMS, WIDTH, ROW_LENGTH = 11, 8, 10
TRANSFORMERS = ["sasrec", "sasrec_pre_norm", "bert4rec"]
ENCODERS = [*TRANSFORMERS, "gru4rec"]
OPTIONS = {
    "sasrec": {"num_heads": 2, "num_positions": ROW_LENGTH},
    "sasrec_pre_norm": {"num_heads": 2, "num_positions": ROW_LENGTH},
    "bert4rec": {"num_heads": 2, "num_positions": ROW_LENGTH, "inner_width": 12},
    "gru4rec": {"num_layers": 2},
}
# Epsilon of every layer norm of the encoder.
EPSILON = {"sasrec": 1e-8, "sasrec_pre_norm": 1e-6, "bert4rec": 1e-12}
# Relative to the largest entry: some thirty float32 operations one after another, each
# with a relative error of 6e-8, and sums of up to 12 terms.
RTOL = 1e-5
SEQUENCES = ([3, 1, 4, 1, 5], [9], [2, 6, 5], [7, 11, 8, 2], [10, 4], [6])


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def encoder_of(name, **options):
    return models.ENCODERS[name](
        num_items=NUM_ITEMS, width=WIDTH, **{**OPTIONS[name], **options}
    )


def init(encoder):
    one_11 = jnp.ones((1, 1), jnp.int32)
    initialise = jax.jit(functools.partial(encoder.init, train=False))
    variables = initialise(jax.random.key(0), one_11, one_11 - 1, one_11)
    return jax.device_get(variables["params"])


@functools.cache
def params_of(name, scale=1.0):
    """Drawn anew, so that no bias is 0, no norm the identity and no state small."""
    one_11 = jnp.ones((1, 1), jnp.int32)
    shapes = jax.eval_shape(
        functools.partial(encoder_of(name).init, train=False),
        jax.random.key(0),
        *[one_11] * 3,
    )["params"]
    rng = np.random.default_rng(5)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.normal(0, 0.5, leaf.shape), leaf.dtype),
        shapes,
    )


@functools.cache
def apply_fn(name, **options):
    """One compilation for all tests of equal shapes: compiling is most of the time.

    For the same reason its results are NumPy's: cutting them compiles nothing.
    """
    encoder = encoder_of(name, **options)

    @jax.jit
    def apply(params, tokens_RT, position_RT, segment_RT):
        return encoder.apply(
            {"params": params}, tokens_RT, position_RT, segment_RT, train=False
        )

    return lambda *arguments: jax.device_get(apply(*arguments))


def one_a_row(sequences):
    """Tokens, positions and segments of right-padded sequences, int32 [R, T]."""
    tokens_RT = np.zeros((len(sequences), ROW_LENGTH), np.int32)
    for row, sequence in enumerate(sequences):
        tokens_RT[row, : len(sequence)] = sequence
    position_RT = np.broadcast_to(
        np.arange(ROW_LENGTH, dtype=np.int32), tokens_RT.shape
    )
    return tokens_RT, position_RT, (tokens_RT > 0).astype(np.int32)


# ---- The numbers: parameters and their law


@pytest.mark.parametrize("table_rows", [3417])
def test_sasrec_has_the_papers_number_of_parameters(table_rows):
    params = jax.eval_shape(
        functools.partial(models.SASRec(num_items=table_rows - 1).init, train=False),
        jax.random.key(0),
        *[jnp.ones((1, 1), jnp.int32)] * 3,
    )["params"]
    width, num_layers = 64, 2
    parts = {
        "items": table_rows * width,
        "positions": 200 * width,
        "attention_norms": num_layers * 2 * width,
        "attentions": num_layers * 4 * (width * width + width),
        "feed_forward_norms": num_layers * 2 * width,
        "feed_forwards": num_layers * 2 * (width * width + width),
        "final_norm": 2 * width,
    }
    assert [*parts.values()] == [218_688, 12_800, 256, 33_280, 256, 16_640, 128]
    assert models.num_parameters(params) == sum(parts.values()) == 282_048
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def assert_normal(x, stddev):
    """Mean, spread and tails, each within 5 standard errors of N(0, stddev)."""
    z = np.asarray(x, np.float64).ravel() / stddev
    assert abs(z.mean()) < 5 / math.sqrt(z.size)
    assert abs(z.std() - 1) < 5 / math.sqrt(2 * z.size)
    # A uniform of that spread ends at 1.7; missing 2.5 has a chance of 0.9876^4096.
    assert z.size < 4096 or abs(z).max() > 2.5


def assert_uniform(x, bound):
    """Range, mean and variance, each within 5 standard errors of U(-bound, bound)."""
    u = np.asarray(x, np.float64).ravel() / bound
    assert abs(u).max() <= 1
    assert abs(u.mean()) < 5 / math.sqrt(3 * u.size)
    # The variance of u^2 is 1/5 - 1/9 = 4/45.
    assert abs((u**2).mean() - 1 / 3) < 5 * math.sqrt(4 / 45 / u.size)


def law_of(name, path, width):
    """What the initial values of a parameter must be like."""
    leaf = path.rsplit("/", 1)[-1]
    is_projection = any(
        f"attention/{part}/" in path for part in ("query", "key", "value")
    )
    if name == "gru4rec" and path != "item_embedding/table":
        return functools.partial(assert_uniform, bound=width**-0.5)
    if leaf == "bias":
        return functools.partial(np.testing.assert_array_equal, 0)
    if leaf == "scale":
        return functools.partial(np.testing.assert_array_equal, 1)
    if is_projection and name != "bert4rec":
        # Xavier-uniform: of torch's packed [3D, D] matrix in the paper's code.
        fans = 4 * width if name == "sasrec" else 2 * width
        return functools.partial(assert_uniform, bound=math.sqrt(6 / fans))
    return functools.partial(assert_normal, stddev=0.02)


@pytest.mark.parametrize("name", ENCODERS)
def test_initial_values_follow_their_laws(name):
    width = 64
    params = init(models.ENCODERS[name](num_items=300, num_layers=1))
    assert not params["item_embedding"]["table"][models.PAD].any()
    params["item_embedding"]["table"] = params["item_embedding"]["table"][1:]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for key_path, leaf in leaves:
        path = "/".join(key.key for key in key_path)
        try:
            law_of(name, path, width)(leaf)
        except AssertionError as error:
            raise AssertionError(f"{path} has another law") from error
    values = [leaf.ravel()[:9].tolist() for _, leaf in leaves if leaf.std() > 0]
    assert len({tuple(value) for value in values}) == len(values)


@pytest.mark.parametrize("name", ENCODERS)
def test_table_has_a_row_for_each_item_and_for_mask(name):
    encoder, params = encoder_of(name), params_of(name)
    table_VD = encoder.apply({"params": params}, method="table")
    num_special = 2 if encoder.objective == "cloze" else 1
    assert table_VD.shape == (NUM_ITEMS + num_special, WIDTH)
    assert (encoder.objective == "cloze") == (name == "bert4rec")
    assert models.mask_id(NUM_ITEMS) == NUM_ITEMS + 1
    np.testing.assert_array_equal(table_VD, params["item_embedding"]["table"])


# ---- The mathematics: slow references in float64, one sequence at a time


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def norm(x, p, epsilon):
    rows = []
    for row in x:
        centred = row - row.mean()
        variance = (centred**2).mean()
        rows.append(centred / math.sqrt(variance + epsilon) * p["scale"] + p["bias"])
    return np.stack(rows)


def attention(query_input, memory_input, p, num_heads, is_causal):
    length, width = query_input.shape
    size = width // num_heads
    query, key = dense(query_input, p["query"]), dense(memory_input, p["key"])
    value = dense(memory_input, p["value"])
    mixed = np.zeros((length, width))
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        for t in range(length):
            last = t + 1 if is_causal else length
            score = [query[t, part] @ key[m, part] / size**0.5 for m in range(last)]
            chance = np.exp(score) / np.exp(score).sum()
            mixed[t, part] = sum(chance[m] * value[m, part] for m in range(last))
    return dense(mixed, p["output"])


def tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def erf_gelu(x):
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def sasrec_reference(items, p, num_heads=2):
    table, epsilon = p["item_embedding"]["table"], 1e-8
    x = table[items] * math.sqrt(table.shape[1]) + p["position_table"][: len(items)]
    for layer in ("blocks_0", "blocks_1"):
        block = p[layer]
        query = norm(x, block["attention_norm"], epsilon)
        x = query + attention(query, x, block["attention"], num_heads, True)
        x = norm(x, block["feed_forward_norm"], epsilon)
        x = x + dense(np.maximum(dense(x, block["inner"]), 0), block["outer"])
    return norm(x, p["final_norm"], epsilon)


def pre_norm_reference(items, p, num_heads=2):
    table, epsilon = p["item_embedding"]["table"], 1e-6
    x = table[items] * math.sqrt(table.shape[1]) + p["position_table"][: len(items)]
    for layer in ("blocks_0", "blocks_1"):
        block = p[layer]
        y = norm(x, block["attention_norm"], epsilon)
        x = x + attention(y, y, block["attention"], num_heads, True)
        y = norm(x, block["feed_forward_norm"], epsilon)
        x = x + dense(tanh_gelu(dense(y, block["inner"])), block["outer"])
    return norm(x, p["final_norm"], epsilon)


def bert4rec_reference(items, p, num_heads=2):
    epsilon = 1e-12
    x = p["item_embedding"]["table"][items] + p["position_table"][: len(items)]
    x = norm(x + p["type_embedding"], p["embedding_norm"], epsilon)
    for layer in ("blocks_0", "blocks_1"):
        block = p[layer]
        x = x + attention(x, x, block["attention"], num_heads, False)
        x = norm(x, block["attention_norm"], epsilon)
        x = x + dense(erf_gelu(dense(x, block["inner"])), block["outer"])
        x = norm(x, block["feed_forward_norm"], epsilon)
    return x


def gru4rec_reference(items, p):
    x = p["item_embedding"]["table"][items]
    for layer in ("layers_0", "layers_1"):
        hidden, states = np.zeros(x.shape[1]), []
        for row in x:
            r_x, z_x, n_x = np.split(dense(row, p[layer]["input"]), 3)
            r_h, z_h, n_h = np.split(dense(hidden, p[layer]["recurrent"]), 3)
            reset, update = expit(r_x + r_h), expit(z_x + z_h)
            hidden = (1 - update) * np.tanh(n_x + reset * n_h) + update * hidden
            states.append(hidden)
        x = np.stack(states)
    return x


REFERENCES = {
    "sasrec": sasrec_reference,
    "sasrec_pre_norm": pre_norm_reference,
    "bert4rec": bert4rec_reference,
    "gru4rec": gru4rec_reference,
}


def assert_close(hidden, expected, rtol=RTOL):
    np.testing.assert_allclose(
        hidden, expected, rtol=0, atol=rtol * abs(expected).max()
    )


def assert_matches_reference(name, scale):
    params = params_of(name, scale)
    params64 = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    hidden_RTD = apply_fn(name)(params, *one_a_row(SEQUENCES))
    assert hidden_RTD.dtype == np.float32
    for row, items in enumerate(SEQUENCES):
        expected = REFERENCES[name](items, params64)
        assert_close(hidden_RTD[row, : len(items)], expected)


@pytest.mark.parametrize("name", ENCODERS)
def test_agrees_with_reference(name):
    assert_matches_reference(name, 1.0)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_agrees_with_reference_where_epsilon_decides(name):
    """All parameters, and so the variance under every norm, as small as its epsilon."""
    assert_matches_reference(name, math.sqrt(EPSILON[name]))


def test_norms_do_not_cancel():
    """A norm takes away what is common to all entries, however large it is."""
    params, rows = params_of("bert4rec"), one_a_row(SEQUENCES)
    shifted = {**params, "type_embedding": params["type_embedding"] + 1000.0}
    expected = apply_fn("bert4rec")(params, *rows)[rows[2] > 0]
    hidden = apply_fn("bert4rec")(shifted, *rows)[rows[2] > 0]
    # At 1000 float32 has steps of 6e-5. E[x^2] - E[x]^2 would be off by 0.06.
    assert_close(hidden, expected, rtol=1e-3)


def test_heads_must_divide_the_width():
    encoder = encoder_of("sasrec", num_heads=3)
    with pytest.raises(InputError, match="width=8, num_heads=3"):
        init(encoder)


# ---- Who sees whom

# One row: three tokens, a gap, four tokens, padding. Every token differs, so that the
# gradient of the table's row is the gradient of the token's embedding.
ROW_TOKENS = [3, 1, 4, 0, 9, 2, 6, 5, 0, 0]
ROW_POSITIONS = [0, 1, 2, 0, 0, 1, 2, 3, 0, 0]
ROW_SEGMENTS = [1, 1, 1, 0, 2, 2, 2, 2, 0, 0]


def dependence(name):
    """float [T, T'] largest gradient of hidden state t by an embedding entry of t'."""
    # One layer compiles in half the time; the values below show that two are no leak.
    encoder, params = encoder_of(name, num_layers=1), params_of(name)
    row = [np.array([x], np.int32) for x in (ROW_TOKENS, ROW_POSITIONS, ROW_SEGMENTS)]
    # A fixed direction: that a gradient vanishes along it by chance has no probability.
    direction_D = np.random.default_rng(1).normal(size=WIDTH).astype(np.float32)

    def projected(table_VD):
        given = {**params, "item_embedding": {"table": table_VD}}
        hidden_RTD = encoder.apply({"params": given}, *row, train=False)
        return hidden_RTD[0] @ direction_D

    gradient_TVD = jax.jit(jax.jacrev(projected))(params["item_embedding"]["table"])
    return np.abs(gradient_TVD).max(axis=-1)[:, ROW_TOKENS]


@pytest.mark.parametrize("name", ENCODERS)
def test_gradient_reaches_what_a_state_may_see_and_nothing_else(name):
    segment_T, time_T = np.array(ROW_SEGMENTS), np.array(ROW_POSITIONS)
    is_visible_TT = segment_T[:, None] == segment_T[None]
    if name != "bert4rec":
        is_visible_TT &= time_T[:, None] >= time_T[None]
    is_real_T = segment_T > 0
    # Rows of padding mean nothing, but no real state may depend on the PAD row.
    is_visible_TT &= is_real_T[None]
    gradient_TT = dependence(name)
    np.testing.assert_array_equal(gradient_TT[is_real_T] > 0, is_visible_TT[is_real_T])


@pytest.mark.parametrize("name", ENCODERS)
def test_changing_a_future_item(name):
    tokens_RT, position_RT, segment_RT = one_a_row(SEQUENCES)
    changed_RT = tokens_RT.copy()
    changed_RT[0, 3] = 8
    apply, params = apply_fn(name), params_of(name)
    hidden_RTD = apply(params, tokens_RT, position_RT, segment_RT)
    other_RTD = apply(params, changed_RT, position_RT, segment_RT)
    differs_T = np.any(hidden_RTD[0] != other_RTD[0], axis=-1)[:5]
    past = name == "bert4rec"
    assert differs_T.tolist() == [past, past, past, True, True]
    np.testing.assert_array_equal(hidden_RTD[1:], other_RTD[1:])


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_never_changes_a_state(name):
    """Whatever it holds; test_agrees_with_reference has no padding to compare with."""
    tokens_RT, position_RT, segment_RT = one_a_row(SEQUENCES)
    is_real_RT = segment_RT > 0
    apply, params = apply_fn(name), params_of(name)
    hidden_RTD = apply(params, tokens_RT, position_RT, segment_RT)
    garbage_RT = np.where(is_real_RT, tokens_RT, 7)
    np.testing.assert_array_equal(
        apply(params, garbage_RT, position_RT, segment_RT)[is_real_RT],
        hidden_RTD[is_real_RT],
    )


def packed_rows(sequences, num_rows, rng):
    """Sequences in any order with gaps between: the rows, and where each begins."""
    rows_3RT = np.zeros((3, num_rows, ROW_LENGTH), np.int32)
    slots = {}
    row = column = 0
    for segment, b in enumerate(rng.permutation(len(sequences)), 1):
        length = len(sequences[b])
        if column + length > ROW_LENGTH:
            row, column = row + 1, 0
        span = slice(column, column + length)
        rows_3RT[0, row, span] = sequences[b]
        rows_3RT[1, row, span] = np.arange(length)
        rows_3RT[2, row, span] = segment
        slots[b] = row, column
        column += length + int(rng.integers(3))
    return rows_3RT, slots


@pytest.mark.parametrize("name", ENCODERS)
def test_packed_rows_equal_one_sequence_a_row(name):
    rng = np.random.default_rng(7)
    apply, params = apply_fn(name), params_of(name)
    expected_RTD = apply(params, *one_a_row(SEQUENCES))
    # As many rows as sequences: enough for any arrangement, and the same compilation.
    for _ in range(10):
        rows_3RT, slots = packed_rows(SEQUENCES, len(SEQUENCES), rng)
        hidden_RTD = apply(params, *rows_3RT)
        for b, (row, column) in slots.items():
            length = len(SEQUENCES[b])
            hidden_TD = hidden_RTD[row, column : column + length]
            assert_close(hidden_TD, expected_RTD[b, :length])


# ---- Dropout


def dropout_sites(encoder, monkeypatch):
    """(shape, rate) of every dropout of a training pass, in the order of the pass."""
    sites = []

    def record(key, shape, rate):
        del key
        sites.append((shape, rate))
        return jnp.ones(shape, bool)

    monkeypatch.setattr(dropout, "keep_mask", record)
    rows = one_a_row(SEQUENCES)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    jax.eval_shape(functools.partial(encoder.init, train=True), keys, *rows)
    return sites


def test_dropout_sites(monkeypatch):
    rows = len(SEQUENCES)
    state = (rows, ROW_LENGTH, WIDTH)
    heads = (rows, 2, ROW_LENGTH, ROW_LENGTH)
    sites = functools.partial(dropout_sites, monkeypatch=monkeypatch)
    block = [(heads, 0.3), (state, 0.3), (state, 0.3)]
    for name in ("sasrec", "sasrec_pre_norm"):
        assert sites(encoder_of(name, dropout=0.3)) == [(state, 0.3), *block, *block]
    bert4rec = encoder_of("bert4rec", dropout=0.3, attention_dropout=0.2)
    block = [(heads, 0.2), (state, 0.3), (state, 0.3)]
    assert sites(bert4rec) == [(state, 0.3), *block, *block]
    assert sites(encoder_of("gru4rec", dropout=0.3)) == [(state, 0.3)]
    assert sites(encoder_of("gru4rec", dropout=0.3, num_layers=1)) == []


@pytest.mark.parametrize("name", ENCODERS)
def test_dropout_acts_in_training_only_and_follows_its_key(name):
    params, rows = params_of(name), one_a_row(SEQUENCES)
    is_real_RT = rows[2] > 0
    encoder = encoder_of(name, dropout=0.5)

    def states(**options):
        hidden_RTD = encoder.apply({"params": params}, *rows, **options)
        return jax.device_get(hidden_RTD)[is_real_RT]

    def train(seed):
        return states(train=True, rngs={"dropout": jax.random.key(seed)})

    hidden_ND = train(1)
    np.testing.assert_array_equal(train(1), hidden_ND)
    evaluated_ND = apply_fn(name)(params, *rows)[is_real_RT]
    # At a rate of 1/2 nearly every state differs; one in three would be too few.
    assert (hidden_ND != train(2)).mean() > 1 / 3
    assert (hidden_ND != evaluated_ND).mean() > 1 / 3
    # Evaluation has no key to draw from. Here it is eager, above it was compiled.
    assert_close(states(train=False), evaluated_ND)


@pytest.mark.parametrize("name", ENCODERS)
def test_bfloat16_computes_near_float32(name):
    params, rows = params_of(name), one_a_row(SEQUENCES)
    is_real_RT = rows[2] > 0
    hidden_RTD = apply_fn(name)(params, *rows)[is_real_RT]
    rounded_RTD = apply_fn(name, dtype="bfloat16")(params, *rows)[is_real_RT]
    assert rounded_RTD.dtype == np.float32
    # bfloat16 rounds by up to 2^-9; a state is the outcome of some twenty roundings.
    assert_close(rounded_RTD, hidden_RTD, rtol=20 * 2**-9)
    assert abs(rounded_RTD - hidden_RTD).max() > 2**-12  # it was bfloat16
    shapes = jax.eval_shape(
        functools.partial(encoder_of(name, dtype="bfloat16").init, train=False),
        jax.random.key(0),
        *[jnp.ones((1, 1), jnp.int32)] * 3,
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
