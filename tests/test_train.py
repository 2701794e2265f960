"""The recorded step against the eager one, bit for bit; fit and evaluate on real MNIST."""

from __future__ import annotations

import math
import sys
import threading
import tracemalloc
import warnings

import numpy as np
import pytest

import nbbn
from nbbn import Tape, Tensor, losses, ops, optim
from nbbn.callbacks import Callback
from nbbn.data import Batches, load_mnist
from nbbn.errors import (
    ArgumentError,
    DataError,
    DivergenceError,
    DTypeError,
    NbbnError,
    ShapeError,
)
from nbbn.train import evaluate, fit, record_step

FEATURES, CLASSES = 12, 4


# ------------------------------------------------------------------------------------ a pair


class Pair:
    """The same training twice: through a recorded step, and eagerly, as a user would write it.

    `make` builds a model and its optimizer; it is called twice and must give the same bits.
    """

    def __init__(self, make, loss=losses.cross_entropy):
        self.model, self.optimizer = make()
        self.twin, self.peer = make()
        self.loss = loss
        # The step runs its loss function only where it records or falls back.
        self.runs = 0
        self.step = record_step(self.model, self._counted, self.optimizer)

    def _counted(self, output, y):
        self.runs += 1
        return self.loss(output, y)

    def eager(self, x, y) -> float:
        self.peer.zero_grad()
        with Tape() as tape:
            loss = self.loss(self.twin(x), y)
        tape.backward(loss)
        self.peer.step()
        self.peer.zero_grad()
        return loss.item()

    def train(self, batches) -> int:
        """Run both over `batches`, compare everything after each; return how many replayed."""
        before, count = self.runs, 0
        for x, y in batches:
            copies = x.copy(), y.copy()
            assert self.step(x, y) == self.eager(x, y)
            self.compare()
            np.testing.assert_array_equal(x, copies[0])
            np.testing.assert_array_equal(y, copies[1])
            count += 1
        return count - (self.runs - before)

    def both(self, change) -> None:
        """Apply `change(model, optimizer)` to both."""
        change(self.model, self.optimizer)
        change(self.twin, self.peer)

    def compare(self) -> None:
        """Check that parameters, running statistics and optimizer state hold the same bits."""
        for own, other in ((self.model, self.twin), (self.optimizer, self.peer)):
            state, expected = own.state_dict(), other.state_dict()
            assert state.keys() == expected.keys()
            for name, array in state.items():
                assert array.tobytes() == expected[name].tobytes(), name


def adam_mlp(**options):
    model = nbbn.mlp((FEATURES, 10, 8, CLASSES), rng=1, **options)
    return model, optim.Adam(model.parameters(), 0.01)


def batches(rng, sizes, shape=(FEATURES,), dtype=np.float32, label=np.int64):
    return [
        (rng.normal(size=(n, *shape)).astype(dtype), rng.integers(0, CLASSES, n).astype(label))
        for n in sizes
    ]


# --------------------------------------------------------------------- the same, bit for bit


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
def test_epochs_with_a_short_last_batch(dtype, rng):
    pair = Pair(lambda: adam_mlp(dtype=dtype))
    sizes = [16, 16, 16, 5]
    assert pair.train(batches(rng, sizes, dtype=dtype)) == 1
    # The short batch comes a second time and is recorded again; from then on all replays.
    assert pair.train(batches(rng, sizes, dtype=dtype)) == 3
    for _ in range(3):
        assert pair.train(batches(rng, sizes, dtype=dtype)) == 4
    assert pair.step.refusal is None


MODELS = {
    "logistic regression": lambda: [nbbn.Dense(FEATURES, CLASSES, rng=1)],
    "no batch norm": lambda: nbbn.mlp((FEATURES, 9, CLASSES), batch_norm=False, rng=1),
    "tanh": lambda: nbbn.mlp((FEATURES, 9, CLASSES), activation="tanh", rng=1),
    "sigmoid": lambda: nbbn.mlp((FEATURES, 9, CLASSES), activation="sigmoid", rng=1),
    "batch norm first": lambda: [nbbn.BatchNorm(FEATURES), nbbn.Dense(FEATURES, CLASSES, rng=1)],
    "bias before batch norm": lambda: [
        nbbn.Dense(FEATURES, 9, rng=1),
        nbbn.BatchNorm(9),
        nbbn.ReLU(),
        nbbn.Dense(9, CLASSES, rng=2),
    ],
    "no affine": lambda: [
        nbbn.Dense(FEATURES, 9, rng=1),
        nbbn.BatchNorm(9, affine=False, track_running_stats=False),
        nbbn.Tanh(),
        nbbn.Dense(9, CLASSES, rng=2),
    ],
    "cumulative average": lambda: with_norm(nbbn.BatchNorm(9, momentum=None)),
    "zero-debiased average": lambda: with_norm(nbbn.BatchNorm(9, zero_debias=True)),
    "virtual batches": lambda: with_norm(nbbn.GhostBatchNorm(9, 5, activation="relu")),
    "renormalization": lambda: with_norm(
        nbbn.BatchRenorm(9, r_max=nbbn.Ramp(1, 2, 1, 5), d_max=nbbn.Ramp(0, 1, 2, 6))
    ),
    "in place": lambda: with_norm(nbbn.InPlaceBatchNorm(9)),
    "weights": lambda: with_norm(Weighted()),
    "frozen statistics": lambda: with_norm(nbbn.BatchNorm(9, frozen=True)),
}


