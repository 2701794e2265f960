"""The tape and Tensor: what is recorded, what backward does, and what it refuses."""

from __future__ import annotations

import contextlib
import gc
import operator
import threading
import tracemalloc
import weakref

import numpy as np
import pytest

import nbbn
from nbbn import Parameter, Tape, Tensor
from nbbn.errors import ArgumentError, DTypeError, NbbnError, ShapeError, TapeError
from tests.helpers.refusals import refusing


class Cube(nbbn.Op):
    """x ** 3, as a user of the library would write it."""

    @staticmethod
    def forward(ctx, x, *, scale=1.0):
        ctx.x, ctx.scale = x, scale
        return scale * x**3

    @staticmethod
    def backward(ctx, dy):
        return 3 * ctx.scale * ctx.x**2 * dy


def walked(function, *leaves, start=None):
    """Record `function(*leaves)`, walk back from the result, and return it."""
    with Tape() as tape:
        result = function(*leaves)
    tape.backward(result, start)
    return result


# ------------------------------------------------------------------------- what is recorded


def test_outside_a_tape_nothing_is_recorded():
    w = Parameter([1.0, 2.0])
    y = (w * w).sum()
    assert not y.requires_grad
    with pytest.raises(TapeError, match="no tape recorded"):
        y.backward()
    assert w.grad is None


def test_what_requires_no_gradient_is_not_recorded():
    with Tape() as tape:
        y = Tensor([1.0, 2.0]) * np.float32(3)
        z = y + np.ones(2, np.float32)
    assert len(tape) == 0
    assert not z.requires_grad


def test_the_tape_holds_one_node_per_operation():
    w = Parameter([1.0, 2.0])
    with Tape() as tape:
        loss = (w * w + 1).sum()
    assert len(tape) == 3
    assert loss.requires_grad
    tape.backward(loss)
    assert len(tape) == 0


def test_recording_stops_at_the_end_of_the_block_and_after_an_error():
    w = Parameter([1.0])
    tape = Tape()
    with pytest.raises(DTypeError), tape:
        _ = w * w + "text"
    y = w * w
    assert len(tape) == 1
    assert not y.requires_grad


def test_a_frozen_parameter_gets_no_gradient():
    w, frozen = Parameter([3.0]), Parameter([4.0])
    frozen.requires_grad = False
    walked(lambda: w * frozen)
    np.testing.assert_array_equal(w.grad, [4])
    assert frozen.grad is None


# ---------------------------------------------------------------------------------- nesting


def test_the_inner_of_two_tapes_records():
    w = Parameter([2.0])
    with Tape() as outer:
        a = w * w
        with Tape() as inner:
            b = w * 3
        c = a + 1
    assert (len(outer), len(inner)) == (2, 1)
    inner.backward(b)
    np.testing.assert_array_equal(w.grad, [3])
    outer.backward(c)
    np.testing.assert_array_equal(w.grad, [3 + 4])


def test_tapes_may_be_left_in_any_order():
    tapes = [Tape() for _ in range(3)]
    for tape in tapes:
        tape.__enter__()
    for left, recording in ((1, 2), (2, 0), (0, None)):
        tapes[left].__exit__(None, None, None)
        assert nbbn.autograd.tensor.recording_tape() is (
            None if recording is None else tapes[recording]
        )


def test_what_another_tape_recorded_is_a_leaf():
    w = Parameter([2.0])
    with Tape() as outer:
        a = w * w
        with Tape() as inner:
            b = a * 3
    inner.backward(b)
    np.testing.assert_array_equal(a.grad, [3])
    assert w.grad is None
    outer.backward(a, a.grad)
    np.testing.assert_array_equal(w.grad, [12])


def test_leaves_are_ready_when_the_last_operation_has_added_to_their_gradient():
    a, b, c = (Tensor([value], requires_grad=True) for value in (2.0, 3.0, 5.0))
    unused = Tensor([7.0], requires_grad=True)
    told = []
    with Tape() as tape:
        _ = a * unused
        early = a * b
        loss = early * b * c
    tape.backward(loss, ready=lambda leaf: told.append((leaf, leaf.grad and leaf.grad.copy())))
    # What does not reach the loss counts too: nothing more will come for it.
    assert [leaf for leaf, _ in told] == [c, b, a, unused]
    assert all(leaf.grad == grad for leaf, grad in told)
    assert (a.grad, b.grad, c.grad, unused.grad) == (45.0, 60.0, 18.0, None)


