"""Imported weights against PyTorch models made of torch.nn's own building blocks."""

import collections
import functools
import json
import math
import pathlib
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec import batches, models, negatives, objectives, ranking, steps, torch_weights
from jaxrec.errors import InputError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what importing torch says of itself is not ours
    torch = pytest.importorskip("torch")
    nn, F = torch.nn, torch.nn.functional

NUM_ITEMS, WIDTH, NUM_LAYERS, LENGTH, INNER = 30, 16, 2, 9, 24
# Both sides compute in float32, some fifty operations of relative error 6e-8 deep.
BAR = 1e-5


# ---- The references


class SASRec(nn.Module):
    """Causal attention whose query alone is normalised; the tensors' public names.

    first_position is 0, or 1 where row 0 of the position table is padding.
    """

    def __init__(self, num_items, width, length, num_layers, heads, first_position=0):
        super().__init__()

        def many(make):
            return nn.ModuleList([make() for _ in range(num_layers)])

        def convolution():
            return nn.Conv1d(width, width, 1)

        norm = functools.partial(nn.LayerNorm, width, eps=1e-8)
        self.first_position = first_position
        self.item_emb = nn.Embedding(num_items + 1, width, padding_idx=0)
        self.pos_emb = nn.Embedding(
            length + first_position, width, padding_idx=0 if first_position else None
        )
        self.attention_layernorms = many(norm)
        self.attention_layers = many(
            lambda: nn.MultiheadAttention(width, heads, batch_first=True)
        )
        self.forward_layernorms = many(norm)
        self.forward_layers = many(
            lambda: nn.ModuleDict({"conv1": convolution(), "conv2": convolution()})
        )
        self.last_layernorm = norm()

    def forward(self, ids):
        is_real = ids > 0
        positions = torch.arange(ids.shape[1])[None] + self.first_position
        if self.first_position:
            positions = positions * is_real
        x = self.item_emb(ids) * math.sqrt(self.item_emb.embedding_dim)
        x = x + self.pos_emb(positions)
        if not self.first_position:
            x = x * is_real[..., None]
        future = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        for norm, attend, next_norm, layer in zip(
            self.attention_layernorms,
            self.attention_layers,
            self.forward_layernorms,
            self.forward_layers,
            strict=True,
        ):
            query = norm(x)
            x = next_norm(query + attend(query, x, x, attn_mask=future)[0])
            inner = F.relu(layer["conv1"](x.mT))
            x = x + layer["conv2"](inner).mT
            if not self.first_position:
                x = x * is_real[..., None]
        return self.last_layernorm(x)

    def table(self):
        return self.item_emb.weight


class BERT4Rec(nn.Module):
    """Post-norm encoder under the names of a Hugging Face BertModel, and a tied head.

    The word embeddings and the pooler are there and unused. PAD is 0, MASK is 1.
    """

    def __init__(self, num_items, width, length, num_layers, heads, inner=INNER):
        super().__init__()
        tree, norm = nn.ModuleDict, functools.partial(nn.LayerNorm, width, eps=1e-12)
        linear = functools.partial(nn.Linear, width, width)

        def layer():
            attention = tree({k: linear() for k in ("query", "key", "value")})
            attention_output = tree({"dense": linear(), "LayerNorm": norm()})
            output = tree({"dense": nn.Linear(inner, width), "LayerNorm": norm()})
            return tree(
                {
                    "attention": tree({"self": attention, "output": attention_output}),
                    "intermediate": tree({"dense": nn.Linear(width, inner)}),
                    "output": output,
                }
            )

        self.heads = heads
        self.embed_layer = nn.Embedding(num_items + 2, width, padding_idx=0)
        embeddings = tree(
            {
                "word_embeddings": nn.Embedding(2, width),
                "position_embeddings": nn.Embedding(length, width),
                "token_type_embeddings": nn.Embedding(2, width),
                "LayerNorm": norm(),
            }
        )
        layers = nn.ModuleList([layer() for _ in range(num_layers)])
        self.transformer_model = tree(
            {
                "embeddings": embeddings,
                "encoder": tree({"layer": layers}),
                "pooler": tree({"dense": linear()}),
            }
        )
        self.head = nn.Linear(width, num_items + 2, bias=False)
        self.head.weight = self.embed_layer.weight

    def forward(self, ids):
        rows, length = ids.shape
        embeddings = self.transformer_model["embeddings"]
        x = self.embed_layer(ids)
        x = x + embeddings["position_embeddings"](torch.arange(length)[None])
        x = x + embeddings["token_type_embeddings"](torch.zeros_like(ids))
        x = embeddings["LayerNorm"](x)

        def split(y):
            return y.view(rows, length, self.heads, -1).transpose(1, 2)

        for layer in self.transformer_model["encoder"]["layer"]:
            own, after = layer["attention"]["self"], layer["attention"]["output"]
            mixed = F.scaled_dot_product_attention(
                split(own["query"](x)),
                split(own["key"](x)),
                split(own["value"](x)),
                attn_mask=(ids > 0)[:, None, None],
            )
            mixed = mixed.transpose(1, 2).reshape(x.shape)
            x = after["LayerNorm"](x + after["dense"](mixed))
            inner = F.gelu(layer["intermediate"]["dense"](x))
            x = layer["output"]["LayerNorm"](x + layer["output"]["dense"](inner))
        return x

    def table(self):
        return self.head.weight


