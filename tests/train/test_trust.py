"""What users put into a step: it is replayed only if nothing of it would be left out.

Every step here is compared with the eager one bit for bit, by `Pair`.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
import warnings

import numpy as np
import pytest

import nbbn
from nbbn import Convention, Tensor, backend, losses, ops, optim
from nbbn.train.loop import record_step
from tests.helpers import training_pair
from tests.helpers.training_pair import CLASSES, FEATURES, Pair, adam_mlp, batches, under


def small(*layers, optimizer=lambda p: optim.SGD(p, 0.1)):
    first, last = (FEATURES, 6), (6, CLASSES)
    return under(
        lambda: [nbbn.Dense(*first, rng=1), *(f() for f in layers), nbbn.Dense(*last, rng=2)],
        optimizer,
    )


def replayed(pair, data) -> tuple[int, list[str]]:
    """Train both, and return how many steps replayed and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = pair.train(data)
    assert all(w.category is RuntimeWarning for w in caught)
    # Where the step was called: in Pair.train.
    assert all(w.filename == training_pair.__file__ for w in caught)
    return count, [str(w.message) for w in caught]


def runs_eagerly(pair, data, *words) -> None:
    """Check that a step never replays, and says so once, with these words."""
    count, messages = replayed(pair, data)
    assert count == 0
    assert len(messages) == 1
    assert all(word in messages[0] for word in (*words, "runs eagerly", pair.step.refusal))


# ------------------------------------------------------------------------- the same batch


@pytest.mark.parametrize("layers", [(), (nbbn.ReLU, lambda: nbbn.BatchNorm(6))], ids=["1", "2"])
def test_full_batch_training_replays_from_the_third_step_on(layers, rng):
    (batch,) = batches(rng, [16])
    pair = Pair(small(*layers))
    assert replayed(pair, [batch] * 8) == (6, [])
    assert pair.step.recordings == 2


def test_a_batch_that_the_loss_holds_as_well(rng):
    """The loss reads all targets itself; a batch of other ones must not take their place."""
    (x, y), (_, other) = batches(rng, [16, 16])

    pair = Pair(small(), lambda output, _: losses.cross_entropy(output, y))
    assert replayed(pair, [(x, y)] * 4 + [(x, other)] * 2) == (4, [])


# ------------------------------------------------------------------------- own optimizers


class SignSGD(optim.Optimizer):
    def step(self):
        self.step_count += 1
        for p in self.parameters:
            if p.grad is not None:
                p.data -= np.float32(0.01) * np.sign(p.grad)


class Update(optim.SGD):
    def _update(self, hyper, grad, data, states):
        data -= np.float32(0.01) * np.sign(grad)


class Clipping(optim.Adam):
    def step(self):
        for p in self.parameters:
            np.clip(p.grad, -1e-3, 1e-3, out=p.grad)
        super().step()


