"""fit and evaluate on real MNIST, callbacks, divergence."""

from __future__ import annotations

import contextlib
import math

import numba
import numpy as np
import pytest

import nbbn
from nbbn import backend, losses, optim
from nbbn.data import Batches, load_mnist
from nbbn.errors import ArgumentError, DataError, DivergenceError, DTypeError, ShapeError
from nbbn.kernels import _cache
from nbbn.train import loop
from nbbn.train.callbacks import Callback
from nbbn.train.loop import evaluate, fit, record_step
from nbbn.train.progress import Bar, Lines
from tests.helpers.clock import Clock
from tests.helpers.layers import state_of
from tests.helpers.training_pair import CLASSES, FEATURES, adam_mlp


def numbers(rng, rows=8, size=4, labels=None):
    """Batches of normal numbers, all of class 0 where no `labels` are given."""
    images = rng.normal(size=(rows, FEATURES)).astype(np.float32)
    return Batches(images, np.zeros(rows, int) if labels is None else labels, size, rng=0)


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
    before = state_of(model)
    found = evaluate(model, test)
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert state_of(model) == before
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
    with pytest.raises(ArgumentError, match=f"got {CLASSES}"):
        evaluate(model, numbers(rng, labels=np.full(8, CLASSES)))
    assert all(module.training for module in model.modules())


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid:RuntimeWarning")
def test_fit_stops_when_training_diverges(rng):
    train = numbers(rng, 64, 16, rng.integers(0, CLASSES, 64))
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
    pattern = (
        r"step 2 of epoch 1 \(2 in all\): the batch itself holds NaN or Inf; .*; repair such "
        "examples"
    )
    with pytest.raises(DivergenceError, match=pattern) as told:
        fit(model, train, optimizer, epochs=1)
    assert "learning rate" not in str(told.value)


@pytest.mark.filterwarnings("ignore:this training step runs eagerly:RuntimeWarning")
@pytest.mark.parametrize("eager", [False, True])
def test_the_model_is_as_before_the_step_that_diverged(rng, eager):
    class Eager(nbbn.ReLU):
        def forward(self, x):
            np.random.default_rng()
            return super().forward(x)

    model = nbbn.Sequential(
        nbbn.Dense(FEATURES, 8, rng=0), nbbn.BatchNorm(8), Eager() if eager else nbbn.ReLU(),
        nbbn.Dense(8, CLASSES, rng=1),
    )  # fmt: skip
    optimizer = optim.Adam(model.parameters())
    x = rng.normal(size=(20, FEATURES)).astype(np.float32)
    y = rng.integers(0, CLASSES, 20)
    batches = Batches(x, y, 4, shuffle=False)
    fit(model, batches, optimizer, epochs=2)
    states = []

    class Watch(Callback):
        def step(self, run):
            states.append(state_of(run.model))

    damaged = Batches(np.where(np.arange(20)[:, None] == 14, np.nan, x), y, 4, shuffle=False)
    pattern = r"nan at step 4 of epoch 1 \(14 in all\): .*; the model is as before this step; "
    with pytest.raises(DivergenceError, match=pattern):
        fit(model, damaged, optimizer, epochs=1, callbacks=[Watch()])
    assert len(states) == 3
    assert state_of(model) == states[-1]
    assert math.isfinite(evaluate(model, batches).loss)
    nbbn.fold(model)


def test_a_loss_that_is_not_finite_in_evaluation_is_told(rng, caplog):
    images = rng.normal(size=(12, FEATURES))
    images[[5, 9], 2] = np.nan
    model, _ = adam_mlp()
    before = state_of(model)
    evaluate(model, Batches(images, np.zeros(12, int), 4, rows=np.array([0, 1, 2, 3])))
    assert not caplog.messages
    found = evaluate(model, Batches(images, np.zeros(12, int), 4, shuffle=False))
    assert math.isnan(found.loss)
    assert caplog.messages == [
        "the loss is nan in evaluation: the batch itself holds NaN or Inf; repair such examples or "
        "leave them out"
    ]
    assert state_of(model) == before