def test_backward_inside_the_block():
    w = Parameter([2.0])
    with Tape() as tape:
        tape.backward(w * w)
    np.testing.assert_array_equal(w.grad, [4])


# ---------------------------------------------------------------------------------- threads


def test_each_thread_has_its_own_tape():
    """A thread records nothing on the tape of another one."""
    w = Parameter([2.0])
    results = []
    with Tape() as tape:
        thread = threading.Thread(target=lambda: results.append(w * w))
        thread.start()
        thread.join()
    assert len(tape) == 0
    assert not results[0].requires_grad


def test_threads_record_at_the_same_time():
    count = 4
    barrier = threading.Barrier(count, timeout=300)
    found = []

    def work():
        w = Parameter(np.ones(3))
        with Tape() as tape:
            h = w
            for _ in range(50):
                barrier.wait()
                h = h + w
            loss = h.sum()
        barrier.wait()
        nodes = len(tape)
        tape.backward(loss)
        found.append([nodes, *w.grad])

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[51] * 4] * count


# --------------------------------------------------------------------- length and memory


def test_a_long_chain_can_be_dropped_without_backward():
    w = Parameter(np.ones(1))
    with Tape() as tape:
        y = w
        for _ in range(100_000):
            y = y.exp()
            y = y * 0
    assert len(tape) == 200_000
    del tape, y