from_one = functools.partial(SASRec, first_position=1)
SHAPES = (NUM_ITEMS, WIDTH, LENGTH, NUM_LAYERS)
CASES = {
    "SASRec, 1 head": (SASRec, 1, "paper"),
    "SASRec, 2 heads": (SASRec, 2, "paper"),
    "BERT4Rec": (BERT4Rec, 2, "paper"),
    "SASRec, positions from 1": (from_one, 2, "pmixer-2024"),
}


def drawn(make, heads):
    """A reference whose every tensor is random, so that none is 0 or the identity."""
    model, rng = make(*SHAPES, heads).eval(), np.random.default_rng(3)
    with torch.no_grad():
        for x in model.parameters():
            x.copy_(torch.tensor(rng.normal(0, 0.4, x.shape)))
        for module in model.modules():
            if getattr(module, "padding_idx", None) is not None:
                module.weight[0] = 0.0
    return model


@functools.cache
def case(name):
    make, heads, layout = CASES[name]
    model = drawn(make, heads)
    return model, torch_weights.load(model.state_dict(), num_heads=heads, layout=layout)


def histories(lengths=(LENGTH, 1, 5, LENGTH - 1, 2), length=LENGTH):
    """Right-padded items of our numbering, int32 [R, T]."""
    rng = np.random.default_rng(4)
    tokens_RT = np.zeros((len(lengths), length), np.int32)
    for row, n in enumerate(lengths):
        tokens_RT[row, :n] = rng.integers(1, NUM_ITEMS + 1, n)
    return tokens_RT


def hidden_states(weights, tokens_RT):
    position_RT = np.broadcast_to(
        np.arange(tokens_RT.shape[1], dtype=np.int32), tokens_RT.shape
    )
    rows = (tokens_RT, position_RT, (tokens_RT > 0).astype(np.int32))
    apply = jax.jit(functools.partial(weights.encoder.apply, train=False))
    return np.asarray(apply({"params": weights.params}, *rows))


def source_ids(weights, tokens_RT):
    return torch.tensor(weights.source_row_V[tokens_RT])


