"""Attention, encoder layers and embeddings, beside PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
from nbbn import (
    Embedding,
    MultiheadAttention,
    Parameter,
    PositionalEmbedding,
    Tape,
    Tensor,
    TransformerEncoderLayer,
)
from nbbn.errors import ArgumentError, DTypeError, ShapeError
from tests.helpers.layers import assert_near
from tests.helpers.refusals import refusing
from tests.helpers.training_pair import Pair, adam, under

N, T, S, E, HEADS = 3, 5, 4, 8, 2
LENGTHS = np.array([4, 1, 3])
TOLERANCES = [(np.float64, 1e-12), (np.float32, 1e-5)]
every_type = pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)


def copied(torch, own, other):
    """PyTorch's module with the weights of ours, which it takes by name; biases are not 0."""
    rng = np.random.default_rng(5)
    for p in own.parameters():
        p.data += 0.1 * rng.normal(size=p.shape).astype(p.dtype)
    other = other.to(getattr(torch, own.parameters()[0].dtype.name))
    other.load_state_dict({k: torch.from_numpy(v) for k, v in own.state_dict().items()})
    return other


def compare_gradients(own, other, tolerance: float) -> None:
    theirs = dict(other.named_parameters())
    ours = dict(zip(own.state_dict(), own.parameters(), strict=False))
    assert len(ours) == len(theirs)
    for name, parameter in theirs.items():
        assert_near(ours[name].grad, parameter.grad.numpy(), tolerance)


@every_type
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("how", ["self", "masked", "each its own", "lengths", "cross", "three"])
def test_attention_matches_torch(how, bias, causal, dtype, tolerance, rng):
    torch = pytest.importorskip("torch")
    own = MultiheadAttention(E, HEADS, bias=bias, causal=causal, rng=1, dtype=dtype)
    other = copied(torch, own, torch.nn.MultiheadAttention(E, HEADS, bias=bias, batch_first=True))
    shapes = {"cross": [(N, S, E)], "three": [(N, S, E)] * 2}.get(how, [])
    operands = [rng.normal(size=shape).astype(dtype) for shape in [(N, T, E), *shapes]]
    keys = S if shapes else T
    mask = None
    if how in ("masked", "each its own"):
        mask = rng.random((T, keys) if how == "masked" else (N, T, keys)) < 0.5
        mask[..., 0] = True
    lengths = LENGTHS if how in ("lengths", "cross") else None
    tensors = [Parameter(array) for array in operands]
    with Tape() as tape:
        y, weights = own.with_weights(*tensors, mask=mask, lengths=lengths)
    upstream = rng.normal(size=y.shape).astype(dtype)
    tape.backward(y, upstream)

    leaves = [torch.tensor(array, requires_grad=True) for array in operands]
    given = [*leaves, *leaves[-1:] * 2][:3]
    allowed = np.ones((N, T, keys), bool) if mask is None else np.broadcast_to(mask, (N, T, keys))
    allowed = allowed & (np.tri(T, keys, dtype=bool) if causal else True)
    blocked = torch.as_tensor(~np.repeat(allowed, HEADS, 0))
    padding = None
    if lengths is not None:
        padding = torch.as_tensor(np.arange(keys) >= lengths[:, None])
    want, shares = other(
        *given, attn_mask=blocked, key_padding_mask=padding, average_attn_weights=False
    )
    want.backward(torch.tensor(upstream))
    assert_near(y.data, want.detach().numpy(), tolerance)
    assert_near(weights.data, shares.detach().numpy(), tolerance)
    for p, leaf in zip(tensors, leaves, strict=True):
        assert_near(p.grad, leaf.grad.numpy(), tolerance)
    compare_gradients(own, other, tolerance)