class Weighted(nbbn.Module):
    """Weighs the examples of a batch, some of them with 0."""

    def __init__(self):
        self.norm = nbbn.BatchNorm(9, momentum=None)

    def forward(self, x):
        return self.norm(x, weights=np.arange(len(x)) % 4)


def with_norm(norm):
    return [nbbn.Dense(FEATURES, 9, rng=1), norm, nbbn.Tanh(), nbbn.Dense(9, CLASSES, rng=2)]


@pytest.mark.parametrize("name", MODELS)
def test_models(name, rng):
    def make():
        model = nbbn.Sequential(*MODELS[name]())
        return model, optim.SGD(model.parameters(), 0.1, momentum=0.9)

    assert Pair(make).train(batches(rng, [16] * 6)) == 4


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda p: optim.SGD(p, 0.1),
        lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda p: optim.Adam(p, optim.OneCycle(0.05, 12)),
        lambda p: optim.AdamW(p, optim.Cosine(0.05, 12, warmup=3)),
        lambda p: optim.SGD(p, optim.StepDecay(0.1, 2)),
    ],
    ids=["sgd", "nesterov", "adam one-cycle", "adamw cosine", "sgd step"],
)
def test_optimizers_and_schedules(make_optimizer, rng):
    def make():
        model = nbbn.mlp((FEATURES, 9, CLASSES), rng=1, dropout=0.3)
        return model, make_optimizer(model.parameters())

    assert Pair(make).train(batches(rng, [16] * 8)) == 6


def test_dropout_draws_the_same_masks(rng):
    """The masks of a recorded step come from the same generator in the same order."""
    pair = Pair(lambda: adam_mlp(dropout=0.5))
    assert pair.train(batches(rng, [16] * 6)) == 4
    generators = [model[2].rng.bit_generator.state for model in (pair.model, pair.twin)]
    assert generators[0] == generators[1]


def mean_squared(output, y):
    return ((output - y) ** 2).mean()


LOSSES = {
    "softmax and nll": (lambda output, y: losses.nll(ops.softmax(output), y), np.int64),
    "sum": (lambda output, y: losses.cross_entropy(output, y, reduction="sum"), np.int64),
    "weighted": (
        lambda output, y: (losses.cross_entropy(output, y, reduction="none") * 0.5).mean(),
        np.int64,
    ),
    "with a penalty": (
        lambda output, y: losses.cross_entropy(output, y) + 0.1 * (output * output).mean(),
        np.int64,
    ),
    "uint8 labels": (losses.cross_entropy, np.uint8),
    "int32 labels": (losses.cross_entropy, np.int32),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, rng):
    loss, label = LOSSES[name]
    assert Pair(adam_mlp, loss).train(batches(rng, [16] * 5, label=label)) == 3


def test_a_regression_on_float_targets(rng):
    data = [
        (x, rng.normal(size=(16, CLASSES)).astype(np.float32)) for x, _ in batches(rng, [16] * 5)
    ]
    assert Pair(adam_mlp, mean_squared).train(data) == 3


def test_targets_that_the_loss_reshapes(rng):
    data = [
        (x, rng.normal(size=16 * CLASSES).astype(np.float32)) for x, _ in batches(rng, [16] * 5)
    ]
    pair = Pair(adam_mlp, lambda output, y: mean_squared(output, y.reshape(16, CLASSES)))
    assert pair.train(data) == 3


def autoencoder():
    model = nbbn.Sequential(nbbn.Dense(FEATURES, 5, rng=1), nbbn.Dense(5, FEATURES, rng=2))
    return model, optim.SGD(model.parameters(), 0.1)


def test_targets_that_overlap_the_inputs(rng):
    """The next row of a series as the target of each: two views of one array."""
    series = [rng.normal(size=(17, FEATURES)).astype(np.float32) for _ in range(5)]
    data = [(rows[:-1], rows[1:]) for rows in series]
    assert Pair(autoencoder, mean_squared).train(data) == 3


def test_targets_that_are_the_inputs_at_first(rng):
    pair = Pair(autoencoder, mean_squared)
    inputs = [rng.normal(size=(16, FEATURES)).astype(np.float32) for _ in range(6)]
    assert pair.train([(x, x) for x in inputs[:4]]) == 2
    pair.train(list(zip(inputs[:3], inputs[3:], strict=True)))
    pair.train([(x, x) for x in inputs])


def test_a_parameter_that_the_loss_does_not_reach(rng):
    class Partial(nbbn.Module):
        def __init__(self):
            self.used = nbbn.Dense(FEATURES, CLASSES, rng=1)
            self.unused = nbbn.Dense(FEATURES, CLASSES, rng=2)
            self.last = nbbn.Dense(CLASSES, CLASSES, rng=3)

        def forward(self, x):
            return self.last(self.used(x))

    def make():
        model = Partial()
        return model, optim.Adam(model.parameters(), weight_decay=0.1)

    assert Pair(make).train(batches(rng, [16] * 5)) == 3


def image_model():
    model = nbbn.Sequential(
        nbbn.BatchNorm(3),
        nbbn.Flatten(),
        nbbn.Dense(FEATURES, 8, bias=False, rng=1),
        nbbn.BatchNorm(8, activation="relu"),
        nbbn.Dense(8, CLASSES, rng=2),
    )
    return model, optim.SGD(model.parameters(), 0.1, momentum=0.5)