def relative(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def flat(tree):
    return np.concatenate(
        [np.ravel(x).astype(np.float64) for x in jax.tree.leaves(tree)]
    )


# ---- Equal numbers


@pytest.mark.parametrize("name", CASES)
def test_hidden_states_and_scores_equal(name):
    model, weights = case(name)
    tokens_RT = histories()
    if weights.model == "bert4rec":
        tokens_RT[0, [1, 4]] = models.mask_id(NUM_ITEMS)
    is_real_RT = tokens_RT > 0
    hidden_ND = hidden_states(weights, tokens_RT)[is_real_RT]
    with torch.no_grad():
        expected_ND = model(source_ids(weights, tokens_RT)).numpy()[is_real_RT]
        table_VD = model.table().numpy()
    assert relative(hidden_ND, expected_ND) < BAR
    score_NV = hidden_ND @ weights.params["item_embedding"]["table"].T
    expected_NV = (expected_ND @ table_VD.T)[:, weights.source_row_V]
    assert relative(score_NV, expected_NV) < BAR


def test_rows_of_items():
    """Ours: PAD, 1..n, MASK; the paper's BERT4Rec: PAD, MASK, 2..n + 1."""
    assert case("SASRec, 1 head")[1].source_row_V.tolist() == [*range(NUM_ITEMS + 1)]
    expected = [0, *range(2, NUM_ITEMS + 2), 1]
    assert case("BERT4Rec")[1].source_row_V.tolist() == expected


def test_padding_on_the_left_is_not_ours():
    """pmixer's own scripts pad on the left, where items attend to the padding."""
    model, weights = case("SASRec, positions from 1")
    tokens_RT = histories((5,))
    left_RT = np.roll(tokens_RT, LENGTH - 5, axis=1)
    hidden_ND = hidden_states(weights, tokens_RT)[:, :5]
    with torch.no_grad():
        left_ND = model(source_ids(weights, left_RT)).numpy()[:, -5:]
        alone_ND = model(source_ids(weights, tokens_RT[:, :5])).numpy()
    assert relative(hidden_ND, alone_ND) < BAR
    assert relative(hidden_ND, left_ND) > 1000 * BAR


@functools.cache
def batch_of(objective_name):
    window_BX = jnp.asarray(histories((LENGTH, 1, 5, LENGTH - 1, 2)))
    if objective_name == "cloze":
        return batches.cloze(
            jax.random.key(0),
            window_BX,
            mask_id=models.mask_id(NUM_ITEMS),
            probability=0.4,
        )
    return batches.next_item(window_BX)


def gradients(weights, batch):
    """Of our step: packed rows, dropout 0, cross-entropy over all rows of the table."""
    encoder = weights.encoder.clone(dropout=0.0)
    if weights.model == "bert4rec":
        encoder = encoder.clone(attention_dropout=0.0)
    num_rows, length = batch.tokens_BL.shape
    objective = objectives.ce(include_padding=True)
    recipe = steps.Recipe(encoder, objective, optax.identity(), length, length, seed=0)
    slot_B = jnp.arange(num_rows, dtype=jnp.int32) * length
    packing = batches.place(
        batch.tokens_BL, slot_B, num_rows=num_rows, row_length=length
    )
    num_table_rows = len(weights.source_row_V)
    items = objectives.Items(
        ranking.item_mask(num_table_rows, NUM_ITEMS),
        negatives.make_pool(np.arange(num_table_rows) > 0),
    )
    key = jax.random.key(0)
    candidates = objective.candidates(key, batch.target_BL, batch.seen_BX, items)

    @jax.jit
    @jax.value_and_grad
    def mean_loss(params):
        loss_sum, weight = steps.batch_loss(
            params, recipe, batch, packing, candidates, key
        )
        return loss_sum / weight

    return mean_loss(weights.params)


def torch_gradients(model, weights, batch):
    """The same of the reference, converted like weights."""
    model.zero_grad()
    labels = np.where(
        batch.weight_BL > 0, weights.source_row_V[np.asarray(batch.target_BL)], -100
    )
    score_BLV = (
        model(source_ids(weights, np.asarray(batch.tokens_BL))) @ model.table().T
    )
    loss = F.cross_entropy(score_BLV.flatten(0, 1), torch.tensor(labels).flatten())
    loss.backward()
    named = {k: x.grad for k, x in model.named_parameters() if x.grad is not None}
    layout = "pmixer-2024" if getattr(model, "first_position", 0) else "paper"
    heads = weights.options["num_heads"]
    params = torch_weights.load(named, num_heads=heads, layout=layout).params
    return loss.item(), params


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_a_training_step_equal(name):
    model, weights = case(name)
    batch = batch_of(weights.encoder.objective)
    loss, ours = gradients(weights, batch)
    expected_loss, theirs = torch_gradients(model, weights, batch)
    assert abs(loss / expected_loss - 1) < BAR
    assert relative(flat(ours), flat(theirs)) < BAR
    largest = np.linalg.norm(flat(theirs))
    for (path, ours_), theirs_ in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
    ):
        # A key's bias shifts all scores of a query alike: its gradient is rounding.
        norm = max(np.linalg.norm(theirs_), 1e-2 * largest)
        assert np.linalg.norm(ours_ - theirs_) < BAR * norm, jax.tree_util.keystr(path)