@pytest.fixture
def without_collector():
    """Nothing but reference counts frees memory in the test."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collector")
def test_memory_falls_while_backward_walks():
    """Half-way through, half of the saved arrays are gone."""
    saved: list[weakref.ref] = []
    alive: list[int] = []

    class Watched(nbbn.Op):
        @staticmethod
        def forward(ctx, x):
            ctx.saved = x + 1
            saved.append(weakref.ref(ctx.saved))
            return x.copy()

        @staticmethod
        def backward(ctx, dy):
            alive.append(sum(reference() is not None for reference in saved))
            return dy

    w = Parameter(np.ones(1000))
    with Tape() as tape:
        y = w
        for _ in range(100):
            y = nbbn.apply(Watched, y)
    tape.backward(y, np.ones(1000))
    # The node under way is alive, and the one before it until its variables are assigned again.
    assert all(now <= 101 - walked for walked, now in enumerate(alive))
    assert alive[-1] <= 2


def backward_from_the_loss(tape, loss):
    del tape
    loss.backward()


def failed_backward(tape, loss):
    with pytest.raises(ShapeError):
        tape.backward(loss, np.ones(2))


def first_derivative(end):
    def step(w):
        with Tape() as tape:
            h = nbbn.ops.relu(w * 2)
            loss = (h @ h).sum()
        end(tape, loss)
        return [h]

    return step


def second_derivative(w):
    with Tape():
        h = nbbn.ops.tanh(w @ w)
        (slope,) = nbbn.grad((h * h).sum(), [w], create_graph=True)
        (slope * slope).sum()
    return [h, slope]


def exception_in_the_block(w):
    h = None

    def block():
        nonlocal h
        with Tape():
            h = w * 2
            h @ np.ones((7, 7))

    with contextlib.suppress(ShapeError):
        block()
    return [h]


def tapes_that_use_results_of_each_other(*walks):
    def step(w):
        with Tape() as outer:
            a = w * 2
            with Tape() as inner:
                b = a * 3
            c = b * a
        ones = np.ones(w.shape)
        for walk in walks:
            inner.backward(b, ones) if walk == "inner" else outer.backward(c, ones)
        if walks == ("inner", "outer"):
            np.testing.assert_array_equal(a.grad, 3 * ones)
            np.testing.assert_array_equal(b.grad, 2 * ones)
        return [a, b, c]

    return step


STEPS = {
    "dropped": first_derivative(lambda tape, loss: None),  # an evaluation, or a step given up
    "backward": first_derivative(lambda tape, loss: tape.backward(loss)),
    "backward from the loss": first_derivative(backward_from_the_loss),
    "grad": first_derivative(lambda tape, loss: nbbn.grad(loss, [loss])),
    "failed backward": first_derivative(failed_backward),
    "second derivative": second_derivative,
    "exception": exception_in_the_block,
    "two tapes, dropped": tapes_that_use_results_of_each_other(),
    "two tapes, outer": tapes_that_use_results_of_each_other("outer"),
    "two tapes, inner": tapes_that_use_results_of_each_other("inner"),
    "two tapes, inner first": tapes_that_use_results_of_each_other("inner", "outer"),
    "two tapes, outer first": tapes_that_use_results_of_each_other("outer", "inner"),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.usefixtures("without_collector")
def test_a_tape_needs_no_collector(step):
    w = Parameter(np.ones((20, 20)))
    for _ in range(5):
        saved = [weakref.ref(tensor.data) for tensor in step(w)]
        assert [array() for array in saved] == [None] * len(saved)
    w.zero_grad()
    walked(w.sum)  # and the next tape is as good as the first
    np.testing.assert_array_equal(w.grad, np.ones((20, 20)))


@pytest.mark.usefixtures("without_collector")
def test_a_step_that_is_given_up_leaves_no_memory():
    w = Parameter(np.ones(100_000))

    def step():
        with Tape():
            loss = ((w * 2).exp() + 1).log().mean()
        return loss.item()

    step()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(50):
            step()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 100_000


def test_gradients_of_what_another_tape_recorded():
    w = Parameter(np.array([2.0]))
    with Tape():
        a = w * w
        with Tape():
            b = a * a
            (slope,) = nbbn.grad(b, [a], create_graph=True)
            (curvature,) = nbbn.grad(slope, [a])
        with pytest.raises(TapeError, match="not depend"):
            nbbn.grad(b, [w])
    np.testing.assert_array_equal(slope.data, [8])
    np.testing.assert_array_equal(curvature.data, [2])


def test_the_gradient_of_a_result_that_nobody_holds_is_lost():
    w = Parameter([2.0])
    with Tape():
        a = w * w
        with Tape() as inner:
            b = a * 3
        del a
        inner.backward(b)
        assert w.grad is None


# ------------------------------------------------------------------------------- gradients


def test_gradients_add_up_until_they_are_zeroed():
    w, kept = Parameter(np.array([1.0, 2.0])), []
    for _ in range(3):
        walked(lambda: (w * w).sum())
        kept.append(w.grad)
    np.testing.assert_array_equal(kept, [[2, 4], [4, 8], [6, 12]])  # each in an array of its own
    w.zero_grad()
    assert w.grad is None
    walked(lambda: (w * 3).sum())
    np.testing.assert_array_equal(w.grad, [3, 3])


def repeated(function, times):
    def chain(x):
        y = x
        for _ in range(times):
            y = function(x, y)
        return y

    return chain


def diamond(x):
    a = x * x
    b = a * 3
    return a * b + a


def shared(a, b):
    """The sum hands one array of gradients to both; the first result has another one to add."""
    u, v = a * 2, b * 3
    late = u * 5
    return late + (u + v)


GRAPHS = {
    "detach": (lambda w: w * (w * w).detach(), [[3]], [[9]]),
    "diamond": (diamond, [[1, -2]], [[14, -100]]),
    "diamonds in diamonds, in linear time": (
        repeated(lambda x, y: (y + y) * 0.5, 60), [[1]], [[1]],
    ),
    "a long chain": (repeated(lambda x, y: y + x, 100_000), [[1, 1]], [[100_001, 100_001]]),
    "twice in one operation": (lambda x: x @ x, [[[1, 2], [3, 4]]], [[[7, 11], [9, 13]]]),
    "results that share a gradient": (shared, [[1, 1], [1, 1]], [[12, 12], [3, 3]]),
}  # fmt: skip


@pytest.mark.parametrize(("function", "values", "expected"), GRAPHS.values(), ids=GRAPHS)
def test_gradients_of_small_graphs(function, values, expected):
    leaves = [Parameter(np.array(value, float)) for value in values]
    kept = []

    def graph():
        kept.append(function(*leaves))
        kept.append(kept[0].sum())
        return kept[1]

    walked(graph)
    for leaf, slope in zip(leaves, expected, strict=True):
        np.testing.assert_array_equal(leaf.grad, slope)
    assert [result.grad for result in kept] == [None, None]  # only leaves keep theirs


def test_a_branch_that_does_not_reach_the_loss_costs_nothing():
    w, other = Parameter([2.0]), Parameter([5.0])
    walked(lambda: ((other * w).exp(), w * w)[1])
    np.testing.assert_array_equal(w.grad, [4])
    assert other.grad is None


def test_nothing_has_gradients_of_its_shape_too():
    for function in (operator.add, operator.sub, operator.mul, operator.truediv):
        a, b = Parameter(np.ones(0)), Parameter(np.array(2.0))
        walked(lambda f=function, a=a, b=b: f(a, b).sum())
        assert (a.grad.shape, b.grad.shape, b.grad) == ((0,), (), 0)


def test_backward_starts_from_a_given_gradient():
    w = Parameter(np.array([1.0, 2.0]))
    start = np.array([10.0, 100.0])
    with Tape():  # which its result keeps
        y = w * w
    y.backward(start)
    np.testing.assert_array_equal(w.grad, [20, 400])
    np.testing.assert_array_equal(start, [10, 100])


@pytest.mark.parametrize(
    "expression",
    [
        lambda a, b: a + b,
        lambda a, b: (a + b) + (a - b),
        lambda a, b: a.reshape(4).reshape(2, 2) + b,
        lambda a, b: a.T + b.T,
        lambda a, b: a.sum(axis=0, keepdims=True) + b,
    ],
)
def test_changing_a_gradient_in_place_changes_no_other(expression):
    a, b = Parameter(np.ones((2, 2))), Parameter(np.ones((2, 2)))
    start = np.ones((2, 2))
    walked(expression, a, b, start=start)
    before = b.grad.copy()
    a.grad *= 5
    np.testing.assert_array_equal(b.grad, before)
    np.testing.assert_array_equal(start, np.ones((2, 2)))


def test_changing_a_gradient_in_place_changes_no_later_one():
    """The tape's own arrays must not be handed out: they may be on their way to another leaf."""
    w = Parameter(np.ones(2))
    for _ in range(2):
        start = np.ones(2)
        walked(lambda: w + w, start=start)
        w.grad *= 10
        np.testing.assert_array_equal(start, [1, 1])
    np.testing.assert_array_equal(w.grad, [220, 220])


