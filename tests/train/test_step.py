"""The recorded step against the eager one, bit for bit, and the memory that it takes."""

from __future__ import annotations

import os
import sys
import threading
import tracemalloc
import warnings

import numba
import numpy as np
import pytest

import nbbn
from nbbn import Convention, losses, ops, optim
from nbbn.kernels import _jit
from nbbn.train.loop import record_step
from tests.helpers.training_pair import CLASSES, FEATURES, Pair, adam_mlp, batches, under
from tests.helpers.workload import forked

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
    **{
        name: lambda name=name: nbbn.mlp((FEATURES, 9, CLASSES), activation=name, rng=1)
        for name in ("gelu", "silu", "leaky_relu")
    },
    "pooling": lambda: [
        nbbn.Dense(FEATURES, 144, rng=1),
        nbbn.Unflatten((4, 6, 6)),
        nbbn.MaxPool2d(3, stride=2, padding=1),
        nbbn.GELU("tanh"),
        nbbn.AvgPool2d(2, stride=1),
        nbbn.MaxPool2d(2, axis=-1, ceil_mode=True),
        nbbn.GlobalAvgPool2d(keepdims=True),
        nbbn.GlobalMaxPool2d(axis=-1),
        nbbn.Dense(1, CLASSES, rng=2),
    ],
    "batch norm first": lambda: [nbbn.BatchNorm(FEATURES), nbbn.Dense(FEATURES, CLASSES, rng=1)],
    "bias before batch norm": lambda: with_norm(nbbn.BatchNorm(9)),
    "no affine": lambda: with_norm(
        nbbn.BatchNorm(9, scale=False, shift=False, track_running_stats=False)
    ),
    "cumulative average": lambda: with_norm(
        nbbn.BatchNorm(9, convention=Convention(momentum=None))
    ),
    "zero-debiased average": lambda: with_norm(
        nbbn.BatchNorm(9, convention=Convention(zero_debias=True))
    ),
    "virtual batches": lambda: with_norm(nbbn.GhostBatchNorm(9, 5, activation="relu")),
    "renormalization": lambda: with_norm(
        nbbn.BatchRenorm(9, r_max=nbbn.Ramp(1, 2, 1, 5), d_max=nbbn.Ramp(0, 1, 2, 6))
    ),
    "in place": lambda: with_norm(nbbn.InPlaceBatchNorm(9)),
    "weights": lambda: with_norm(Weighted()),
    "frozen statistics": lambda: with_norm(nbbn.BatchNorm(9, frozen=True)),
    "convolutions": lambda: [
        nbbn.Conv2d(1, 4, 3, padding=1, bias=False, rng=1),
        nbbn.BatchNorm(4, activation="relu"),
        nbbn.Conv2d(4, 6, 3, stride=2, rng=2),
        nbbn.ReLU(),
        nbbn.ConvTranspose2d(6, 2, 2, stride=2, rng=3),
        *classifier(72),
    ],
    "layer norm": lambda: [nbbn.LayerNorm(6), *classifier(6)],
    "RMS norm": lambda: [nbbn.RMSNorm((6, 4)), *classifier(24)],
    "group norm": lambda: [nbbn.GroupNorm(2, 4), *classifier(20)],
    "instance norm": lambda: [nbbn.InstanceNorm(4, track_running_stats=True), *classifier(12)],
    "weight standardization": lambda: [nbbn.WeightStandardization(*classifier(FEATURES)[1:])],
    "spectral norm": lambda: [nbbn.SpectralNorm(*classifier(FEATURES)[1:], rng=3)],
    "LSTM": lambda: [nbbn.LSTM(3, 4, last=True, rng=1)],
    "GRU, both directions, two layers": lambda: [
        nbbn.GRU(3, 2, last=True, rng=1, bidirectional=True, num_layers=2)
    ],
    "RNN": lambda: [nbbn.RNN(3, 4, last=True, rng=1)],
    "LSTM with batch norm": lambda: [
        nbbn.LSTM(3, 4, last=True, rng=1, normalization="batch", max_steps=4)
    ],
    "LSTM with layer norm": lambda: [
        nbbn.LSTM(3, 4, last=True, rng=1, normalization="layer", num_layers=2)
    ],
}
# The shapes of examples that are no rows.
EXAMPLES = {
    "convolutions": (1, 8, 8), "layer norm": (6,), "RMS norm": (6, 4), "group norm": (4, 5),
    "instance norm": (4, 3), "LSTM": (6, 3), "GRU, both directions, two layers": (6, 3),
    "RNN": (6, 3), "LSTM with batch norm": (6, 3), "LSTM with layer norm": (6, 3),
}  # fmt: skip


def classifier(features):
    return [nbbn.Flatten(), nbbn.Dense(features, CLASSES, rng=4)]


class Weighted(nbbn.Module):
    """Weighs the examples of a batch, some of them with 0."""

    def __init__(self):
        self.norm = nbbn.BatchNorm(9, convention=Convention(momentum=None))
        self.weights = np.arange(16) % 4

    def forward(self, x):
        return self.norm(x, weights=self.weights)


def with_norm(norm):
    return [nbbn.Dense(FEATURES, 9, rng=1), norm, nbbn.Tanh(), nbbn.Dense(9, CLASSES, rng=2)]


@pytest.mark.parametrize("name", MODELS)
def test_models(name, rng):
    make = under(MODELS[name], lambda p: optim.SGD(p, 0.1, momentum=0.9))
    assert Pair(make).train(batches(rng, [16] * 6, EXAMPLES.get(name, (FEATURES,)))) == 4


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
    make = under(lambda: nbbn.mlp((FEATURES, 9, CLASSES), rng=1, dropout=0.3), make_optimizer)
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


def mean_squared_of_flat(output, y):
    return mean_squared(output, y.reshape(16, CLASSES))