# ---- Sizes and initial values


def test_options_come_from_the_shapes():
    _, weights = case("BERT4Rec")
    assert (weights.model, weights.options) == (
        "bert4rec",
        {
            "num_items": NUM_ITEMS,
            "width": WIDTH,
            "num_layers": NUM_LAYERS,
            "num_heads": 2,
            "num_positions": LENGTH,
            "inner_width": INNER,
        },
    )
    for name in ("SASRec, 2 heads", "SASRec, positions from 1"):
        _, sasrec = case(name)
        expected = {k: v for k, v in weights.options.items() if k != "inner_width"}
        assert (sasrec.model, sasrec.options) == ("sasrec", expected)


def initial(encoder):
    one_11 = jnp.ones((1, 1), jnp.int32)
    init = jax.jit(functools.partial(encoder.init, train=False))
    return jax.device_get(init(jax.random.key(0), one_11, one_11 - 1, one_11)["params"])


def initialised(make, heads, shapes):
    """A reference with the paper's initial law, by torch.nn.init."""
    torch.manual_seed(0)
    model = make(*shapes, heads)
    for name, x in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(x)
        elif "norm" in name.lower():
            nn.init.ones_(x)
        elif not name.endswith("in_proj_weight"):  # torch's own default stays
            nn.init.normal_(x, std=0.02)
    with torch.no_grad():
        model.table()[0] = 0.0
    return model


@pytest.mark.parametrize(
    ("make", "heads", "count"),
    [
        (SASRec, 1, 282_048),
        # Items, PAD and MASK; positions; token type; norm; and in each layer four
        # projections, two norms and the feed-forward layer.
        (
            functools.partial(BERT4Rec, inner=256),
            2,
            3418 * 64
            + 200 * 64
            + 64
            + 128
            + 2 * (4 * 65 * 64 + 2 * 128 + 2 * 256 * 64 + 256 + 64),
        ),
    ],
)
def test_number_and_initial_law_of_the_papers_model(make, heads, count):
    model = initialised(make, heads, (3416, 64, 200, 2))
    theirs = torch_weights.load(model.state_dict(), num_heads=heads)
    assert models.num_parameters(theirs.params) == count
    if make is SASRec:
        assert sum(x.numel() for x in model.parameters()) == count
    ours = initial(theirs.encoder)
    assert jax.tree.map(np.shape, ours) == jax.tree.map(np.shape, theirs.params)
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(ours),
        jax.tree.leaves(theirs.params),
        strict=True,
    )
    for (path, ours_), theirs_ in pairs:
        assert_same_law(jax.tree_util.keystr(path), ours_, theirs_, make is SASRec)


def assert_same_law(path, ours, theirs, is_sasrec):
    """Mean and spread within 5 standard errors of the initialiser's closed form."""
    if "bias" in path or "scale" in path:
        np.testing.assert_array_equal(ours, float("scale" in path))
        np.testing.assert_array_equal(theirs, ours)
        return
    is_packed = is_sasrec and any(k in path for k in ("query", "key", "value"))
    # Xavier-uniform on [3D, D]: bound sqrt(6 / 4D), spread bound / sqrt(3).
    spread = math.sqrt(6 / (4 * 64) / 3) if is_packed else 0.02
    kurtosis = 1.8 if is_packed else 3.0
    for x in (ours, theirs):
        x = np.asarray(x, np.float64)
        x = x[np.any(x.reshape(len(x), -1) != 0, axis=1)]  # less the row of PAD
        assert abs(x.mean()) < 5 * spread / math.sqrt(x.size), path
        error = spread * math.sqrt((kurtosis - 1) / (4 * x.size))
        assert abs(x.std() - spread) < 5 * error, path