@pytest.mark.parametrize("leaf", [np.float32, np.float64])
@pytest.mark.parametrize("start", [np.float32, np.float64])
def test_a_gradient_has_the_dtype_of_its_leaf(leaf, start):
    w = Parameter(np.ones(2, leaf))
    walked(lambda: w * np.ones(2), start=np.ones(2, start))
    assert w.grad.dtype == leaf


# -------------------------------------------------------------------------- custom operations


def test_a_custom_operation(rng):
    x = rng.normal(size=(3, 4))
    assert nbbn.gradcheck(lambda t: nbbn.apply(Cube, t, scale=2.0), x) < 1e-6
    w = Parameter(np.array([2.0]))
    walked(lambda: nbbn.apply(Cube, w * 1, scale=2.0).sum())
    np.testing.assert_array_equal(w.grad, [24])


def test_a_custom_operation_sees_which_gradients_are_wanted():
    class Product(nbbn.Op):
        @staticmethod
        def forward(ctx, a, b, c):
            ctx.a, ctx.b = a, b
            return a * b + c

        @staticmethod
        def backward(ctx, dy):
            seen.append(ctx.needs)
            return dy * ctx.b, None, dy

    seen: list[tuple[bool, ...]] = []
    w = Parameter(np.array([2.0]))
    walked(lambda: nbbn.apply(Product, w, Tensor(np.array([3.0])), 1.0))
    assert seen == [(True, False, False)]
    np.testing.assert_array_equal(w.grad, [3])