class Own(nbbn.Op):
    """An operation of a user's, which makes what it should not."""

    @staticmethod
    def forward(ctx, x):
        return np.full_like(x, -np.inf)

    @staticmethod
    def backward(ctx, dy):
        return dy


class LogOfNothing(nbbn.Module):
    def forward(self, x):
        return (x * 0).log()


SLIPS = {
    "log of 0": (lambda out, y: (out * 0).log().mean(), "Log takes the logarithm of 0 in the loss"),
    "log below 0": (
        lambda out, y: (out * 0 - 2).log().mean(),
        "Log takes the logarithm of the negative number -2 in the loss.*keep its input above 0",
    ),
    "0 / 0": (lambda out, y: (out * 0).mean() / (out * 0).sum(),
              "Divide divides by 0 in the loss.*keep its divisor away from 0"),
    "1 / 0": (lambda out, y: 1 / (out * 0).sum(), "Divide divides by 0 in the loss"),
    "root": (lambda out, y: ((out * 0 - 3) ** 0.5).mean(),
             "Power takes a power that it does not have of the negative number -3 in the loss"),
    "power of 0": (lambda out, y: ((out * 0) ** -1).mean(),
                   "Power takes a power that it does not have of 0 in the loss"),
    "exp": (lambda out, y: (out * 0 + 90).exp().mean(),
            "Exp takes the exponential of 90, which overflows float32.*subtract the largest value"),
    "own": (lambda out, y: nbbn.apply(Own, out).mean(),
            "Own makes -inf of values up to .*Own.forw"),
    "probabilities": (
        lambda out, y: losses.nll((out * 0).exp() - 1, y),
        "Log takes the logarithm of 0 in the loss.*logits, such as nbbn.losses.cross_entropy",
    ),
    "constant": (lambda out, y: ((out - math.nan) ** 2).mean(),
                 "Subtract gets a constant NaN or Inf in the loss"),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", SLIPS)
def test_a_loss_that_is_not_finite_names_the_operation(name, rng, caplog):
    loss, reason = SLIPS[name]
    model, optimizer = adam_mlp()
    before = [p.data.copy() for p in model.parameters()]
    train = numbers(rng)
    with pytest.raises(DivergenceError, match=rf"at step 1 of epoch 1 .*: .*{reason}") as told:
        fit(model, train, optimizer, epochs=1, loss=loss)
    if name != "exp":
        assert "learning rate" not in str(told.value)
    for parameter, old in zip(model.parameters(), before, strict=True):
        np.testing.assert_array_equal(parameter.data, old)
    evaluate(model, train, loss=loss)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("the loss is ")


@pytest.mark.filterwarnings("error")
def test_a_layer_that_is_not_finite_is_named_with_its_operation(rng):
    model = nbbn.Sequential(nbbn.Dense(FEATURES, CLASSES, rng=0), LogOfNothing())
    with pytest.raises(DivergenceError, match=r"logarithm of 0 in layer 1, .*LogOfNothing"):
        fit(model, numbers(rng), optim.SGD(model.parameters()), epochs=1)


@pytest.mark.filterwarnings("error")
def test_overflow_is_divergence_and_names_the_operation(rng):
    model, _ = adam_mlp()
    pattern = (
        r"diverged; the output of layer \d, Dense.* is the first that is not finite: Linear of "
        r"values up to .*e\+\d+ overflows float32; .*try a smaller learning rate, or standardize"
    )
    with pytest.raises(DivergenceError, match=pattern):
        fit(model, numbers(rng), optim.SGD(model.parameters(), 1e38), epochs=9)


@pytest.mark.filterwarnings("error")
def test_targets_that_are_not_finite_are_named(rng):
    model, optimizer = adam_mlp()
    x = rng.normal(size=(8, FEATURES)).astype(np.float32)
    y = np.full((8, CLASSES), np.nan, np.float32)
    with pytest.raises(DivergenceError, match=r"the targets hold NaN or Inf; .*repair such"):
        fit(model, [(x, y)], optimizer, epochs=1, loss=lambda out, y: ((out - y) ** 2).mean())


@pytest.mark.parametrize("use", [fit, evaluate])
@pytest.mark.parametrize(
    ("x", "y"),
    [((0, FEATURES), (0,)), ((4, FEATURES), (0,)), ((0, FEATURES), (4,)), ((), (4,)), ((4, 9), ())],
)
def test_a_batch_without_rows_is_refused(use, x, y, caplog):
    model, optimizer = adam_mlp()
    batch = [(np.zeros(x, np.float32), np.zeros(y, int))]
    rest = {"optimizer": optimizer, "epochs": 1} if use is fit else {}
    with pytest.raises(ShapeError, match=r"needs at least one row, but its [xy] has shape"):
        use(model, batch, **rest)
    assert optimizer.step_count == 0
    assert not caplog.messages


def test_an_accuracy_of_until_is_enough(rng):
    model, optimizer = adam_mlp()
    train = numbers(rng)
    history = fit(model, train, optimizer, epochs=200, test=train, until=1.0)
    assert len(history) < 200
    assert [epoch.epoch for epoch in history if epoch.test.accuracy == 1] == [len(history)]


@pytest.mark.parametrize("epochs", [0, -1, 1.5, "3", None, True])
def test_fit_checks_the_number_of_epochs(epochs, rng):
    model, optimizer = adam_mlp()
    with pytest.raises((ArgumentError, DTypeError), match="epochs"):
        fit(model, numbers(rng), optimizer, epochs=epochs)


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
    """And the loss of an epoch is the mean over its examples."""

    class Losses(Callback):
        def step(self, run):
            seen.append((run.loss, len(run.y)))

    seen = []
    model, optimizer = adam_mlp()
    train = numbers(rng, 20, 8, rng.integers(0, CLASSES, 20))
    diary = Diary()
    first, second = fit(model, train, optimizer, epochs=2, callbacks=[Losses(), diary])
    entries = diary.entries
    assert [entries[i] for i in (0, 4, 8, 9, 10)] == ["start", first, second, "end", "close"]
    assert [entries[3], entries[7]] == [first.loss, second.loss]
    assert len(entries) == 11
    assert first.accuracy is None
    assert [count for _, count in seen] == [8, 8, 4] * 2
    for epoch, part in ((first, seen[:3]), (second, seen[3:])):
        mean = sum(loss * count for loss, count in part) / 20
        assert epoch.loss == pytest.approx(mean, rel=1e-12)


def test_callbacks_are_closed_after_an_error(rng):
    model, optimizer = adam_mlp()
    train = Batches(np.zeros((8, FEATURES + 1), np.float32), np.zeros(8, int), 4)
    diary = Diary()
    with pytest.raises(ShapeError, match=r"\(4, 13\)"):
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


@pytest.mark.parametrize(("share", "told"), [(0.3, True), (0.95, False), (1.9, False)])
def test_fit_says_once_when_others_have_its_cores(share, told, rng, caplog, monkeypatch):
    """Time that steps do not have counts; time that batches take to come does not."""
    clock = Clock(share, monkeypatch)

    class Slow:
        def __iter__(self):
            for _ in range(4):
                clock.rest(1.0)
                yield rng.normal(size=(8, FEATURES)).astype(np.float32), np.zeros(8, int)

    numba.get_num_threads()  # starts them
    monkeypatch.setattr("numba.get_num_threads", lambda: 2)
    monkeypatch.setattr(loop._Timed, "least", 0.0)
    monkeypatch.setattr(loop._Timed, "EVERY", 2)
    monkeypatch.setattr(loop._Timed, "told", False)
    for _ in range(2):
        model, optimizer = adam_mlp()
        fit(model, Slow(), optimizer, epochs=3)
    text = "other programs keep the cores busy, training had one for 30% of the time"
    assert [message.startswith(text) for message in caplog.messages] == [True] * told


def test_lines_say_once_that_kernels_compile(rng, capsys, monkeypatch):
    class Compile(Callback):
        def step(self, run):
            if _cache.on_compile is not None:
                _cache.on_compile("kernel")

    monkeypatch.setattr(_cache, "on_compile", None)
    model, optimizer = adam_mlp()
    fit(model, numbers(rng), optimizer, epochs=2, callbacks=[Lines(), Compile()])
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 2
    assert printed.err.count("compiling kernels for the first time; the next run finds them") == 1


@pytest.mark.parametrize("kind", [Lines, Bar])
@pytest.mark.parametrize("fails", [False, True])
def test_lines_say_nothing_of_what_compiles_after_the_training(kind, fails, rng, monkeypatch):
    class Fail(Callback):
        def step(self, run):
            if fails:
                raise ZeroDivisionError

    monkeypatch.setattr(_cache, "on_compile", None)
    model, optimizer = adam_mlp()
    # From here on there is nothing left to compile.
    fit(model, numbers(rng), optimizer, epochs=1)
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        fit(model, numbers(rng), optimizer, epochs=2, callbacks=[kind(), Fail()])
    assert _cache.on_compile is None


def test_lines_leave_to_another_run_what_it_wants_to_say(rng, monkeypatch):
    class Other(Callback):
        def epoch(self, run, result):
            backend.on_compilation(print)

    monkeypatch.setattr(_cache, "on_compile", None)
    model, optimizer = adam_mlp()
    fit(model, numbers(rng), optimizer, epochs=1, callbacks=[Lines(), Other()])
    assert _cache.on_compile is not None


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["steps"], ["steps"]), (["on_step"], ["on_step"]), (["epoch", "strat"], ["strat"]),
        (["on_epoch_end"], ["on_epoch_end"]), (["step", "apply", "state_dict"], []), ([], []),
        (["_steps", "close"], []),
    ],
)  # fmt: skip
def test_a_method_of_a_callback_that_is_never_called_is_told(names, told, rng, caplog):
    methods = {name: lambda self, run, result=None: None for name in names}
    methods |= {name: lambda self: None for name in names if name == "close"}
    model, optimizer = adam_mlp()
    fit(model, numbers(rng), optimizer, epochs=1, callbacks=[type("Own", (Callback,), methods)()])
    assert [message.split(" is never")[0] for message in caplog.messages] == [
        f"Own.{name}" for name in told
    ]