@pytest.mark.parametrize("first", [0, 1], ids=["batch norm first", "flatten first"])
def test_images(first, rng):
    """Flatten takes views of the batch, which must follow from batch to batch."""

    def make():
        model, _ = image_model()
        model = nbbn.Sequential(*model.layers[first:])
        return model, optim.SGD(model.parameters(), 0.1, momentum=0.5)

    pair = Pair(make)
    assert pair.train(batches(rng, [8] * 5, shape=(3, 2, 2))) == 3
    assert pair.train(batches(rng, [8, 3, 8, 3, 8, 3], shape=(3, 2, 2))) == 4


LAYOUTS = {
    "rows of a larger array": lambda x: np.concatenate([x, x])[3 : 3 + len(x)],
    "every second row": lambda x: np.repeat(x, 2, axis=0)[::2],
    "columns of a wider array": lambda x: np.concatenate([x, x], axis=1)[:, : x.shape[1]],
    "fortran": np.asfortranarray,
    "transposed": lambda x: x.T.copy().T,
    "reversed": lambda x: x[::-1].copy()[::-1],
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "unaligned": lambda x: np.frombuffer(b"\0" + x.tobytes(), x.dtype, offset=1).reshape(x.shape),
    "other byte order": lambda x: x.astype(x.dtype.newbyteorder()),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_of_any_layout(layout, rng):
    def make():
        model = nbbn.Sequential(nbbn.BatchNorm(FEATURES), nbbn.Dense(FEATURES, CLASSES, rng=1))
        return model, optim.SGD(model.parameters(), 0.1)

    change = LAYOUTS[layout]
    data = [(change(x), y) for x, y in batches(rng, [16] * 4)]
    assert Pair(make).train(data) == 2


def test_layouts_may_alternate(rng):
    data = batches(rng, [16] * (2 * len(LAYOUTS) + 4))
    changed = [
        (LAYOUTS[layout](x), y)
        for layout, (x, y) in zip([*LAYOUTS, *LAYOUTS], data[4:], strict=True)
        if layout != "other byte order"
    ]
    pair = Pair(adam_mlp)
    pair.train(data[:4])
    # Arrays in Fortran order sum in another order, so they have a plan of their own.
    assert pair.train(changed) == len(changed) - 2


def test_one_buffer_for_all_batches(rng):
    """As Batches(reuse=True) hands them out; the short one is a view of the same buffer."""
    x, y = batches(rng, [16])[0]
    pair = Pair(adam_mlp)

    def refill():
        for n in (16, 16, 5, 16, 5, 16, 5):
            x[...] = rng.normal(size=x.shape)
            y[...] = rng.integers(0, CLASSES, 16)
            yield x[:n], y[:n]

    assert pair.train(refill()) == 3
    assert pair.train(refill()) == 7


def test_read_only_batches_compile_no_kernels(rng):
    """A second compilation for read-only arrays would cost seconds in the middle of an epoch."""
    from nbbn.kernels import batchnorm_cpu, softmax_cpu

    def signatures():
        return sum(
            len(kernel.signatures)
            for module in (batchnorm_cpu, softmax_cpu)
            for value in vars(module).values()
            for kernel in (getattr(value, "serial", None), getattr(value, "parallel", None))
            if kernel is not None
        )

    def make():
        model = nbbn.Sequential(nbbn.BatchNorm(FEATURES), nbbn.Dense(FEATURES, CLASSES, rng=1))
        return model, optim.SGD(model.parameters(), 0.1)

    pair = Pair(make)
    pair.train(batches(rng, [16] * 3))
    before = signatures()
    frozen = [tuple(LAYOUTS["read-only"](a) for a in batch) for batch in batches(rng, [16] * 2)]
    assert pair.train(frozen) == 2
    assert signatures() == before


def test_several_steps_at_the_same_time(rng):
    """Interleaved models do not disturb one another."""
    pairs = [Pair(adam_mlp), Pair(image_model)]
    for _ in range(5):
        pairs[0].train(batches(rng, [16]))
        pairs[1].train(batches(rng, [8], shape=(3, 2, 2)))
    assert [pair.runs for pair in pairs] == [2, 2]


def test_a_model_made_by_another_thread_meanwhile_is_no_hindrance(rng):
    def loss(output, y):
        builder = threading.Thread(target=nbbn.mlp, args=((3, 2),))
        builder.start()
        builder.join()
        return losses.cross_entropy(output, y)

    model, optimizer = adam_mlp()
    step = record_step(model, loss, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in batches(rng, [16] * 3):
            step(*batch)
    assert step.refusal is None


# ------------------------------------------------------------------------- recording again


@pytest.fixture
def trained(rng):
    pair = Pair(adam_mlp)
    assert pair.train(batches(rng, [16] * 3)) == 1
    return pair


def test_an_evaluation_in_between_costs_no_new_recording(trained, rng):
    plans = [*trained.step._plans.values()]
    trained.model.eval()
    trained.model.train()
    assert trained.train(batches(rng, [16] * 2)) == 2
    assert [*trained.step._plans.values()] == plans


def _freeze(parameter):
    parameter.requires_grad = False


def _shrink(model, optimizer):
    for parameter in model.parameters():
        parameter.data *= 0.5


def _replace_weight(model, optimizer):
    model[0].weight.data = model[0].weight.data * 0.5


def _load_state(model, optimizer):
    model.load_state_dict({name: array * 2 for name, array in model.state_dict().items()})


def _load_optimizer(model, optimizer):
    optimizer.load_state_dict({name: array * 0 for name, array in optimizer.state_dict().items()})


def _leave_gradients(model, optimizer):
    with Tape() as tape:
        loss = model(np.ones((4, FEATURES), np.float32)).sum()
    tape.backward(loss)


def _set(which, name, value):
    def change(model, optimizer):
        target = optimizer if which is None else model[which]
        setattr(target, name, value)

    return change


# What is done between two steps -> how many of the next four steps replay at least.
CHANGES = {
    "nothing": (lambda model, optimizer: None, 4),
    "eval": (lambda model, optimizer: model.eval(), 2),
    "eval and back": (lambda model, optimizer: model.eval().train(), 2),
    "one layer in evaluation": (lambda model, optimizer: model[1].eval(), 2),
    "frozen weight": (lambda model, optimizer: _freeze(model[2].weight), 2),
    "frozen gamma": (lambda model, optimizer: _freeze(model[1].gamma), 2),
    "replaced weight": (_replace_weight, 2),
    "loaded model": (_load_state, 2),
    "loaded optimizer": (_load_optimizer, 2),
    "gradients left over": (_leave_gradients, 2),
    "eps of a layer": (_set(1, "eps", 0.1), 2),
    "momentum of a layer": (_set(1, "momentum", 0.5), 2),
    "lr schedule": (_set(None, "schedule", lambda step: 0.2), 2),
    "weight decay": (_set(None, "weight_decay", 0.1), 2),
    "betas": (_set(None, "betas", (0.5, 0.9)), 2),
    "eps of the optimizer": (_set(None, "eps", 0.1), 2),
    "decay of parameters by hand": (_shrink, 2),
    "running statistics by hand": (_set(1, "running_mean", np.ones(10, np.float32)), 2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_between_steps_is_noticed(name, trained, rng):
    change, replayed = CHANGES[name]
    trained.both(change)
    assert trained.train(batches(rng, [16] * 4)) >= replayed
    assert trained.step.refusal is None


def test_thawing_a_frozen_parameter(trained, rng):
    trained.both(lambda model, optimizer: _freeze(model[0].weight))
    trained.train(batches(rng, [16] * 3))
    trained.both(lambda model, optimizer: setattr(model[0].weight, "requires_grad", True))
    trained.train(batches(rng, [16] * 3))


def test_a_frozen_step_replays(rng):
    """Fine-tuning: a step with frozen parameters is worth recording too."""

    def make():
        model, optimizer = adam_mlp()
        _freeze(model[0].weight)
        return model, optimizer

    assert Pair(make).train(batches(rng, [16] * 5)) == 3


@pytest.mark.parametrize(
    ("name", "value"), [("nesterov", True), ("momentum", 0.2), ("weight_decay", 0.3)]
)
def test_a_changed_setting_of_sgd_is_noticed(name, value, rng):
    def make():
        model = nbbn.mlp((FEATURES, 9, CLASSES), rng=1)
        return model, optim.SGD(model.parameters(), 0.1, momentum=0.9)

    pair = Pair(make)
    pair.train(batches(rng, [16] * 3))
    pair.both(_set(None, name, value))
    pair.train(batches(rng, [16] * 4))


def test_a_replaced_layer_is_noticed(rng):
    class Net(nbbn.Module):
        def __init__(self):
            self.body = nbbn.Dense(FEATURES, 8, rng=1)
            self.head = nbbn.Dense(8, CLASSES, rng=2)

        def forward(self, x):
            return self.head(ops.tanh(self.body(x)))

    def make():
        model = Net()
        return model, optim.SGD(model.body.parameters(), 0.1)

    def change(model, optimizer):
        model.head = nbbn.Dense(8, CLASSES, rng=3)
        for parameter in model.head.parameters():
            _freeze(parameter)

    pair = Pair(make)
    pair.both(lambda model, optimizer: [_freeze(p) for p in model.head.parameters()])
    pair.train(batches(rng, [16] * 3))
    pair.both(change)
    pair.train(batches(rng, [16] * 3))


def test_another_number_of_features_is_refused_without_harm(trained, rng):
    wrong = rng.normal(size=(16, FEATURES + 1)).astype(np.float32)
    with pytest.raises(ShapeError, match=r"\(16, 13\)"):
        trained.step(wrong, np.zeros(16, np.int64))
    assert trained.train(batches(rng, [16] * 2)) >= 1


def test_many_batch_shapes(rng):
    pair = Pair(adam_mlp)
    sizes = list(range(2, 14))
    for _ in range(3):
        pair.train(batches(rng, sizes))


# ------------------------------------------------------------------------------ falling back


class Doubled(nbbn.Op):
    """Computes with NumPy directly, and says so by not being recordable."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, dy):
        return 2 * dy


class WithOp(nbbn.Module):
    def forward(self, x):
        return nbbn.apply(Doubled, x)


class Centred(nbbn.Module):
    """Does NumPy on the batch where no recorder looks."""

    def forward(self, x):
        return x - x.data.mean(axis=0)


class Scaled(nbbn.Module):
    """Puts a number that depends on the batch into the graph."""

    def forward(self, x):
        return x * float(np.abs(x.data).max())


class Counting(nbbn.Module):
    """Keeps a count in an attribute and computes with it."""

    def __init__(self):
        self.count = 0

    def forward(self, x):
        self.count += 1
        return x * (1 / self.count)


class Noisy(nbbn.Module):
    """Adds noise drawn outside the recorded operations."""

    def __init__(self):
        self.rng = np.random.default_rng(4)

    def forward(self, x):
        return x + self.rng.normal(size=x.shape).astype(np.float32)


class Alternating(nbbn.Module):
    """Takes another path on every other call."""

    def __init__(self):
        self.calls = []

    def forward(self, x):
        self.calls.append(None)
        return x * 2 if len(self.calls) % 2 else x


@pytest.mark.parametrize("layer", [WithOp, Centred, Scaled, Counting, Noisy, Alternating])
def test_what_cannot_be_recorded_runs_eagerly_and_says_so_once(layer, rng):
    def make():
        model = nbbn.Sequential(layer(), nbbn.Dense(FEATURES, CLASSES, rng=1))
        return model, optim.Adam(model.parameters(), 0.01)

    pair = Pair(make)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert pair.train(batches(rng, [16, 16, 16, 5, 16, 5])) == 0
    assert [w.category for w in caught] == [RuntimeWarning]
    assert "runs eagerly" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert pair.step.refusal in str(caught[0].message)


def test_the_reason_names_the_operation(rng):
    model = nbbn.Sequential(WithOp(), nbbn.Dense(FEATURES, CLASSES, rng=1))
    step = record_step(model, losses.cross_entropy, optim.SGD(model.parameters()))
    with pytest.warns(RuntimeWarning, match="Doubled"):
        step(*batches(rng, [4])[0])


@pytest.mark.parametrize("layer", [Centred, Scaled])
def test_two_equal_batches_prove_nothing(layer, rng):
    """What is computed from the batch looks constant while the batch is the same."""

    def make():
        model = nbbn.Sequential(layer(), nbbn.Dense(FEATURES, CLASSES, rng=1))
        return model, optim.SGD(model.parameters(), 0.01)

    first, second = batches(rng, [16, 16])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        Pair(make).train([first, first, first, second, second])


def test_a_recordable_operation_of_a_user_is_recorded(rng):
    from nbbn import backend

    class Half(nbbn.Op):
        recordable = True

        @staticmethod
        def forward(ctx, x):
            y = backend.empty(x.shape, x.dtype)
            backend.run(np.multiply, x, 0.5, y)
            return y

        @staticmethod
        def backward(ctx, dy):
            return Half.forward(ctx, dy)

    class Layer(nbbn.Module):
        def forward(self, x):
            return nbbn.apply(Half, x)

    def make():
        model = nbbn.Sequential(
            nbbn.Dense(FEATURES, 8, rng=0), Layer(), nbbn.Dense(8, CLASSES, rng=1)
        )
        return model, optim.Adam(model.parameters(), 0.01)

    assert Pair(make).train(batches(rng, [16] * 5)) == 3


def test_parameters_of_no_optimizer_fall_back_and_stay_right(rng):
    """Their gradients add up from step to step, which a replay could not do."""

    def make():
        model, _ = adam_mlp()
        return model, optim.SGD(model[-1].parameters(), 0.1)

    pair = Pair(make)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        pair.train(batches(rng, [16] * 5))
    for own, other in zip(pair.model.parameters(), pair.twin.parameters(), strict=True):
        assert (own.grad is None) == (other.grad is None)
        if own.grad is not None:
            np.testing.assert_array_equal(own.grad, other.grad)


# ------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("wrong", [-1, CLASSES, 200])
@pytest.mark.parametrize("label", [np.int64, np.int16])
def test_a_label_out_of_range_stops_a_replayed_step(wrong, label, rng):
    pair = Pair(adam_mlp)
    data = batches(rng, [16] * 6, label=label)
    assert pair.train(data[:3]) == 1
    before = [pair.model.state_dict(), pair.optimizer.state_dict()]
    x, y = data[3]
    bad = y.copy()
    bad[5] = wrong
    with pytest.raises(ArgumentError, match=rf"got {wrong} at position 5"):
        pair.step(x, bad)
    for own, kept in zip((pair.model, pair.optimizer), before, strict=True):
        for name, array in own.state_dict().items():
            if "running" not in name and "tracked" not in name:
                np.testing.assert_array_equal(array, kept[name])
    # The eager forward moved the running statistics before its loss failed, too.
    with pytest.raises(ArgumentError):
        pair.eager(x, bad)
    assert pair.train(data[3:]) == 3


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([[0.0] * FEATURES] * 2, np.zeros(2, int)),
        (np.zeros((2, FEATURES), np.float32), [0, 1]),
        (Tensor(np.zeros((2, FEATURES), np.float32)), np.zeros(2, int)),
        (np.zeros((2, FEATURES), np.uint8), np.zeros(2, int)),
        (np.zeros((2, FEATURES), complex), np.zeros(2, int)),
        (np.zeros((2, FEATURES), np.float32), np.zeros(2)),
    ],
)
def test_a_step_takes_arrays_of_the_right_type(x, y):
    model, optimizer = adam_mlp()
    with pytest.raises(DTypeError):
        record_step(model, losses.cross_entropy, optimizer)(x, y)


def test_record_step_checks_what_it_is_given():
    model, optimizer = adam_mlp()
    for arguments, found in (
        ((losses.cross_entropy, losses.cross_entropy, optimizer), "function"),
        ((model, "cross_entropy", optimizer), "str"),
        ((model, losses.cross_entropy, "adam"), "str"),
        ((model, losses.cross_entropy, model.parameters()), "list"),
    ):
        with pytest.raises(DTypeError, match=found):
            record_step(*arguments)


def test_the_loss_must_be_one_number(rng):
    model, optimizer = adam_mlp()
    step = record_step(model, lambda output, y: output, optimizer)
    with pytest.raises(NbbnError, match=r"\(16, 4\)"):
        step(*batches(rng, [16])[0])


@pytest.mark.parametrize("returned", [None, 1.0, np.float32(1)])
def test_the_loss_must_be_a_tensor(returned, rng):
    model, optimizer = adam_mlp()
    step = record_step(model, lambda output, y: returned, optimizer)
    with pytest.raises(NbbnError, match=type(returned).__name__):
        step(*batches(rng, [16])[0])


def test_an_error_while_recording_leaves_nothing_behind(rng):
    model, optimizer = adam_mlp()
    fail = [True]

    def loss(output, y):
        if fail[0]:
            raise RuntimeError("stop")
        return losses.cross_entropy(output, y)

    step = record_step(model, loss, optimizer)
    data = batches(rng, [16] * 4)
    with pytest.raises(RuntimeError, match="stop"):
        step(*data[0])
    fail[0] = False
    for x, y in data:
        assert math.isfinite(step(x, y))
    assert step.refusal is None


# ------------------------------------------------------------------------------------ memory


def _allocated(call) -> int:
    """Bytes that `call` allocates at its peak, on top of what there was."""
    tracemalloc.start()
    try:
        call()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_a_replayed_step_allocates_nothing_of_the_size_of_an_array(rng):
    rows = 8192
    model = nbbn.mlp((FEATURES, 64, 64, CLASSES), rng=1, dropout=0.2)
    step = record_step(model, losses.cross_entropy, optim.Adam(model.parameters()))
    *first, (x, y) = batches(rng, [rows] * 4)
    for batch in first:
        step(*batch)
    # The smallest arrays with a row per example hold one float32 each.
    assert _allocated(lambda: step(x, y)) < 4 * rows


@pytest.mark.parametrize("rows", [128, 4096])
@pytest.mark.parametrize("recorded", [False, True], ids=["eager", "recorded"])
def test_peak_memory_is_what_has_to_be_kept(recorded, rows, rng):
    """At most 1.2 times parameters, gradients, optimizer state and what forward saves."""
    features, widths = 784, (256, 128)
    data = [
        (rng.normal(size=(rows, features)).astype(np.float32), rng.integers(0, 10, rows))
        for _ in range(4)
    ]
    tracemalloc.start()
    try:
        model = nbbn.mlp((features, *widths, 10), rng=1)
        optimizer = optim.Adam(model.parameters())
        step = record_step(model, losses.cross_entropy, optimizer)
        tracemalloc.reset_peak()
        for x, y in data:
            if recorded:
                step(x, y)
            else:
                step._eager(x, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    parameters = sum(p.data.nbytes for p in model.parameters())
    # Each hidden layer saves the input and the output of its BatchNorm, the last its logits.
    saved = 4 * rows * (2 * sum(widths) + 10)
    assert peak <= 1.2 * (4 * parameters + saved)


def test_a_plan_keeps_the_batch_of_the_caller_only_while_it_runs(rng):
    model, optimizer = adam_mlp()
    step = record_step(model, losses.cross_entropy, optimizer)
    data = batches(rng, [16] * 4)
    for batch in data:
        step(*batch)
    # Here: the tuple in `data`, the loop variable and the argument of getrefcount.
    assert [sys.getrefcount(x) for x, _ in data] == [3] * 4


# ---------------------------------------------------------------------------- fit, evaluate


@pytest.fixture(scope="module")
def mnist():
    try:
        return load_mnist()
    except DataError as error:
        pytest.skip(f"MNIST cannot be had here: {error}")


@pytest.fixture
def small(mnist):
    """2,000 training and 1,000 test images."""
    train = Batches(mnist.train_images[:2000], mnist.train_labels[:2000], 128, rng=0)
    test = Batches(mnist.test_images[:1000], mnist.test_labels[:1000], 256, shuffle=False)
    return train, test


def test_fit_learns_mnist(small):
    train, test = small
    model = nbbn.mlp((784, 64, 10), rng=0)
    optimizer = optim.Adam(model.parameters(), optim.OneCycle(0.01, 5 * len(train)))
    before = evaluate(model, test)
    history = fit(model, train, optimizer, epochs=5, test=test)
    assert before.accuracy < 0.3
    assert history[-1].test.accuracy > 0.85
    assert history[-1].test.loss < before.loss / 4
    assert history[-1].loss < history[0].loss / 4
    assert [epoch.epoch for epoch in history] == [1, 2, 3, 4, 5]
    assert optimizer.step_count == 5 * len(train)
    assert model.training
    for epoch in history:
        assert epoch.seconds > 0
        assert epoch.images_per_second == pytest.approx(2000 / epoch.seconds)
        assert epoch.test.count == 1000


def test_fit_is_the_same_for_the_same_seed(mnist):
    states = []
    for _ in range(2):
        train = Batches(mnist.train_images[:500], mnist.train_labels[:500], 64, rng=3)
        model = nbbn.mlp((784, 16, 10), rng=3, dropout=0.1)
        history = fit(model, train, optim.SGD(model.parameters(), 0.1, momentum=0.9), epochs=2)
        state = b"".join(array.tobytes() for array in model.state_dict().values())
        states.append((state, [epoch.loss for epoch in history]))
    assert states[0] == states[1]


def steps_to(loss: float, mnist, lr: float, batch_norm: bool) -> float:
    """Steps of SGD on every other pixel until the mean loss of ten batches is below `loss`."""
    images = (mnist.train_images[:2000, ::2, ::2].reshape(2000, -1) / 255).astype(np.float32)
    labels = mnist.train_labels[:2000]
    rng = np.random.default_rng(0)
    model = nbbn.mlp((196, 32, 32, 32, 10), batch_norm=batch_norm, rng=rng)
    step = record_step(model, losses.cross_entropy, optim.SGD(model.parameters(), lr))
    recent: list[float] = []
    for _ in range(15):
        for index in np.split(rng.permutation(2000), 20):
            recent.append(step(images[index], labels[index]))
            if len(recent) >= 10 and np.mean(recent[-10:]) < loss:
                return len(recent)
    return math.inf


@pytest.mark.parametrize("lr", [0.1, 0.5])
def test_batch_norm_trains_in_fewer_steps(lr, mnist):
    with_norm, without = (steps_to(0.4, mnist, lr, batch_norm) for batch_norm in (True, False))
    assert with_norm < without


def test_evaluate_measures_and_restores(small, rng):
    _, test = small
    model = nbbn.mlp((784, 16, 10), rng=0)
    model[1].eval()
    before = model.state_dict()
    found = evaluate(model, test)
    assert [module.training for module in model.modules()] == [True, True, False, True]
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    model.eval()
    x, y = next(iter(Batches(test._images, test._labels, 1000, shuffle=False)))
    output = model(x)
    assert found.count == 1000
    assert found.accuracy == np.mean(output.data.argmax(axis=1) == y)
    assert found.loss == pytest.approx(losses.cross_entropy(output, y).item(), rel=1e-6)


def test_evaluate_of_a_regression_has_a_loss_and_no_accuracy(rng):
    model = nbbn.Dense(4, 3, rng=0)
    x, y = rng.normal(size=(2, 9, 4)).astype(np.float32)
    found = evaluate(
        model, [(x, y[:, :3])], loss=lambda output, target: ((output - target) ** 2).mean()
    )
    np.testing.assert_allclose(found.loss, np.mean((model(x).data - y[:, :3]) ** 2), rtol=1e-6)
    assert np.isnan(found.accuracy)
    assert found.count == 9


def test_evaluate_restores_after_an_error(rng):
    model, _ = adam_mlp()
    images = rng.normal(size=(8, FEATURES)).astype(np.float32)
    test = Batches(images, np.full(8, CLASSES), 4)
    with pytest.raises(ArgumentError, match=f"got {CLASSES}"):
        evaluate(model, test)
    assert all(module.training for module in model.modules())


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid:RuntimeWarning")
def test_fit_stops_when_training_diverges(rng):
    images = rng.normal(size=(64, FEATURES)).astype(np.float32)
    train = Batches(images, rng.integers(0, CLASSES, 64), 16, rng=0)
    model = nbbn.mlp((FEATURES, 8, CLASSES), batch_norm=False, rng=0)
    pattern = (
        r"step \d+ of epoch \d+.*diverged; the output of layer \d, \w+.*no check.*learning rate"
    )
    with pytest.raises(DivergenceError, match=pattern):
        fit(model, train, optim.SGD(model.parameters(), 1e20), epochs=3)
    assert all(np.isfinite(p.data).all() for p in model.parameters())


@pytest.mark.filterwarnings("error")
def test_a_loss_weighted_by_class_is_recorded_and_pytorchs(rng):
    torch = pytest.importorskip("torch")
    weights = nbbn.Tensor(rng.uniform(0.1, 3.0, CLASSES).astype(np.float32))

    def weighted(output, y):
        weight = weights[y]
        each = losses.cross_entropy(output, y, reduction="none")
        return (each * weight).sum() / weight.sum()

    model, optimizer = adam_mlp()
    step = record_step(model, weighted, optimizer)
    criterion = torch.nn.CrossEntropyLoss(weight=torch.from_numpy(weights.numpy()))
    for _ in range(4):
        x = rng.normal(size=(9, FEATURES)).astype(np.float32)
        y = rng.integers(0, CLASSES, 9)
        state = model.state_dict()
        output = torch.from_numpy(model(x).numpy())
        model.load_state_dict(state)
        assert step(x, y) == pytest.approx(criterion(output, torch.from_numpy(y)).item(), rel=1e-5)
    assert step.refusal is None


def test_fit_tells_data_that_are_not_finite_from_divergence(rng):
    images = rng.normal(size=(8, FEATURES))
    images[5, 2] = np.nan
    model, optimizer = adam_mlp()
    train = Batches(images, np.zeros(8, int), 4, shuffle=False)
    pattern = "step 2 of epoch 1: the batch itself holds NaN or Inf; repair such examples"
    with pytest.raises(DivergenceError, match=pattern) as told:
        fit(model, train, optimizer, epochs=1)
    assert "learning rate" not in str(told.value)


def test_a_loss_that_is_not_finite_in_evaluation_is_told(rng, caplog):
    images = rng.normal(size=(12, FEATURES))
    images[[5, 9], 2] = np.nan
    model, _ = adam_mlp()
    before = model.state_dict()
    evaluate(model, Batches(images, np.zeros(12, int), 4, rows=np.array([0, 1, 2, 3])))
    assert not caplog.messages
    found = evaluate(model, Batches(images, np.zeros(12, int), 4, shuffle=False))
    assert math.isnan(found.loss)
    assert caplog.messages == ["the loss is nan in evaluation: the batch itself is not finite"]
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("epochs", [0, -1, 1.5, "3", None, True])
def test_fit_checks_the_number_of_epochs(epochs, rng):
    model, optimizer = adam_mlp()
    train = Batches(np.zeros((8, FEATURES), np.float32), np.zeros(8, int), 4)
    with pytest.raises((ArgumentError, DTypeError), match="epochs"):
        fit(model, train, optimizer, epochs=epochs)


def test_fit_refuses_features_that_do_not_fit(rng):
    model, optimizer = adam_mlp()
    train = Batches(np.zeros((8, FEATURES + 1), np.float32), np.zeros(8, int), 4)
    with pytest.raises(ShapeError, match=r"\(4, 13\)"):
        fit(model, train, optimizer, epochs=1)


class Diary(Callback):
    def __init__(self):
        self.entries = []

    def start(self, run):
        self.entries.append("start")

    def step(self, run):
        self.entries.append(run.total / run.count)

    def epoch(self, run, result):
        self.entries.append(result)

    def end(self, run):
        self.entries.append("end")

    def close(self):
        self.entries.append("close")


def test_callbacks_are_told_everything_in_order(rng):
    model, optimizer = adam_mlp()
    images = rng.normal(size=(20, FEATURES)).astype(np.float32)
    train = Batches(images, rng.integers(0, CLASSES, 20), 8, rng=0)
    diary = Diary()
    first, second = fit(model, train, optimizer, epochs=2, callbacks=[diary])
    entries = diary.entries
    assert [entries[i] for i in (0, 4, 8, 9, 10)] == ["start", first, second, "end", "close"]
    assert [entries[3], entries[7]] == [first.loss, second.loss]
    assert len(entries) == 11
    assert first.accuracy is None


def test_callbacks_are_closed_after_an_error(rng):
    model, optimizer = adam_mlp()
    train = Batches(np.zeros((8, FEATURES + 1), np.float32), np.zeros(8, int), 4)
    diary = Diary()
    with pytest.raises(ShapeError):
        fit(model, train, optimizer, epochs=1, callbacks=[diary])
    assert diary.entries == ["start", "close"]


def test_training_accuracy_counts_every_step(rng):
    """The recorded and the replayed steps count what an eager loop counts."""
    images = rng.normal(size=(70, FEATURES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, 70)

    class Counting(Callback):
        counts_right = True

    model, optimizer = adam_mlp()
    train = Batches(images, labels, 8, rng=0)
    history = fit(model, train, optimizer, epochs=3, callbacks=[Counting()])
    model, optimizer = adam_mlp()
    train = Batches(images, labels, 8, rng=0)
    expected = []
    for _ in range(3):
        right = 0
        for x, y in train:
            with nbbn.Tape() as tape:
                output = model(x)
                loss = losses.cross_entropy(output, y)
            right += np.count_nonzero(output.data.argmax(axis=1) == y)
            tape.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        expected.append(right / 70)
    assert [epoch.accuracy for epoch in history] == expected


@pytest.mark.parametrize("which", ["batches", "test", "validation"])
def test_fit_takes_batches_not_arrays(which, rng):
    model, optimizer = adam_mlp()
    arrays = (np.zeros((8, FEATURES), np.float32), np.zeros(8, int))
    data = {"batches": Batches(*arrays, 4), which: arrays}
    with pytest.raises(DTypeError, match=r"got arrays \(tuple\): pass nbbn.data.Batches"):
        fit(model, optimizer=optimizer, epochs=1, **data)
    with pytest.raises(DTypeError, match="got arrays"):
        evaluate(model, arrays)


def test_a_batch_size_beyond_the_data_is_said(rng, caplog):
    model, optimizer = adam_mlp()
    train = Batches(np.zeros((8, FEATURES), np.float32), np.zeros(8, int), 16)
    fit(model, train, optimizer, epochs=1)
    assert "batch size 16 exceeds the 8 training examples" in caplog.text


def test_gradient_norm(rng):
    x, y = rng.normal(size=(16, FEATURES)).astype(np.float32), rng.integers(0, CLASSES, 16)
    model, optimizer = adam_mlp()
    step = record_step(model, losses.cross_entropy, optimizer)
    twin, _ = adam_mlp()
    for scale in (1, 2, 3, 4):
        twin.load_state_dict(model.state_dict())
        step(x * scale, y)
        with nbbn.Tape() as tape:
            loss = losses.cross_entropy(twin(x * scale), y)
        tape.backward(loss)
        expected = np.sqrt(sum((p.grad.astype(float) ** 2).sum() for p in twin.parameters()))
        twin.zero_grad()
        assert optimizer.gradient_norm() == pytest.approx(expected, rel=1e-6)