class Wrong(Cube):
    @staticmethod
    def backward(ctx, dy):
        return 2.999 * ctx.x**2 * dy


@pytest.mark.parametrize(
    "returned",
    [lambda dy: (dy, dy), lambda dy: (), lambda dy: dy[:1], lambda dy: 1.0],
    ids=["two for one input", "none for one input", "another shape", "a number"],
)
def test_a_custom_backward_that_returns_nonsense_is_refused(returned):
    class Nonsense(nbbn.Op):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, dy):
            return returned(dy)

    with pytest.raises(NbbnError, match="Nonsense"):
        walked(lambda: nbbn.apply(Nonsense, Parameter(np.ones(3))), start=np.ones(3))


# ------------------------------------------------------------------------------- TapeErrors


def test_a_tape_is_consumed_by_backward():
    w = Parameter([1.0])
    with Tape() as tape:
        loss = w * w
        other = w * 3
    tape.backward(loss)
    for call in (lambda: tape.backward(loss), lambda: tape.backward(other)):
        with pytest.raises(TapeError, match="consumed"):
            call()
    with pytest.raises(TapeError):
        loss.backward()
    np.testing.assert_array_equal(w.grad, [2])


def test_what_is_recorded_after_backward_is_lost_with_a_clear_error():
    w = Parameter([1.0])
    with Tape() as tape:
        tape.backward(w * w)
        late = w * 3
        with pytest.raises(TapeError, match="consumed"):
            tape.backward(late)


def test_a_tape_records_once():
    tape = Tape()
    with tape, pytest.raises(TapeError, match="records once"), tape:
        pass
    with pytest.raises(TapeError, match="records once"), tape:
        pass


def test_the_loss_must_be_recorded_by_this_tape():
    w = Parameter([1.0])
    with Tape() as first:
        loss = w * w
    with Tape() as second:
        _ = w * w
    for wrong in (loss, w, Tensor([1.0]), w * w, np.ones(1), 1.0):
        with pytest.raises(TapeError, match="did not record"):
            second.backward(wrong)
    first.backward(loss)
    np.testing.assert_array_equal(w.grad, [2])


def test_backward_needs_one_number_or_a_gradient_of_the_shape_of_the_loss():
    w = Parameter([1.0, 2.0])
    with Tape() as tape:
        y = w * w
    with pytest.raises(ShapeError, match=r"one element, got shape \(2,\)"):
        tape.backward(y)
    for wrong in (np.ones(3), np.ones((2, 1)), 1.0, [1.0, 1.0]):
        with pytest.raises((ShapeError, DTypeError)):
            tape.backward(y, wrong)
    with pytest.raises(DTypeError):
        tape.backward(y, np.ones(2, complex))
    tape.backward(y, np.ones(2, np.float32))
    np.testing.assert_array_equal(w.grad, [2, 4])


# ----------------------------------------------------------------------------------- Tensor


def test_a_tensor_shares_the_memory_of_its_array():
    for dtype in (np.float32, np.float64):
        array = np.ones((2, 3), dtype)
        t = Tensor(array)
        assert t.data is array
        assert t.numpy() is array
        assert (t.shape, t.ndim, t.size, t.dtype, len(t)) == ((2, 3), 2, 6, dtype, 2)


def test_numpy_takes_the_numbers_of_a_tensor():
    x = Parameter(np.arange(6.0).reshape(2, 3))
    assert np.asarray(x) is x.data
    copied = np.array(x)
    assert not np.may_share_memory(copied, x.data)
    np.testing.assert_array_equal(np.array([x, x], np.float32), np.stack([x.data, x.data]))
    with pytest.raises(ValueError, match="copy"):
        np.asarray(x, np.float32, copy=False)


def test_numpy_gets_no_numbers_whose_gradient_would_be_lost():
    x, constant = Parameter([1.0, 2.0]), Tensor([3.0])
    with Tape():
        for take in (np.asarray, lambda x: np.concatenate([x, x]), lambda x: np.median(2 * x)):
            with pytest.raises(TapeError, match="where no gradient is to flow"):
                take(x)
        assert np.asarray(constant) == 3