def test_fit_takes_a_pair_of_all_examples(rng):
    x, y = rng.normal(size=(50, FEATURES)).astype(np.float32), rng.integers(0, CLASSES, 50)
    outcomes = []
    for pair in (True, False):
        model, optimizer = adam_mlp()
        data = {"batches": (x, y), "validation": (x[:20], y[:20]), "test": (x.tolist(), list(y))}
        if not pair:
            held = Batches(x[:20], y[:20], 1000, shuffle=False)
            test = Batches(x, y, 1000, shuffle=False)
            data = {"batches": Batches(x, y, 16, rng=3), "validation": held, "test": test}
        options = {"batch_size": 16, "rng": 3} if pair else {}
        history = fit(model, optimizer=optimizer, epochs=3, **data, **options)
        rows = [(e.loss, e.validation, e.test) for e in history]
        outcomes.append((rows, state_of(model, optimizer), evaluate(model, data["validation"])))
    assert outcomes[0] == outcomes[1]


def test_a_pair_has_batches_of_128_by_default(rng):
    model, optimizer = adam_mlp()
    x, y = rng.normal(size=(300, FEATURES)).astype(np.float32), rng.integers(0, CLASSES, 300)
    fit(model, (x, y), optimizer, epochs=1)
    assert optimizer.step_count == 3
    with pytest.raises(ArgumentError, match="these batches have theirs"):
        fit(model, Batches(x, y, 4), optimizer, epochs=1, batch_size=8)