# ---- What comes in


@functools.cache
def arrays(name="SASRec, 2 heads"):
    return {k: x.numpy() for k, x in case(name)[0].state_dict().items()}


def load(state, *, layout="paper", num_heads=2):
    return torch_weights.load(state, num_heads=num_heads, layout=layout)


def assert_same(a, b):
    assert (a.model, a.options) == (b.model, b.options)
    np.testing.assert_array_equal(flat(a.params), flat(b.params))


def lightning(state, **others):
    return {
        "epoch": 3,
        "state_dict": {f"model.{k}": x for k, x in state.items()} | others,
    }


@pytest.mark.parametrize("name", ["SASRec, 2 heads", "BERT4Rec"])
def test_arrays_prefixes_and_checkpoints(name):
    state, weights = arrays(name), case(name)[1]
    assert_same(load(state), weights)
    assert_same(load(lightning(state)), weights)
    # The paper's module for sampled losses holds the item table once more.
    table = state.get("item_emb.weight", state.get("embed_layer.weight"))
    assert_same(load(lightning(state, **{"embed_layer.weight": table})), weights)
    with pytest.raises(InputError, match="embed_layer.weight must equal model"):
        load(lightning(state, **{"embed_layer.weight": table + 1}))
    assert_same(load({f"_orig_mod.module.{k}": x for k, x in state.items()}), weights)


def test_tensors_that_bert_does_not_use_may_be_missing_or_there():
    state = dict(arrays("BERT4Rec"))
    state["transformer_model.embeddings.position_ids"] = np.arange(LENGTH)[None]
    assert_same(load(state), case("BERT4Rec")[1])
    unused = ("word_embeddings", "pooler", "position_ids", "head")
    state = {k: x for k, x in state.items() if not any(name in k for name in unused)}
    assert_same(load(state), case("BERT4Rec")[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_become_float32(dtype):
    model, weights = case("SASRec, 2 heads")
    state = {k: x.to(dtype) for k, x in model.state_dict().items()}
    loaded = load(state)
    assert {x.dtype for x in jax.tree.leaves(loaded.params)} == {np.dtype("float32")}
    # bfloat16 has 8 bits of mantissa.
    assert relative(flat(loaded.params), flat(weights.params)) < 2**-8


def test_weights_do_not_follow_the_model():
    model = drawn(SASRec, 1)
    weights = load(model.state_dict(), num_heads=1)
    before = flat(weights.params)
    with torch.no_grad():
        for x in model.parameters():
            x.add_(1.0)
    np.testing.assert_array_equal(flat(weights.params), before)


def test_file_of_torch_save(tmp_path):
    model, weights = case("BERT4Rec")
    for name, value in {
        "plain": model.state_dict(),
        "ckpt": lightning(model.state_dict()),
    }.items():
        torch.save(value, tmp_path / name)
        assert_same(load(tmp_path / name), weights)
        assert_same(load(str(tmp_path / name)), weights)


def test_files_that_are_none(tmp_path):
    path = tmp_path / "x.pt"
    with pytest.raises(InputError, match="x.pt must be a file with a state dict"):
        load(path)
    for content in (b"", b"not a checkpoint"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="x.pt must be a file") as caught:
            load(path)
        assert "\n" not in str(caught.value)
    torch.save(case("BERT4Rec")[0], path)  # the whole object would run code
    with pytest.raises(InputError, match="x.pt must be a file"):
        load(path)
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="x.pt must map names to tensors: got a list"):
        load(path)
    with pytest.raises(InputError, match="must map names to tensors: got a BERT4Rec"):
        load(case("BERT4Rec")[0])


def test_a_file_needs_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="x.pt needs torch: pip install torch"):
        load("x.pt")


def without(state, name):
    return {k: x for k, x in state.items() if k != name}