class Accumulating(optim.SGD):
    """Updates with the sum of two batches' gradients."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.calls = 0

    def step(self):
        self.calls += 1
        if self.calls % 2 == 0:
            super().step()

    def zero_grad(self):
        if self.calls % 2 == 0:
            super().zero_grad()


@pytest.mark.parametrize("kind", [SignSGD, Update, Clipping, Accumulating])
def test_an_optimizer_of_a_users_own_is_not_left_out(kind, rng):
    pair = Pair(small(optimizer=lambda p: kind(p, 0.01)))
    runs_eagerly(pair, batches(rng, [16] * 6), kind.__name__, "set recordable = True in class")


def test_sign_sgd_moves_the_weights(rng):
    model, optimizer = small(optimizer=lambda p: SignSGD(p, 0.01))()
    before = model[0].weight.data.copy()
    step = record_step(model, losses.cross_entropy, optimizer)
    first, *rest = batches(rng, [16] * 20)
    with pytest.warns(RuntimeWarning, match=r"SignSGD\.step would be skipped"):
        step(*first)
    for batch in rest:
        step(*batch)
    assert np.abs(model[0].weight.data - before).max() > 0.05


def test_a_step_that_is_put_on_an_optimizer_is_noticed(rng):
    def patch(model, optimizer):
        update = optimizer.step

        def step():
            for p in optimizer.parameters:
                p.grad *= 0.5
            update()

        optimizer.step = step

    pair = Pair(small())
    assert replayed(pair, batches(rng, [16] * 4)) == (2, [])
    pair.both(patch)
    runs_eagerly(pair, batches(rng, [16] * 3), "SGD.step")


class Declared(optim.Optimizer):
    """Sign-SGD that launches."""

    recordable = True

    def _hyper(self, lr, group, count):
        return ()

    def _update(self, hyper, grad, data, states):
        direction = backend.empty(grad.shape, grad.dtype)
        backend.run(np.sign, grad, direction)
        backend.run(np.multiply, direction, 0.01, direction)
        backend.run(np.subtract, data, direction, data)


class Annealed(optim.SGD):
    """Its rate is computed anew in every step."""

    def _hyper(self, lr, group, count):
        return super()._hyper(lr / (1 + count), group, count)


# ------------------------------------------------------------------------- schedules


class Clip:
    """A schedule that clips the gradients, which a user may well do there; and counts calls."""

    def __init__(self, parameters):
        self.parameters, self.steps = parameters, []

    def __call__(self, step):
        self.steps.append(step)
        norm = math.sqrt(
            sum(float((p.grad**2).sum()) for p in self.parameters if p.grad is not None)
        )
        for p in self.parameters:
            if p.grad is not None:
                p.grad *= min(1.0, 0.05 / (norm + 1e-6))
        return 0.1


def test_a_schedule_runs_once_a_step_and_sees_the_gradients(rng):
    def make():
        model, _ = small()()
        optimizer = optim.SGD(model.parameters(), 0.1)
        optimizer.schedule = Clip(model.parameters())
        return model, optimizer

    pair = Pair(make)
    assert replayed(pair, batches(rng, [16] * 6)) == (4, [])
    assert pair.optimizer.schedule.steps == pair.peer.schedule.steps
    assert all(p.grad is None for p in pair.model.parameters())


# ------------------------------------------------------------------------- own layers


class TutorialNorm(nbbn.Module):
    """Running statistics as tutorials write them: updated in place, by NumPy."""

    def __init__(self):
        self.rm, self.gamma = np.zeros(6, np.float32), nbbn.Parameter(np.ones(6))

    def forward(self, x):
        mean = x.mean(axis=0, keepdims=True)
        self.rm *= 0.9
        self.rm += 0.1 * mean.data[0]
        return (x - mean) * self.gamma


class Growing(nbbn.Module):
    def __init__(self):
        self.seen = []

    def forward(self, x):
        self.seen.append(len(x))
        return x


class Printing(nbbn.Module):
    def forward(self, x):
        print("forward")
        return x


class Noise(nbbn.Module):
    def __init__(self):
        self.rng = np.random.default_rng(3)

    def forward(self, x):
        return x * self.rng.random()


class Constant(nbbn.Module):
    """A factor drawn once by NumPy's own generator."""

    def forward(self, x):
        return x * np.random.default_rng(0).random()


class ByValue(nbbn.Module):
    def forward(self, x):
        return x * 2 if x.data.mean() > 0 else x


class Centred(nbbn.Module):
    """Does NumPy on the batch where no recorder looks."""

    def forward(self, x):
        return x - x.data.mean(axis=0)


class Scaled(nbbn.Module):
    """Puts a number that depends on the batch into the graph."""

    def forward(self, x):
        return x * float(np.abs(x.data).max())


class Alternating(nbbn.Module):
    """Takes another path on every other call."""

    def __init__(self):
        self.calls = []

    def forward(self, x):
        self.calls.append(None)
        return x * 2 if len(self.calls) % 2 else x


class Half(nbbn.ReLU):
    """Not what it inherits from."""

    def forward(self, x):
        return Tensor(x.data / 2, requires_grad=True)


class OwnDropout(nbbn.Dropout):
    """Its probability is computed whenever it is read."""

    def __init__(self):
        self.calls = 0
        super().__init__(0.5, rng=0)

    @property
    def p(self):
        vars(self)["calls"] += 1
        return 0.1 * (vars(self)["calls"] % 3)

    @p.setter
    def p(self, value):
        pass


class OwnFollow(nbbn.BatchNorm):
    def __init__(self):
        super().__init__(6)
        self.means = []

    def _follow(self, stats):
        self.means.append(float(stats.mean[0]))
        super()._follow(stats)


class Doubled(ops.ReLU):
    """Inherits from a recordable operation and computes by NumPy."""

    @staticmethod
    def forward(ctx, x):
        return 2 * ops.ReLU.forward(ctx, x)