@pytest.mark.parametrize("data", [1, 2.5, [1, 2], [[1.0], [2.0]], (True, False)])
def test_numbers_and_lists_become_float32(data):
    t = Tensor(data)
    assert t.dtype == np.float32
    np.testing.assert_array_equal(t.data, np.asarray(data, np.float32))


def test_equality_is_identity_and_tensors_are_hashable():
    """An elementwise == would break the dictionaries that backward keeps its gradients in."""
    assert "__eq__" not in vars(Tensor)
    a, b = Tensor([1.0]), Tensor([1.0])
    assert a != b
    assert len({a, b, a}) == 2


def test_one_element_is_a_number():
    assert Tensor([[2.5]]).item() == 2.5
    assert float(Tensor(2.5)) == 2.5


def test_a_tensor_iterates_over_its_first_axis():
    t = Tensor([[1.0, 2.0], [3.0, 4.0]])
    first, second = t
    np.testing.assert_array_equal(first.data, [1, 2])
    np.testing.assert_array_equal(second.data, [3, 4])


def test_an_array_on_the_left_makes_a_tensor():
    array = np.ones((2, 2), np.float32)
    for y in (array + Tensor(array), array @ Tensor(array), array / Tensor(array)):
        assert isinstance(y, Tensor)
        assert y.shape == (2, 2)


def test_reshape_takes_a_list_as_numpy_does():
    assert Tensor(np.ones((2, 3))).reshape([3, 2]).shape == (3, 2)


def test_the_shape_of_a_read_only_array_changes_but_not_the_array():
    memory = np.arange(6, dtype=np.float32).tobytes()
    x = Tensor(np.frombuffer(memory, np.float32))
    assert not x.reshape(2, 3).data.flags.writeable
    assert Tensor(np.zeros(6)).reshape(2, 3).data.flags.writeable


def test_repr_shows_values_and_flag():
    assert repr(Tensor([1.0, 2.0])) == "Tensor([1., 2.])"
    assert repr(Parameter([1.0])) == "Tensor([1.], requires_grad=True)"
    assert len(repr(Tensor(np.zeros((1000, 1000))))) < 1000


CUBES = np.arange(1.0, 13).reshape(3, 4)

REFUSED = [
    ("Tensor(np.arange(3))", DTypeError, "int64"),
    ("Tensor(np.ones(2, bool))", DTypeError, "bool"),
    ("Tensor(np.ones(2, complex))", DTypeError, "complex128"),
    ('Tensor(np.array(["a"]))', DTypeError, "U1"),
    ("Tensor(np.array([None]))", DTypeError, "object"),
    ("Tensor([1j])", DTypeError, "complex128"),
    ('Tensor("abc")', DTypeError, "U3"),
    ("Tensor(None)", DTypeError, "object"),
    ("Tensor(Tensor([1.0]))", DTypeError, "Tensor"),
    ("Tensor(np.ma.array([1.0, 2.0]))", DTypeError, "MaskedArray"),
    ("Tensor(np.ones((2, 2)).view(np.matrix))", DTypeError, "matrix"),
    ("bool(Tensor([1.0]))", DTypeError, "truth"),
    ("Tensor([1.0]) and True", DTypeError, "truth"),
    ("Tensor([1.0, 2.0]).item()", ShapeError, "one element"),
    ("Tensor(np.ones(0)).item()", ShapeError, "one element"),
    ('setattr(Tensor([1.0]), "gard", None)', AttributeError, "gard"),
    ("nbbn.gradcheck(lambda t: t * t, np.ones(2, np.float32))", DTypeError, "float64"),
    ("nbbn.gradcheck(lambda t: t * t, [1.0, 2.0])", DTypeError, "float64"),
    ("nbbn.gradcheck(lambda t: t * t, np.ones(2, int))", DTypeError, "float64"),
    ("nbbn.gradcheck(lambda t: nbbn.apply(Wrong, t), CUBES)",
     ArgumentError, "the gradient of input 0 is wrong"),
    ("nbbn.gradcheck(lambda a, b: a * b.detach(), CUBES, CUBES)",
     ArgumentError, "input 1 received no gradient"),
]  # fmt: skip


test_what_is_refused = refusing(REFUSED, globals())