CONVOLUTION, LAST = "forward_layers.1.conv2.weight", "last_layernorm.bias"
TABLE = "item_emb.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, LAST), f"missing {LAST}\\."),
        (lambda s: s | {"extra.bias": s[LAST]}, r"left over extra.bias\."),
        (lambda s: without(s, LAST) | {"extra": 1}, f"missing {LAST}; left over extra"),
        (
            lambda s: s | {CONVOLUTION: s[CONVOLUTION][..., 0]},
            rf"{CONVOLUTION} must be \[16, 16, 1\], got \[16, 16\]",
        ),
        (lambda s: s | {LAST: s[LAST][1:]}, rf"{LAST} must be \[16\], got \[15\]"),
        (
            lambda s: s | {"pos_emb.weight": s["pos_emb.weight"][:, 1:]},
            r"pos_emb.weight must be \[9, 16\], got \[9, 15\]",
        ),
        (lambda s: s | {TABLE: s[TABLE][0]}, rf"{TABLE} must be \[V, D\], got \[16\]"),
        (lambda s: s | {TABLE: s[TABLE][:1]}, "has no row of an item"),
        (lambda s: s | {LAST: s[LAST] * np.nan}, f"{LAST} is not finite"),
        (lambda s: s | {LAST: "text"}, f"{LAST} must be a tensor or an array"),
        (lambda s: without(s, TABLE), "must have item_emb.weight .SASRec. or"),
        (lambda s: {}, "got nothing"),
        (lambda s: {TABLE: s[TABLE]}, "missing pos_emb.weight, .* and 10 more"),
        (
            lambda s: s | {k.replace("s.1.", "s.3."): x for k, x in s.items()},
            r"missing attention_layernorms.2.weight,",
        ),
    ],
)
def test_wrong_tensors_are_named(change, message):
    with pytest.raises(InputError, match=message) as caught:
        load(change(arrays()))
    assert "\n" not in str(caught.value)


def test_untied_head_is_refused():
    state = arrays("BERT4Rec")
    with pytest.raises(InputError, match="head.weight must equal embed_layer.weight"):
        load(state | {"head.weight": state["head.weight"] + 1})


@pytest.mark.parametrize("num_heads", [0, -1, 3])
def test_heads_must_divide_the_width(num_heads):
    with pytest.raises(InputError, match=f"divide the width .* 16: got {num_heads}"):
        load(arrays(), num_heads=num_heads)


def test_layouts():
    from_zero, from_one = arrays(), arrays("SASRec, positions from 1")
    assert_same(load(from_zero, layout="pmixer-2020"), load(from_zero))
    with pytest.raises(InputError, match="row 0 of pos_emb.weight must be padding"):
        load(from_zero, layout="pmixer-2024")
    for layout in ("paper", "pmixer-2020"):
        with pytest.raises(InputError, match="is zero, as in 'pmixer-2024' alone"):
            load(from_one, layout=layout)
    with pytest.raises(InputError, match="paper, pmixer-2020.* from May 2025 on"):
        load(from_one, layout="pmixer-2025")
    with pytest.raises(InputError, match="got recbole"):
        load(from_one, layout="recbole")
    with pytest.raises(InputError, match="must have item_emb.weight"):
        load(arrays("BERT4Rec"), layout="pmixer-2020")


# ---- The comparison with the paper's code: benchmarks/parity.py


class Headed(nn.Module):
    """A reference that is called as the paper's models are."""

    def __init__(self, model):
        super().__init__()
        self.model, self.add_head = model, True

    def forward(self, ids, attention_mask):
        hidden = self.model(ids)
        assert ((attention_mask > 0) == (ids > 0)).all()
        return hidden @ self.model.table().T if self.add_head else hidden


def paper_sasrec(item_num, maxlen, hidden_units, num_blocks, num_heads, dropout_rate):
    assert dropout_rate == 0
    shapes = (item_num, hidden_units, maxlen, num_blocks)
    return Headed(initialised(SASRec, num_heads, shapes))


def paper_bert4rec(vocab_size, bert_config):
    assert bert_config["hidden_dropout_prob"] == 0
    assert bert_config["attention_probs_dropout_prob"] == 0
    names = ("hidden_size", "max_position_embeddings", "num_hidden_layers")
    shapes = (vocab_size - 2, *(bert_config[name] for name in names))
    make = functools.partial(BERT4Rec, inner=bert_config["intermediate_size"])
    return Headed(initialised(make, bert_config["num_attention_heads"], shapes))