class WithDoubled(nbbn.Module):
    def forward(self, x):
        return nbbn.apply(Doubled, x)


class Plain(nbbn.Op):
    """Computes by NumPy, and says so by not being recordable."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, dy):
        return 2 * dy


class WithPlain(nbbn.Module):
    def forward(self, x):
        return nbbn.apply(Plain, x)


class Counting(nbbn.Module):
    """Keeps a count in an attribute and computes with it."""

    def __init__(self):
        self.count = 0

    def forward(self, x):
        self.count += 1
        return x * (1 / self.count)


class Scheduled(nbbn.Module):
    """Switches an attribute of its own in every step."""

    def __init__(self):
        self.flag = False

    def forward(self, x):
        self.flag = not self.flag
        return x * 2 if self.flag else x


LAYERS = [
    TutorialNorm, Growing, Printing, Noise, Constant, ByValue, Half, OwnDropout, OwnFollow,
    WithDoubled, WithPlain, Scheduled, Counting, Centred, Scaled, Alternating,
]  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("same", [False, True])
def test_a_layer_that_does_more_than_launch_is_not_left_out(layer, same, rng, capsys):
    """Not even where the same batch comes in every step."""
    data = batches(rng, [16, 16, 16, 5, 16, 5])
    pair = Pair(small(layer))
    word = {WithDoubled: "Doubled", WithPlain: "Plain"}.get(layer, "recordable")
    runs_eagerly(pair, data[:1] * 6 if same else data, word)
    own, other = (vars(model[1]) for model in (pair.model, pair.twin))
    for name in ("rm", "seen", "means", "flag"):
        np.testing.assert_array_equal(own.get(name), other.get(name))
    if layer is Printing:
        assert capsys.readouterr().out == "forward\n" * 12


class Counted(nbbn.Parameter):
    """Counts how often it receives a gradient."""

    __slots__ = ("count",)

    def _accumulate(self, gradient):
        self.count = getattr(self, "count", 0) + 1
        super()._accumulate(gradient)


def test_a_parameter_that_does_more_than_hold_data_is_not_left_out(rng):
    class Bias(nbbn.Module):
        recordable = True

        def __init__(self):
            self.bias = Counted(np.zeros(6))

        def forward(self, x):
            return x + self.bias

    pair = Pair(small(Bias))
    runs_eagerly(pair, batches(rng, [16] * 5), "Counted")
    assert pair.model[1].bias.count == pair.twin[1].bias.count == 5


# ------------------------------------------------------------------------- what needs no word


class Composed(nbbn.Module):
    """Does what a forward usually does."""

    scale = 0.5

    def __init__(self):
        self.first, self.norm = nbbn.Dense(6, 6, rng=3), nbbn.BatchNorm(6)
        self.skip = None
        self.drop = nbbn.Dropout(0.3, rng=1)
        self.layers = (nbbn.Dense(6, 6, rng=5), nbbn.Tanh())
        self.gate = nbbn.Parameter(np.full(6, 0.5, np.float32))

    def children(self):
        yield from super().children()
        yield from ((str(n), layer) for n, layer in enumerate(self.layers))

    def _mix(self, a, b):
        return a * self.scale + b * self.gate

    def forward(self, x):
        """Combine layers."""
        identity = x if self.skip is None else self.skip(x)
        h = ops.relu(self.norm(self.first(x)))
        if self.training and x.ndim == 2:
            h = self.drop(h)
        for layer in self.layers:
            h = layer(h)
        rows, columns = h.shape
        h = h.reshape(rows, columns, 1).transpose(0, 2, 1).reshape(-1, columns)
        h += identity
        return self._mix(h, x[:, ::-1])


class Residual(nbbn.Sequential):
    def forward(self, x, weights=None):
        return x + super().forward(x, weights) / math.sqrt(2)


FACTOR = 0.5


def smoothed(output, y, *, weight=0.1):
    return losses.cross_entropy(output, y) * FACTOR + weight * (output**2).mean()


def sum_of_two(x):
    return ops.stack([x, ops.tanh(x)]).sum(0)


class WithFactor(nbbn.Module):
    factor = 1.0

    def __init__(self):
        self.factor = 3.0

    def forward(self, x):
        return x * self.factor


def frozen_first():
    model, _ = small()()
    for p in model[0].parameters():
        p.requires_grad = False
    return model, optim.SGD(model[1].parameters(), 0.1)


# What makes a model and its optimizer, and the loss.
REPLAYED = {
    "declared optimizer": (small(optimizer=lambda p: Declared(p, 0.01)), losses.cross_entropy),
    "hyper": (small(optimizer=lambda p: Annealed(p, 0.1)), losses.cross_entropy),
    "own forward": (small(Composed), losses.cross_entropy),
    "super": (small(lambda: Residual(nbbn.Dense(6, 6, rng=1), nbbn.ReLU())), losses.cross_entropy),
    "def": (small(), smoothed),
    "partial": (small(), functools.partial(smoothed, weight=0.2)),
    "partial of nbbn's": (small(), functools.partial(losses.cross_entropy, reduction="sum")),
    "lambda": (small(), lambda output, y: losses.nll(ops.softmax(output), y)),
    "index": (small(), lambda output, y: losses.nll(ops.softmax(output) * 1.0, y)),
    "list": (small(), lambda output, y: losses.cross_entropy(sum_of_two(output), y)),
    "declared": (small(), nbbn.recordable(lambda output, y: [losses.cross_entropy(output, y)][0])),
}


@pytest.mark.parametrize(("make", "loss"), REPLAYED.values(), ids=REPLAYED)
def test_what_only_composes_replays(make, loss, rng):
    assert replayed(Pair(make, loss), batches(rng, [16] * 6)) == (4, [])


# The same, and what is then done to both.
NOTICED = {
    "global number": (small(), smoothed, lambda *_: smoothed.__globals__.update(FACTOR=2.0)),
    "deleted attribute": (
        small(WithFactor), losses.cross_entropy, lambda model, _: delattr(model[1], "factor"),
    ),
    "data of a parameter of no optimizer": (
        frozen_first, losses.cross_entropy,
        lambda model, _: setattr(model[0].weight, "data", model[0].weight.data * 2),
    ),
}  # fmt: skip


class Annealing:
    """A loss with a setting of its class."""

    weight = 0.0

    def part(self, output):
        return (output * output).mean()

    def __call__(self, output, y):
        return losses.cross_entropy(output, y) + self.weight * self.part(output)


class InheritsScale(WithFactor):
    pass


def keyword(output, y, *, weight=0.1):
    return losses.cross_entropy(output, y) + weight * (output**2).mean()


def twice(self, output):
    return 2 * (output * output).mean()


# What is done to the loss, or to what it uses, and how it is made.
NOTICED_OF_LOSSES = {
    "attribute of an instance over that of its class": (
        Annealing, lambda loss: setattr(loss, "weight", 10.0),
    ),
    "method of an instance over that of its class": (
        Annealing, lambda loss: setattr(loss, "part", functools.partial(twice, loss)),
    ),
    "attribute of a subclass over that of its base": (
        lambda: type("Derived", (Annealing,), {})(),
        lambda loss: setattr(type(loss), "weight", 10.0),
    ),
    "setting of a global object": (
        lambda: lambda output, y: losses.cross_entropy(output, y) * SETTINGS.weight,
        lambda loss: setattr(SETTINGS, "weight", 5.0),
    ),
    "number of NumPy's by name": (
        lambda: lambda output, y: losses.huber(output, output.detach() * 0.5, delta=DELTA),
        lambda loss: loss.__globals__.update(DELTA=np.float64(0.01)),
    ),
    "keyword of a partial": (
        lambda: functools.partial(keyword, weight=0.2),
        lambda loss: loss.keywords.update(weight=3.0),
    ),
    "keyword's default": (
        lambda: keyword, lambda loss: loss.__kwdefaults__.update(weight=7.0),
    ),
    "code": (
        lambda: other_name, lambda loss: setattr(loss, "__code__", smoothed.__code__),
    ),
}  # fmt: skip


def other_name(output, y, *, weight=0.1):
    return losses.cross_entropy(output, y)


SETTINGS = Annealing()
DELTA = np.float64(2.0)


@pytest.mark.parametrize(("make", "change"), NOTICED_OF_LOSSES.values(), ids=NOTICED_OF_LOSSES)
def test_a_change_of_the_loss_is_noticed(make, change, rng, monkeypatch):
    for function in (keyword, other_name):  # and back afterwards
        monkeypatch.setitem(function.__kwdefaults__, "weight", 0.1)
    monkeypatch.setattr(other_name, "__code__", other_name.__code__)
    monkeypatch.setitem(globals(), "DELTA", DELTA)
    loss = make()
    pair = Pair(small(), loss)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert pair.train(batches(rng, [16] * 4)) == 2
        change(loss)
        pair.train(batches(rng, [16] * 4))


class Slope(nbbn.Module):
    """A layer whose number is an array that changes in place."""

    def __init__(self):
        self.slope = np.array([0.1])
        self.window = np.array([1, 3])

    def forward(self, x):
        return ops.leaky_relu(x, slope=self.slope[0])


class Window(Slope):
    def forward(self, x):
        return x[:, self.window[0] :].sum(1, keepdims=True) + x


SMOOTHING = np.array(0.0)
# Numbers of the batch and of arrays that become settings: each is the same in two batches.
FROZEN = {
    "delta": lambda output, y: losses.huber(output, output.detach() * 0.5, delta=y.max()),
    "ignored": lambda output, y: losses.cross_entropy(output, y, ignore_index=y[0]),
    "power": lambda output, y: (
        losses.cross_entropy(output, y) + (output * output).mean() ** y.max()
    ),
    "slope": lambda output, y: losses.cross_entropy(ops.leaky_relu(output, slope=y.max()), y),
    "start": lambda output, y: losses.cross_entropy(output, y) + output[:, y[0] :].mean(),
    "array": lambda output, y: losses.cross_entropy(output, y, label_smoothing=SMOOTHING),
}


@pytest.mark.parametrize("loss", FROZEN.values(), ids=FROZEN)
def test_a_number_of_numpy_that_becomes_a_setting_is_not_frozen(loss, rng, monkeypatch):
    monkeypatch.setattr(f"{__name__}.SMOOTHING", np.array(0.0), raising=False)
    pair = Pair(small(), loss)
    data = [(x, np.minimum(y, 1 + (n > 3))) for n, (x, y) in enumerate(batches(rng, [16] * 7))]
    for n, (_, y) in enumerate(data):
        y[:2] = n > 3, 1 + (n > 3)
    with pytest.warns(RuntimeWarning, match=r"by float\(\)|outside the recorded operations"):
        assert pair.train(data[:4]) == 0
    SMOOTHING[...] = 0.5
    assert pair.train(data[4:]) == 0


@pytest.mark.parametrize("kind", [Slope, Window])
def test_a_number_of_an_array_that_changes_in_place_is_not_frozen(kind, rng):
    pair = Pair(small(kind))
    with pytest.warns(RuntimeWarning, match=r"by float\(\)|outside the recorded operations"):
        assert pair.train(batches(rng, [16] * 4)) == 0

    def change(model, _):
        model[1].slope[0], model[1].window[0] = 0.9, 3

    pair.both(change)
    assert pair.train(batches(rng, [16] * 2)) == 0


def test_threads_that_share_a_step_take_turns(rng):
    data = batches(rng, [16] * 40)
    pair = Pair(small(lambda: nbbn.BatchNorm(6)))
    pair.train(data[:3])
    failed = []

    def train():
        try:
            for _ in range(50):
                pair.step(*data[0])
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=train) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(200):
        pair.eager(*data[0])
    assert not failed
    pair.compare()


@pytest.mark.parametrize(("make", "loss", "change"), NOTICED.values(), ids=NOTICED)
def test_a_change_is_noticed(make, loss, change, rng, monkeypatch):
    monkeypatch.setitem(smoothed.__globals__, "FACTOR", FACTOR)  # and back afterwards
    pair = Pair(make, loss)
    assert replayed(pair, batches(rng, [16] * 4)) == (2, [])
    pair.both(change)
    assert replayed(pair, batches(rng, [16] * 4)) == (2, [])


def test_a_variable_of_a_closure_that_changes_is_noticed(rng):
    weights = Tensor(rng.uniform(0.5, 2, CLASSES).astype(np.float32))

    def loss(output, y):
        return (losses.cross_entropy(output, y, reduction="none") * weights[y]).mean()

    pair = Pair(small(), loss)
    assert replayed(pair, batches(rng, [16] * 4)) == (2, [])
    weights.data *= 2
    assert replayed(pair, batches(rng, [16] * 2)) == (2, [])
    weights.data = weights.data * 2
    assert replayed(pair, batches(rng, [16] * 4)) == (2, [])
    weights = Tensor(np.ones(CLASSES, np.float32))
    assert replayed(pair, batches(rng, [16] * 4)) == (2, [])


# ------------------------------------------------------------------------- what cannot be read

SEEN: list[int] = []
TABLE = (0.1, 0.2, 0.3, 0.4)
ARRAY = np.linspace(0, 1, CLASSES, dtype=np.float32)


def _loop(output, y):
    loss = losses.cross_entropy(output, y)
    while loss.ndim:
        loss = loss.mean()
    return loss


def _in_place(output, y):
    y *= 1
    return losses.cross_entropy(output, y)


def _write(output, y):
    y[0] = 1
    return losses.cross_entropy(output, y)


def _rebound(output, y):
    if y.ndim == 1:
        output = y
    output += 1
    return losses.cross_entropy(output, y)


def _caught(output, y):
    try:
        return losses.cross_entropy(output, y)
    finally:
        SEEN.append(1)


def _several(output, y):
    total = losses.cross_entropy(output, y)
    for _ in range(int(y.max()) + 1):
        total = total + total
    return total


UNREADABLE = {
    "while": _loop,
    "in place": _in_place,
    "write": _write,
    "rebound": _rebound,
    "try": _caught,
    "count by value": _several,
    "append": lambda output, y: (SEEN.append(1), losses.cross_entropy(output, y))[1],
    "choice by value": lambda output, y: losses.cross_entropy(output, y) * TABLE[y[0]],
    "comparison": lambda output, y: losses.cross_entropy(output, y) * (y[0] in (1, 2)),
    "length": lambda output, y: losses.cross_entropy(output, y) * len((1,) * y[0]),
    "float": lambda output, y: losses.cross_entropy(output, y) * float(y[0]),
    "data": lambda output, y: losses.cross_entropy(output, y) * float(output.data[0, 0]),
    "item": lambda output, y: losses.cross_entropy(output, y) * (1 + output.sum().item()),
    "walrus": lambda output, y: losses.cross_entropy((z := output), y) + 0 * z.sum(),
    "out": lambda output, y: losses.cross_entropy(output, y) + 0 * y.sum(out=np.zeros((), int)),
    "out of a global": lambda output, y: (
        losses.cross_entropy(output, y) + (output * 0).sum() * ARRAY.sum(0, None, ARRAY)
    ),
    "comprehension": lambda output, y: sum(losses.cross_entropy(o, y) for o in (output, output)),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_function_that_cannot_be_read_runs_eagerly(name, rng):
    data = [(x, y.clip(1)) for x, y in batches(rng, [16] * 5)]
    pair = Pair(small(), UNREADABLE[name])
    try:
        count, messages = replayed(pair, data)
    except Exception:  # some are no losses at all
        count, messages = 0, [pair.step.refusal]
    assert count == 0
    assert len(messages) == 1
    assert "nbbn.recordable" in messages[0]


def test_numpy_of_the_batch_is_seen_where_its_result_is_used(rng):
    def loss(output, y):
        return losses.cross_entropy(output, y) * y.mean()

    one, *others = batches(rng, [16] * 3)
    for data in ([one, *others], [one, one, *others]):
        runs_eagerly(Pair(small(), loss), data, "multiply", "outside the recorded operations")


def test_a_list_of_labels_is_seen_where_it_is_used(rng):
    def loss(output, y):
        return losses.cross_entropy(output, y) + output[[y[0]]].mean()

    runs_eagerly(Pair(small(), loss), batches(rng, [16] * 5), "_take", "computed outside")


def test_a_function_without_source_has_to_be_declared(rng):
    names = {"losses": losses}
    exec("def loss(output, y):\n    return losses.cross_entropy(output, y)", names)
    runs_eagerly(Pair(small(), names["loss"]), batches(rng, [16] * 4), "source", "nbbn.recordable")
    pair = Pair(small(), nbbn.recordable(names["loss"]))
    assert replayed(pair, batches(rng, [16] * 4)) == (2, [])


def test_a_declaration_is_not_inherited_by_another_forward(rng):
    class Said(nbbn.Module):
        recordable = True

        def forward(self, x):
            return [x * 2][0]

    class Unsaid(Said):
        def forward(self, x):
            return Tensor(x.data * 3, requires_grad=True)

    assert replayed(Pair(small(Said)), batches(rng, [16] * 4)) == (2, [])
    runs_eagerly(Pair(small(Unsaid)), batches(rng, [16] * 4), "Unsaid")


# ------------------------------------------------------------------------- false declarations


class FalseNorm(TutorialNorm):
    recordable = True

    def forward(self, x):
        return super().forward(x)


class FalseOp(nbbn.Op):
    """Computes by NumPy in memory that a recorder has handed out."""

    recordable = True

    @staticmethod
    def forward(ctx, x):
        y = backend.empty(x.shape, x.dtype)
        np.multiply(x, 3, out=y)
        return y

    @staticmethod
    def backward(ctx, dy):
        return FalseOp.forward(ctx, dy)


class WithFalseOp(nbbn.Module):
    def forward(self, x):
        return nbbn.apply(FalseOp, x)


class Replacing(nbbn.Module):
    recordable = True

    def __init__(self):
        self.kept = [np.zeros(6, np.float32)]

    def forward(self, x):
        self.kept[0] = self.kept[0] * 0.9 + x.data.mean(axis=0)
        return x


class Outside(nbbn.Module):
    recordable = True

    def forward(self, x):
        return x * np.ones(6, np.float32)


class FalseUpdate(optim.SGD):
    recordable = True
    _update = Update._update


@nbbn.recordable
def writes_into_the_batch(output, y):
    y[:] = 0
    return losses.cross_entropy(output, y)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (FalseNorm, "rm in FalseNorm"),
        (WithFalseOp, "another loss"),
        (Replacing, "replaces arrays"),
        (Outside, "outside the recorded operations"),
    ],
)
@pytest.mark.parametrize("same", [False, True])
def test_a_layer_that_is_falsely_declared_is_found(layer, words, same, rng):
    data = batches(rng, [16] * 6)
    pair = Pair(small(layer))
    runs_eagerly(pair, data[:1] * 6 if same else data, words)
    if hasattr(pair.model[1], "rm"):
        np.testing.assert_array_equal(pair.model[1].rm, pair.twin[1].rm)


def test_an_optimizer_that_is_falsely_declared_is_found(rng):
    pair = Pair(small(optimizer=lambda p: FalseUpdate(p, 0.1)))
    runs_eagerly(pair, batches(rng, [16] * 6), "a replay leaves other numbers in")


@pytest.mark.parametrize(
    ("forms", "reason"),
    [
        ((lambda x: x * 2.0, lambda x: x * 2.0 * 1.0), "the arrays that the step allocates change"),
        ((lambda x: x * 2.0, lambda x: x + 2.0), "change"),
        ((lambda x: x * 2.0, lambda x: x * 3.0), "an argument of multiply"),
    ],
)
def test_a_declaration_that_is_wrong_is_found_out(forms, reason, rng):
    turns = itertools.cycle(forms)

    class Declared(nbbn.Module):
        recordable = True

        def forward(self, x):
            return next(turns)(x)

    model, optimizer = small(Declared)()
    step = record_step(model, losses.cross_entropy, optimizer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for x, y in batches(rng, [16] * 4):
            step(x, y)
    assert [w.category for w in caught] == [RuntimeWarning]
    assert reason in step.refusal


def test_a_loss_that_writes_into_the_batch_is_found(rng):
    model, optimizer = small()()
    step = record_step(model, writes_into_the_batch, optimizer)
    (x, y), (other, z) = batches(rng, [16] * 2)
    step(x, y + 1)
    with pytest.warns(RuntimeWarning, match="writes into the batch"):
        step(other, z + 1)


# ------------------------------------------------------------------------- nothing process-wide


def test_another_thread_that_builds_models_disturbs_no_replay(rng):
    done = threading.Event()

    def build():
        while not done.is_set():
            nbbn.mlp((3, 4, 2), rng=0).eval().train()[0].extra = 1

    model, optimizer = adam_mlp()
    step = record_step(model, losses.cross_entropy, optimizer)
    builder = threading.Thread(target=build)
    builder.start()
    try:
        for batch in batches(rng, [16] * 50):
            step(*batch)
    finally:
        done.set()
        builder.join()
    assert step.recordings == 2


# ------------------------------------------------------------------------- in fit


def test_fit_leaves_out_nothing(rng):
    data = nbbn.data.Batches(*batches(rng, [32])[0], 16, shuffle=False)
    pair = Pair(small(TutorialNorm))
    with pytest.warns(RuntimeWarning, match=r"TutorialNorm\.forward would be skipped"):
        nbbn.train.fit(pair.model, data, pair.optimizer, epochs=5)
    for _ in range(5):
        for batch in data:
            pair.eager(*batch)
    pair.compare()
    np.testing.assert_array_equal(pair.model[1].rm, pair.twin[1].rm)


def test_fit_replays_a_loss_that_only_composes(rng, monkeypatch):
    steps = []

    def remember(*args):
        steps.append(record_step(*args))
        return steps[0]

    monkeypatch.setattr("nbbn.train.loop.record_step", remember)
    data = nbbn.data.Batches(*batches(rng, [32])[0], 16, shuffle=False)
    model, optimizer = small()()
    nbbn.train.fit(model, data, optimizer, epochs=5, loss=smoothed)
    assert (steps[0].recordings, steps[0].refusal) == (2, None)


# ------------------------------------------------------------------------- all of it at once


class Gate(nbbn.Module):
    """Another way in evaluation."""

    def forward(self, x):
        return ops.tanh(x) if self.training else x * 0.5


PIECES = [
    nbbn.ReLU, nbbn.Tanh, Composed, Gate, lambda: nbbn.Dropout(0.3, rng=4),
    lambda: nbbn.BatchNorm(6, convention=Convention(momentum=None)),
    lambda: Residual(nbbn.Dense(6, 6, rng=1)),
    TutorialNorm, Growing, Noise, ByValue, Counting, WithDoubled, FalseNorm, Replacing, OwnFollow,
]  # fmt: skip
OPTIMIZERS = [
    lambda p: optim.SGD(p, 0.1, momentum=0.9),
    lambda p: optim.Adam(p, optim.Cosine(0.01, 20, warmup=2)),
    lambda p: optim.AdamW(p, lambda step: 0.01 / (1 + step)),
    lambda p: Declared(p, 0.01),
    lambda p: Clipping(p, 0.01),
    lambda p: Accumulating(p, 0.1),
]
BETWEEN = [
    lambda model, optimizer: None,
    lambda model, optimizer: model.eval(),
    lambda model, optimizer: model.train(),
    lambda model, optimizer: setattr(model[0].weight, "requires_grad", False),
    lambda model, optimizer: setattr(model[0].weight, "requires_grad", True),
    lambda model, optimizer: np.clip(model[-1].weight.data, -0.1, 0.1, out=model[-1].weight.data),
    lambda model, optimizer: setattr(model[-1].bias, "data", model[-1].bias.data * 0.5),
    lambda model, optimizer: setattr(optimizer, "schedule", lambda step: 0.02),
    lambda model, optimizer: model[0](np.ones((2, FEATURES), np.float32)),
]


def python_side(model) -> list[str]:
    """What a model keeps outside of parameters and buffers."""
    kept = []
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, np.random.Generator):
                value = value.bit_generator.state
            if isinstance(value, list | dict | int | np.ndarray) and name != "_version":
                kept.append(f"{name} {value!r}")
    return kept


@pytest.mark.parametrize("seed", range(40))
def test_random_steps_are_the_eager_ones(seed):
    rng = np.random.default_rng(seed)
    # Some of the pieces alone, and together with others.
    layers = [PIECES[n] for n in rng.integers(0, len(PIECES), 1 + seed % 3)]
    if seed % 2:
        layers = [PIECES[n] for n in rng.integers(0, 7, 2)]
    optimizer = OPTIMIZERS[rng.integers(0, len(OPTIMIZERS) if seed % 4 == 0 else 4)]
    loss = [losses.cross_entropy, smoothed, lambda output, y: losses.cross_entropy(output, y) * 2]
    pair = Pair(small(*layers, optimizer=optimizer), loss[rng.integers(3)])
    data = batches(rng, [16, 16, 5]) if seed % 3 else batches(rng, [16])
    total, messages = 0, []
    with np.errstate(all="ignore"):
        for _ in range(5):
            action = BETWEEN[rng.integers(0, len(BETWEEN))]
            pair.both(action)
            steps = [data[n] for n in rng.integers(0, len(data), 4)]
            count, warned = replayed(pair, steps)
            total, messages = total + count, messages + warned
            assert python_side(pair.model) == python_side(pair.twin)
    assert len(messages) <= 1
    if seed % 2 and seed % 4:
        assert pair.step.refusal is None