@pytest.mark.parametrize(
    ("loss", "shape"), [(mean_squared, (16, CLASSES)), (mean_squared_of_flat, 16 * CLASSES)]
)
def test_a_regression_on_float_targets(loss, shape, rng):
    data = [(x, rng.normal(size=shape).astype(np.float32)) for x, _ in batches(rng, [16] * 5)]
    assert Pair(adam_mlp, loss).train(data) == 3


autoencoder = under(lambda: [nbbn.Dense(FEATURES, 5, rng=1), nbbn.Dense(5, FEATURES, rng=2)])


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

    make = under(Partial, lambda p: optim.Adam(p, weight_decay=0.1))
    assert Pair(make).train(batches(rng, [16] * 5)) == 3


def image_layers():
    return [
        nbbn.BatchNorm(3), nbbn.Flatten(), nbbn.Dense(FEATURES, 8, bias=False, rng=1),
        nbbn.BatchNorm(8, activation="relu"), nbbn.Dense(8, CLASSES, rng=2),
    ]  # fmt: skip


@pytest.mark.parametrize("first", [0, 1], ids=["batch norm first", "flatten first"])
def test_images(first, rng):
    """Flatten takes views of the batch, which must follow from batch to batch."""
    make = under(lambda: image_layers()[first:], lambda p: optim.SGD(p, 0.1, momentum=0.5))
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
    change = LAYOUTS[layout]
    data = [(change(x), y) for x, y in batches(rng, [16] * 4)]
    assert Pair(under(MODELS["batch norm first"])).train(data) == 2


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

    pair = Pair(under(MODELS["batch norm first"]))
    pair.train(batches(rng, [16] * 3))
    before = signatures()
    frozen = [tuple(LAYOUTS["read-only"](a) for a in batch) for batch in batches(rng, [16] * 2)]
    assert pair.train(frozen) == 2
    assert signatures() == before


def test_several_steps_at_the_same_time(rng):
    """Interleaved models do not disturb one another."""
    pairs = [Pair(adam_mlp), Pair(under(image_layers))]
    for _ in range(5):
        pairs[0].train(batches(rng, [16]))
        pairs[1].train(batches(rng, [8], shape=(3, 2, 2)))
    assert [pair.runs for pair in pairs] == [2, 2]


def test_replays_move_to_another_thread_and_to_fewer_of_them(rng, monkeypatch):
    monkeypatch.setattr(_jit, "PARALLEL_MIN", 0)
    pair, before = Pair(adam_mlp), numba.get_num_threads()

    def train(threads):
        nbbn.threads.limit(threads)
        pair.train(batches(rng, [16] * 3))

    try:
        for threads in (2, 1, 2):
            train(threads)
            thread = threading.Thread(target=train, args=(threads,))
            thread.start()
            thread.join()
    finally:
        nbbn.threads.limit(before)
    assert pair.runs == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_forked_while_another_thread_makes_a_step(rng):
    inside, leave = threading.Event(), threading.Event()

    def rate(step):
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            leave.wait()
        return 0.1

    def in_child():
        try:
            return pair.step(*last)
        except Exception as error:
            return repr(error)

    pair = Pair(
        under(lambda: nbbn.mlp((FEATURES, 9, CLASSES), rng=1), lambda p: optim.SGD(p, rate))
    )
    *first, last = batches(rng, [16] * 4)
    assert pair.train(first) == 1
    thread = threading.Thread(target=pair.step, args=last)
    thread.start()
    try:
        assert inside.wait(300)
        found = forked(in_child)
    finally:
        leave.set()
        thread.join()
    # The weights of the child are those before that step.
    assert found == str(pair.eager(*last))
    pair.compare()


def test_a_model_made_by_another_thread_meanwhile_is_no_hindrance(rng):
    @nbbn.recordable
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

    def made():
        model = nbbn.mlp((features, *widths, 10), rng=1)
        optimizer = optim.Adam(model.parameters())
        return model, record_step(model, losses.cross_entropy, optimizer)

    # What this compiles is not counted.
    made()[1](*data[0])
    tracemalloc.start()
    try:
        model, step = made()
        tracemalloc.reset_peak()
        for x, y in data:
            (step if recorded else step._eager)(x, y)
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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clipped_steps_are_those_of_an_eager_loop_bit_for_bit(dtype, rng):
    class Clipped:
        """Clips by hand, as in a loop of one's own."""

        def __init__(self, optimizer):
            self.optimizer, self.zero_grad = optimizer, optimizer.zero_grad
            self.state_dict = optimizer.state_dict

        def step(self):
            if limit is not None:
                assert optim.clip_grad_norm(self.optimizer.parameters, limit) > limit
            self.optimizer.step()

    pair = Pair(lambda: adam_mlp(dtype=dtype))
    pair.peer = Clipped(pair.peer)
    # From one step to the next, limits change, also to none.
    for limit in (0.2, 0.2, 0.2, 0.3, None, 0.1):
        pair.optimizer.max_norm = limit
        pair.train([(9 * x, y) for x, y in batches(rng, [16], dtype=dtype)])
    assert pair.step.refusal is None


def test_a_limit_that_stays_needs_no_new_recording(rng):
    model = nbbn.mlp((5, 8, 3), rng=0)
    optimizer = optim.SGD(model.parameters(), 0.05)
    optimizer.max_norm = 0.5
    step = nbbn.train.record_step(model, losses.cross_entropy, optimizer)
    x, y = rng.normal(size=(16, 5)).astype(np.float32), rng.integers(0, 3, 16)
    for _ in range(5):
        step(x, y)
        assert optimizer.gradient_norm() <= 0.5 * (1 + 1e-6)
    assert (step.recordings, step.refusal) == (2, None)