@pytest.fixture
def parity(monkeypatch, tmp_path):
    """The module at small sizes, its command as a function: (arguments) -> status."""
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parent.parent)
    parity = pytest.importorskip("benchmarks.parity")
    small = {"NUM_ITEMS": 300, "LENGTH": 12, "INNER_WIDTH": 32, "BATCH_SIZE": 4}
    for name, value in {**small, "NUM_LAYERS": 1}.items():
        monkeypatch.setattr(parity, name, value)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "models.py").write_text("")
    return parity


def run_parity(parity, tmp_path):
    output = tmp_path / "new" / "record.json"
    status = parity.main(["--paper-repo", str(tmp_path), "--output", str(output)])
    return status, json.loads(output.read_text())


def test_parity_finds_equal_models_equal(parity, monkeypatch, tmp_path, capsys):
    paper = types.SimpleNamespace(BERT4Rec=paper_bert4rec)
    monkeypatch.setattr(parity, "import_models", lambda path: paper)
    monkeypatch.setattr(parity, "is_installed", lambda package: True)
    monkeypatch.setattr(parity, "versions", lambda path: {})
    title = "BERT4Rec, 2 heads"
    monkeypatch.setattr(parity, "SYSTEMS", {title: parity.SYSTEMS[title]})
    status, made = run_parity(parity, tmp_path)
    assert status == 0 and all(row["passes"] for row in made["rows"])
    quantities = collections.Counter(row["quantity"] for row in made["rows"])
    assert quantities.pop("initial values") == 21
    steps_ = dict.fromkeys(["hidden states", "scores", "loss", "gradient"], 2)
    assert quantities == {**steps_, "parameters": 1}
    assert "DIFFERENT" not in capsys.readouterr().out


def test_parity_finds_another_model_different(parity, monkeypatch, tmp_path, capsys):
    """Another epsilon of the last norm, and initial values of another spread."""

    def other(**options):
        model = paper_sasrec(**options)
        model.model.last_layernorm.eps = 1e-3
        with torch.no_grad():
            model.model.pos_emb.weight *= 1.5
        return model

    paper = types.SimpleNamespace(SASRec=other)
    title = "SASRec, 1 head"
    monkeypatch.setattr(parity, "import_models", lambda path: paper)
    monkeypatch.setattr(parity, "SYSTEMS", {title: parity.SYSTEMS[title]})
    status, made = run_parity(parity, tmp_path)
    failed = {
        row.get("tensor", row["quantity"]) for row in made["rows"] if not row["passes"]
    }
    expected = {"hidden states", "scores", "loss", "gradient", "position_table"}
    assert (status, failed) == (1, expected)
    assert "DIFFERENT" in capsys.readouterr().out


def test_parity_says_what_is_not_run(parity, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(parity, "is_installed", lambda package: False)
    status, made = run_parity(parity, tmp_path)
    reasons = {row["system"]: row["quantity"] for row in made["rows"]}
    assert status == 0
    assert reasons == {
        "SASRec, 1 head": "not run: torch not installed",
        "SASRec, 2 heads": "not run: torch not installed",
        "BERT4Rec, 2 heads": "not run: torch and transformers not installed",
    }
    assert made["versions"]["transformers"] == "absent"
    assert capsys.readouterr().out.count("not run") == 3


def test_parity_imports_the_papers_file_without_transformers(
    parity, monkeypatch, tmp_path
):
    path = tmp_path / "src" / "models.py"
    path.write_text("from transformers import BertModel\nSASRec = 'there'\n")
    monkeypatch.setattr(parity, "is_installed", lambda package: False)
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    assert parity.import_models(path).SASRec == "there"
    assert "transformers" not in sys.modules


def test_parity_needs_a_checkout(parity, tmp_path):
    with pytest.raises(InputError, match="models.py is not there. Clone it"):
        parity.main(["--paper-repo", str(tmp_path / "nowhere")])