@every_type
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_layers_match_torch(norm_first, lengths, dtype, tolerance, rng):
    torch = pytest.importorskip("torch")
    options = {"dim_feedforward": 12, "dropout": 0.0, "norm_first": norm_first}
    own = TransformerEncoderLayer(E, HEADS, rng=1, dtype=dtype, **options)
    other = torch.nn.TransformerEncoderLayer(E, HEADS, batch_first=True, **options)
    other = copied(torch, own, other)
    array = rng.normal(size=(N, T, E)).astype(dtype)
    x, leaf = Parameter(array), torch.tensor(array, requires_grad=True)
    with Tape() as tape:
        y = own(x, lengths=lengths)
    upstream = rng.normal(size=y.shape).astype(dtype)
    tape.backward(y, upstream)
    padding = None if lengths is None else torch.as_tensor(np.arange(T) >= lengths[:, None])
    want = other(leaf, src_key_padding_mask=padding)
    want.backward(torch.tensor(upstream))
    assert_near(y.data, want.detach().numpy(), tolerance)
    assert_near(x.grad, leaf.grad.numpy(), tolerance)
    compare_gradients(own, other, tolerance)


@pytest.mark.parametrize("masks", ["none", "mask", "lengths", "both"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_torchs_encoder_layers_load(norm_first, masks, rng):
    """Its state dict as it is, and its masks, which mean the opposite."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(3)
    options = {"dim_feedforward": 32, "norm_first": norm_first}
    other = torch.nn.TransformerEncoderLayer(16, 4, batch_first=True, **options).eval()
    own = TransformerEncoderLayer(16, 4, rng=1, **options)
    own.load_state_dict({name: array.numpy() for name, array in other.state_dict().items()})
    own.eval()
    x, given, theirs = rng.normal(size=(N, T, 16)).astype(np.float32), {}, {}
    if masks in ("mask", "both"):
        given["mask"] = (rng.random((T, T)) < 0.5) | (np.arange(T) == 0)
        theirs["src_mask"] = torch.as_tensor(~given["mask"])
    if masks in ("lengths", "both"):
        given["lengths"] = LENGTHS
        theirs["src_key_padding_mask"] = torch.as_tensor(np.arange(T) >= LENGTHS[:, None])
    want = other(torch.from_numpy(x), **theirs).detach().numpy()
    np.testing.assert_allclose(own(x, **given).data, want, rtol=0, atol=1e-5)


def test_causal_attention_does_not_look_ahead(rng):
    own = MultiheadAttention(E, HEADS, causal=True, rng=1, dtype=np.float64)
    x = rng.normal(size=(N, T, E))
    y = own(x).data
    for t in range(1, T):
        np.testing.assert_allclose(own(x[:, :t]).data, y[:, :t], rtol=0, atol=1e-13)


def test_second_derivatives(rng):
    own = MultiheadAttention(4, 2, causal=True, rng=1, dtype=np.float64)
    assert nbbn.gradgradcheck(own, rng.normal(size=(2, 3, 4))) <= 1e-6


def test_dropout_in_training_only(rng):
    own = TransformerEncoderLayer(E, HEADS, dim_feedforward=12, dropout=0.5, rng=1)
    x = rng.normal(size=(N, T, E)).astype(np.float32)
    assert (own(x).data != own(x).data).any()
    own.eval()
    np.testing.assert_array_equal(own(x).data, own(x).data)


def test_embedding_matches_torch(rng):
    torch = pytest.importorskip("torch")
    own = Embedding(7, 3, rng=1, dtype=np.float64)
    other = copied(torch, own, torch.nn.Embedding(7, 3))
    tokens = np.array([[0, 6, 6], [2, 0, 6]], np.int32)
    upstream = rng.normal(size=(2, 3, 3))
    with Tape() as tape:
        y = own(tokens)
    tape.backward(y, upstream)
    want = other(torch.as_tensor(tokens))
    want.backward(torch.tensor(upstream))
    np.testing.assert_array_equal(y.data, want.detach().numpy())
    np.testing.assert_allclose(own.weight.grad, other.weight.grad.numpy(), rtol=0, atol=1e-15)
    np.testing.assert_array_equal(own(Tensor(tokens.astype(float))).data, y.data)
    assert own(np.empty((0, 3), int)).shape == (0, 3, 3)


def test_positions(rng):
    x = rng.normal(size=(N, T, E))
    table = PositionalEmbedding(9, E, learned=False, dtype=np.float64)
    added = table(x).data - x
    for t in range(T):
        for i in range(E // 2):
            angle = t / 10000 ** (2 * i / E)
            np.testing.assert_allclose(added[:, t, 2 * i], np.sin(angle), rtol=0, atol=1e-14)
            np.testing.assert_allclose(added[:, t, 2 * i + 1], np.cos(angle), rtol=0, atol=1e-14)
    learned = PositionalEmbedding(9, E, rng=1, dtype=np.float64)
    with Tape() as tape:
        loss = learned(x).sum()
    tape.backward(loss)
    np.testing.assert_array_equal(learned.weight.grad, [[N] * E] * T + [[0] * E] * (9 - T))
    assert (list(learned.state_dict()), table.parameters()) == (["weight"], [])


def test_recorded_steps_are_the_eager_ones(rng):
    """Tokens to classes: embedding, positions, a causal encoder with dropout."""

    def layers():
        generator = np.random.default_rng(2)
        return (
            Embedding(7, E, rng=generator),
            PositionalEmbedding(T, E, rng=generator),
            TransformerEncoderLayer(E, HEADS, dim_feedforward=12, causal=True, rng=generator),
            nbbn.Flatten(),
            nbbn.Dense(T * E, 2, rng=generator),
        )

    pair, y = Pair(under(layers, adam)), np.array([0, 1, 1])
    assert pair.train([(rng.integers(0, 7, (N, T)).astype("f4"), y) for _ in range(4)]) == 2
    with pytest.raises(ArgumentError, match=r"\[0, 7\).*7 at position 0"):
        pair.step(np.full((N, T), 7, np.float32), y)


X = np.ones((N, T, E), np.float32)
test_what_does_not_fit_is_refused = refusing(
    [
        ("MultiheadAttention(8, 3)", ArgumentError, "3 heads for 8"),
        ("MultiheadAttention(8, 2, dropout=2)", ArgumentError, "dropout"),
        ("own(X[0])", ShapeError, r"\(N, T, 8\).*\(5, 8\)"),
        ("own(X, X[:2])", ShapeError, r"key.*\(2, 5, 8\)"),
        ("own(X, X, X[:, :2])", ShapeError, r"value.*\(3, 5, 8\).*\(3, 2, 8\)"),
        ("own(X, None, X)", ArgumentError, "value needs a key"),
        ("own(X, mask=np.ones((5, 5)))", DTypeError, "bool.*float64"),
        ("own(X, mask=np.ones((5, 4), bool))", ShapeError, r"\(5, 5\).*\(5, 4\)"),
        ("own(X, mask=np.zeros((5, 5), bool))", ArgumentError, "nothing to attend to"),
        ("own(X, lengths=np.array([1, 0, 2]))", ArgumentError, "between 1 and"),
        ("TransformerEncoderLayer(8, 2, activation='relu')", DTypeError, "Module.*str"),
        ("Embedding(7, 3)(np.array([0, 7]))", ArgumentError, r"\[0, 7\).*7 at position 1"),
        ("Embedding(7, 3)(np.array([-1]))", ArgumentError, "-1 at position 0"),
        ("Embedding(7, 3)(np.array([1, -2**63]))", ArgumentError, "-9.22337e.18 at position 1"),
        ("Embedding(7, 3)(Tensor([2, 1.5]))", ArgumentError, "got 1.5 at position 1"),
        ("Embedding(7, 3)(Tensor([np.nan, 1]))", ArgumentError, "got nan at position 0"),
        ("Embedding(7, 3)(Tensor([1, np.inf]))", ArgumentError, "got inf at position 1"),
        ("Embedding(7, 3)([0, 1])", DTypeError, "tokens.*integers, got list"),
        ("Embedding(7, 3)(np.ones(2))", DTypeError, "integers.*float64"),
        ("PositionalEmbedding(4, 8)(X)", ShapeError, r"T <= 4.*\(3, 5, 8\)"),
    ],
    {
        "MultiheadAttention": MultiheadAttention, "Embedding": Embedding, "np": np, "X": X,
        "TransformerEncoderLayer": TransformerEncoderLayer,
        "PositionalEmbedding": PositionalEmbedding, "Tensor": Tensor,
        "own": MultiheadAttention(E, HEADS, rng=1),
    },
)  # fmt: skip
