"""Recurrent layers beside PyTorch's, and normalization inside of them."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
from nbbn import GRU, LSTM, RNN, Parameter, Tape
from nbbn.errors import ArgumentError, DTypeError, ShapeError
from nbbn.nn.recurrent import StepBatchNorm
from tests.helpers.layers import assert_near
from tests.helpers.refusals import refusing

N, T, F, H = 5, 6, 3, 4
LENGTHS = np.array([6, 4, 1, 3, 6])
KINDS = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN, "ReLU": RNN}


def layer(kind: str, **options):
    if kind == "ReLU":
        options["nonlinearity"] = "relu"
    return KINDS[kind](F, H, rng=1, **{"dtype": np.float64, **options})


def torch_layer(torch, kind: str, own: nbbn.Module, options):
    if kind == "ReLU":
        options = {**options, "nonlinearity": "relu"}
    other = getattr(torch.nn, "RNN" if kind == "ReLU" else kind)(F, H, batch_first=True, **options)
    other = other.double()
    other.load_state_dict({k: torch.from_numpy(v) for k, v in own.state_dict().items()})
    return other


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("start", [False, True], ids=["zeros", "initial"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize(("num_layers", "bias"), [(1, True), (2, True), (1, False), (3, False)])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_match_torch(kind, num_layers, bias, bidirectional, start, lengths, rng):
    """Outputs, last states and the gradients of everything, in float64."""
    torch = pytest.importorskip("torch")
    options = {"num_layers": num_layers, "bias": bias, "bidirectional": bidirectional}
    own = layer(kind, **options)
    other = torch_layer(torch, kind, own, options)
    states = 2 if kind == "LSTM" else 1
    x = Parameter(rng.normal(size=(N, T, F)))
    initial = [Parameter(rng.normal(size=(len(own.cells), N, H))) for _ in range(states)]
    given = (tuple(initial) if states == 2 else initial[0]) if start else None
    with Tape() as tape:
        y, state = own.with_state(x, given, lengths)
        several = [y, *(state if states == 2 else (state,))]
        weights = [rng.normal(size=part.shape) for part in several]
        loss = sum((part * w).sum() for part, w in zip(several, weights, strict=True))
    tape.backward(loss)

    leaves = [torch.tensor(p.data, requires_grad=True) for p in (x, *initial)]
    begin = (tuple(leaves[1:]) if states == 2 else leaves[1]) if start else None
    rnn = torch.nn.utils.rnn
    source = leaves[0]
    if lengths is not None:
        source = rnn.pack_padded_sequence(source, lengths, batch_first=True, enforce_sorted=False)
    want, last = other(source, begin)
    if lengths is not None:
        want, _ = rnn.pad_packed_sequence(want, batch_first=True, total_length=T)
    wanted = [want, *(last if states == 2 else (last,))]
    sum((p * torch.tensor(w)).sum() for p, w in zip(wanted, weights, strict=True)).backward()
    for part, expected in zip(several, wanted, strict=True):
        assert_near(part.data, expected.detach().numpy())
    for p, leaf in zip((x, *initial) if start else (x,), leaves, strict=False):
        assert_near(p.grad, leaf.grad.numpy())
    gradients = dict(zip(own.state_dict(), own.parameters(), strict=True))
    for name, parameter in other.named_parameters():
        assert_near(gradients[name].grad, parameter.grad.numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_state_is_named_and_shaped_as_torchs(kind):
    torch = pytest.importorskip("torch")
    options = {"num_layers": 2, "bidirectional": True}
    own = layer(kind, **options)
    other = torch_layer(torch, kind, own, options)
    assert {k: v.shape for k, v in own.state_dict().items()} == {
        k: tuple(v.shape) for k, v in other.state_dict().items()
    }
    again = layer(kind, **options)
    again.load_state_dict({k: v.numpy() for k, v in other.state_dict().items()})
    for name, array in own.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], array)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_near_float64(kind, rng):
    x = rng.normal(size=(N, 30, F))
    wide, narrow = (layer(kind, num_layers=2, dtype=d) for d in (np.float64, np.float32))
    want, got = wide(x).data, narrow(x.astype(np.float32)).data
    assert got.dtype == np.float32
    assert np.abs(got - want).max() <= 2e-6 * max(1, np.abs(want).max())


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_last_is_what_a_classifier_needs(bidirectional, lengths, rng):
    x = rng.normal(size=(N, T, F))
    own = layer("LSTM", bidirectional=bidirectional)
    _, (h, _) = own.with_state(x, lengths=lengths)
    own.last = True
    np.testing.assert_array_equal(own(x, lengths=lengths).data, np.concatenate(h.data, -1))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_beyond_the_end_counts_for_nothing(kind, rng):
    x = rng.normal(size=(N, T, F))
    own = layer(kind, bidirectional=True, num_layers=2)
    y, state = own.with_state(x, lengths=LENGTHS)
    other = np.where(np.arange(T)[:, None] < LENGTHS[:, None, None], x, np.nan)
    again, same = own.with_state(other, lengths=LENGTHS)
    np.testing.assert_array_equal(again.data, y.data)
    for a, b in zip(np.ravel(state), np.ravel(same), strict=True):
        np.testing.assert_array_equal(a.data, b.data)
    for n, length in enumerate(LENGTHS):
        alone = own.with_state(x[n : n + 1, :length])[0].data
        np.testing.assert_allclose(y.data[n, :length], alone[0], rtol=0, atol=1e-13)
        assert (y.data[n, length:] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_empty_batch(kind):
    own = layer(kind, bidirectional=True)
    x = Parameter(np.empty((0, T, F)))
    with Tape() as tape:
        y, _ = own.with_state(x)
        loss = y.sum()
    tape.backward(loss)
    assert y.shape == (0, T, 2 * H)
    assert x.grad.shape == x.shape
    assert all((p.grad == 0).all() for p in own.parameters())


# ------------------------------------------------------------------------------ normalization


def test_batch_norm_is_that_of_cooijmans(rng):
    """Against the equations of the paper, in training and by running statistics, step by step."""
    own = layer("LSTM", normalization="batch", max_steps=4)
    (cell,) = own.cells
    for norm in (cell.norm_ih, cell.norm_hh, cell.norm_cell):
        assert (norm.gamma.data == 0.1).all()
        norm.gamma.data[...] = rng.uniform(0.5, 1.5, norm.gamma.shape)
    cell.norm_cell.beta.data[...] = rng.normal(size=H)
    assert cell.norm_ih.beta is None
    x = rng.normal(size=(N, T, F))
    state = own.state_dict()

    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    counts = {name: [0] * 4 for name in ("ih", "hh", "cell")}
    running = {name: (np.zeros((4, size)), np.ones((4, size)))
               for name, size in (("ih", 4 * H), ("hh", 4 * H), ("cell", H))}  # fmt: skip

    def normalized(name, a, step, training):
        mean, var = (array[min(step, 3)] for array in running[name])
        if training:
            batch = a.mean(0), a.var(0)
            counts[name][min(step, 3)] += 1
            weight = 0.1 / (1 - 0.9 ** counts[name][min(step, 3)])
            mean += weight * (batch[0] - mean)
            var += weight * (batch[1] - var)
            mean, var = batch
        a = (a - mean) / np.sqrt(var + 1e-2) * state[f"norm_{name}_l0.weight"]
        return a + state.get(f"norm_{name}_l0.bias", 0)

    for training in (True, False):
        own.train(training)
        h, c = np.zeros((2, N, H))
        y = []
        for step in range(T):
            gates = normalized("ih", x[:, step] @ state["weight_ih_l0"].T, step, training)
            gates += normalized("hh", h @ state["weight_hh_l0"].T, step, training)
            i, f, g, o = np.split(gates + state["bias_ih_l0"] + state["bias_hh_l0"], 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(normalized("cell", c, step, training))
            y.append(h)
        np.testing.assert_allclose(own(x).data, np.stack(y, 1), rtol=0, atol=1e-12)
    for name, (mean, var) in running.items():
        np.testing.assert_allclose(
            own.state_dict()[f"norm_{name}_l0.running_mean"], mean, atol=1e-12
        )
        np.testing.assert_allclose(own.state_dict()[f"norm_{name}_l0.running_var"], var, atol=1e-12)


@pytest.mark.parametrize("normalization", ["batch", "layer"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
def test_gradients_with_normalization(normalization, lengths, rng):
    own = layer("LSTM", normalization=normalization, bidirectional=True)
    parameters = own.parameters()
    x = rng.normal(size=(N, T, F))
    assert nbbn.gradcheck(lambda a: own(a, lengths=lengths), x, tolerance=1e-6) <= 1e-6
    own.zero_grad()
    with Tape() as tape:
        loss = own(x, lengths=lengths).sum()
    tape.backward(loss)
    for p in parameters:
        value, slope, step = p.data, p.grad, 1e-6
        direction = rng.normal(size=p.shape)
        sums = []
        for sign in (1, -1):
            p.data = value + sign * step * direction
            sums.append(own(x, lengths=lengths).sum().item())
        p.data = value
        expected = (sums[0] - sums[1]) / (2 * step)
        assert abs((slope * direction).sum() - expected) <= 1e-6 * max(1, abs(expected))


@pytest.mark.parametrize("normalization", ["batch", "layer"])
def test_ended_sequences_do_not_count_in_the_statistics(normalization, rng):
    own = layer("LSTM", normalization=normalization)
    x = rng.normal(size=(N, T, F))
    other = np.where(np.arange(T)[:, None] < LENGTHS[:, None, None], x, 1e3)
    np.testing.assert_allclose(
        own(other, lengths=LENGTHS).data, own(x, lengths=LENGTHS).data, rtol=0, atol=1e-12
    )


# ----------------------------------------------------------------------------------- refusals

X = np.ones((N, T, F))
test_what_does_not_fit_is_refused = refusing(
    [
        ("LSTM(0, 4)", ArgumentError, "input_size"),
        ("LSTM(3, 4, num_layers=0)", ArgumentError, "num_layers"),
        ("LSTM(3, 4, normalization='group')", ArgumentError, "normalization.*group"),
        ("LSTM(3, 4, max_steps=0)", ArgumentError, "max_steps"),
        ("StepBatchNorm(4, 5, momentum=0)", ArgumentError, "momentum 0 never"),
        ("RNN(3, 4, nonlinearity='sigmoid')", ArgumentError, "nonlinearity.*sigmoid"),
        ("own(X[0])", ShapeError, r"\(N, T, 3\).*\(6, 3\)"),
        ("own(X[:, :0])", ShapeError, r"T >= 1.*\(5, 0, 3\)"),
        ("own(X[..., :2])", ShapeError, r"\(5, 6, 2\)"),
        ("own(X, lengths=np.zeros(5, int))", ArgumentError, "between 1 and the 6 steps.*0 to 0"),
        ("own(X, lengths=np.full(5, 7))", ArgumentError, "between 1 and the 6 steps.*7"),
        ("own(X, lengths=np.ones(4, int))", ShapeError, r"\(5,\).*\(4,\)"),
        ("own(X, lengths=np.ones(5))", DTypeError, "integers.*float64"),
        ("own(X, X)", DTypeError, "pair"),
        ("own(X, (X, X))", ShapeError, r"\(1, 5, 4\).*\(5, 6, 3\)"),
        ("GRU(3, 4)(X, X)", ShapeError, r"\(1, 5, 4\)"),
    ],
    {
        "LSTM": LSTM,
        "GRU": GRU,
        "RNN": RNN,
        "StepBatchNorm": StepBatchNorm,
        "np": np,
        "X": X,
        "own": layer("LSTM"),
    },
)