FIRST_LAYERS = {
    "LSTM": (lambda: [nbbn.LSTM(4, 8, last=True, rng=0), nbbn.Dense(8, CLASSES, rng=1)], (6, 4)),
    "Conv2d": (
        lambda: [nbbn.Conv2d(2, 3, 3, rng=0), nbbn.Flatten(), nbbn.Dense(12, CLASSES, rng=1)],
        (2, 4, 4),
    ),
    "a reweighted Conv2d": (
        lambda: [
            nbbn.WeightStandardization(nbbn.Conv2d(2, 3, 3, rng=0)), nbbn.Flatten(),
            nbbn.Dense(12, CLASSES, rng=1),
        ],
        (2, 4, 4),
    ),
    "pooling": (
        lambda: [nbbn.MaxPool2d(2), nbbn.Flatten(), nbbn.Dense(8, CLASSES, rng=1)], (2, 4, 4),
    ),
    "attention": (
        lambda: [
            nbbn.MultiheadAttention(4, 2, rng=0), nbbn.Flatten(), nbbn.Dense(24, CLASSES, rng=1)
        ],
        (6, 4),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FIRST_LAYERS)
def test_a_pair_of_images_or_sequences_keeps_their_shape(name, rng):
    layers, shape = FIRST_LAYERS[name]
    x, y = rng.normal(size=(30, *shape)).astype(np.float32), rng.integers(0, CLASSES, 30)
    outcomes = []
    for begin in ([], [nbbn.Unflatten(shape)]):
        model = nbbn.Sequential(*begin, *layers())
        optimizer = optim.SGD(model.parameters(), 0.1)
        history = fit(model, (x, y), optimizer, epochs=2, batch_size=8, rng=0, test=(x, y))
        arrays = [array.tobytes() for array in model.state_dict().values()]
        outcomes.append((history[-1].loss, history[-1].test, evaluate(model, (x, y)), arrays))
    assert outcomes[0] == outcomes[1]
    advice = r"Unflatten\(\(.*\)\), or keep it: Batches\(flatten=False\)"
    with pytest.raises(ShapeError, match=advice):
        evaluate(nbbn.Sequential(*layers()), Batches(x, y, 8))
    assert evaluate(model, Batches(x, y, 8, shuffle=False, flatten=False)).count == 30


def test_two_pairs_are_two_batches(rng):
    x, y = rng.normal(size=(8, FEATURES)).astype(np.float32), rng.integers(0, CLASSES, 8)
    for pairs in (((x, y), (x, y)), ([x, y], [x, y]), [(x, y), (x, y)]):
        model, optimizer = adam_mlp()
        fit(model, pairs, optimizer, epochs=1)
        assert optimizer.step_count == 2


def test_what_is_neither_batches_nor_a_pair(rng):
    model, optimizer = adam_mlp()
    x, y = np.zeros((8, FEATURES), np.float32), np.zeros(8, int)
    with pytest.raises(DTypeError, match=r"got arrays \(list\): pass the pair"):
        fit(model, [x, y], optimizer, epochs=1)
    with pytest.raises(DTypeError, match=r"got arrays \(ndarray\)"):
        evaluate(model, x)


def test_a_batch_size_beyond_the_data_is_said(rng, caplog):
    model, optimizer = adam_mlp()
    fit(model, numbers(rng, size=16), optimizer, epochs=1)
    assert "batch size 16 exceeds the 8 training examples" in caplog.text


def test_gradient_norm(rng):
    x, y = rng.normal(size=(16, FEATURES)).astype(np.float32), rng.integers(0, CLASSES, 16)
    model, optimizer = adam_mlp()
    step = record_step(model, losses.cross_entropy, optimizer)
    twin, _ = adam_mlp()
    for scale in (1, 2, 3, 4):
        twin.load_state_dict(model.state_dict())
        for parameter in (model[0].weight, twin[0].weight):
            parameter.requires_grad = scale < 4
        step(x * scale, y)
        with nbbn.Tape() as tape:
            loss = losses.cross_entropy(twin(x * scale), y)
        tape.backward(loss)
        found = [p.grad for p in twin.parameters() if p.grad is not None]
        expected = np.sqrt(sum((gradient.astype(float) ** 2).sum() for gradient in found))
        twin.zero_grad()
        assert optimizer.gradient_norm() == pytest.approx(expected, rel=1e-6)
