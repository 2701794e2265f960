"""Training: `fit` and `evaluate`; `record_step` from `step`."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from .._validation import choice, fraction, function, generator, instance, positive, switch
from ..autograd.tensor import Tensor
from ..data import Batches
from ..distributed import Ranks, check_ranks
from ..errors import ArgumentError, CheckpointError, DivergenceError, DTypeError, ShapeError
from ..nn import activation
from ..nn.layers import BatchNorm, Dense, Dropout, Flatten, Softmax, unnested
from ..nn.losses import binary_cross_entropy, cross_entropy
from ..nn.module import Module, evaluating
from ..nn.observe import first_nonfinite
from ..nn.reweighted import Reweighted
from ..optim import Optimizer
from . import checkpoint
from .callbacks import HOOKS, Callback, Run, slips
from .checkpoint import Checkpoint
from .checkpoint.state import describe
from .share import Share, stopped
from .step import Loss, Step, check_step, record_step

__all__ = ["Epoch", "Evaluation", "Step", "evaluate", "fit", "record_step"]

_log = logging.getLogger(__name__)
# Rows that are evaluated at once.
_EVALUATED = 1000
# Layers behind which a single example is still a single value a channel, where images are not.
_ROW_BY_ROW = (
    BatchNorm, Dense, Dropout, Flatten, Softmax,
    *(vars(activation)[name] for name in activation.__all__),
)  # fmt: skip


class Evaluation(NamedTuple):
    """What `evaluate` measured.

    Attributes
    ----------
    loss : float
        Mean loss per example.
    accuracy : float
        Fraction of examples that are right, see `evaluate`; NaN where the targets do not tell.
    count : int
        Number of examples.
    """

    loss: float
    accuracy: float
    count: int  # type: ignore[assignment]


class Epoch(NamedTuple):
    """What `fit` reports after each epoch.

    Attributes
    ----------
    epoch : int
        1 for the first.
    loss : float
        Mean training loss per example, each before its step's update.
    accuracy : float or None
        Fraction of training examples classified right, each before its step's update; None unless
        a callback counts them.
    seconds : float
        Time spent on the training steps.
    images_per_second : float
        Over `seconds`; in the first epoch of a process that includes loading or compiling kernels.
    validation, test : Evaluation or None
        Results on the validation and test batches, where given.
    """

    epoch: int
    loss: float
    accuracy: float | None
    seconds: float
    images_per_second: float
    validation: Evaluation | None
    test: Evaluation | None

    @property
    def watched(self) -> Evaluation | None:
        """The result that decides: on the validation batches where given, else on the test's."""
        part = _watched_part(self.validation, self.test)
        return None if part is None else getattr(self, part)


def _watched_part(validation: Any, test: Any) -> str | None:
    return "validation" if validation is not None else "test" if test is not None else None


def fit(
    model: Module,
    batches: Batches | tuple[Any, Any],
    optimizer: Optimizer,
    *,
    epochs: int,
    batch_size: int | None = None,
    rng: np.random.Generator | int | None = None,
    loss: Loss = cross_entropy,
    validation: Batches | tuple[Any, Any] | None = None,
    test: Batches | tuple[Any, Any] | None = None,
    until: float | None = None,
    watch: str = "loss",
    restore_best: bool = False,
    callbacks: Sequence[Callback] = (),
    resume: Checkpoint | None = None,
    strict: bool = True,
    ranks: Ranks | None = None,
) -> list[Epoch]:
    """Train a model.

    Parameters
    ----------
    model : Module
        Trained in place, and left in training mode.
    batches : Batches or (x, y)
        Training data, shuffled again for every epoch. Any iterable of pairs (x, y) that can be
        iterated once per epoch will do. One pair of all examples, arrays, lists, a DataFrame and a
        Series, becomes `Batches`: of rows, or, if the model begins with a layer of images or
        sequences such as Conv2d or LSTM, of examples in their own shape.
    optimizer : Optimizer
        Of the model's parameters.
    epochs : int
        Epochs in all, those before a resume included.
    batch_size : int, optional
        Rows per step of such a pair, 128 by default.
    rng : Generator or int, optional
        Source of the orders of such a pair, or its seed.
    loss : callable, default `nbbn.losses.cross_entropy`
        Maps (output Tensor, labels) to a Tensor of one element, a mean over the batch.
    validation, test : Batches or (x, y), optional
        Evaluated after every epoch.
    until : float, optional
        Stop after the epoch whose accuracy reaches this fraction, on the validation set where
        given, else on the test set.
    watch : {"loss", "accuracy"}, default "loss"
        What decides which epoch is the best, on the same set as `until`: for `EarlyStopping`, the
        best file of `Checkpoints` and `restore_best`.
    restore_best : bool, default False
        Whether the model ends with the parameters and buffers that it had after the best epoch.
        They are part of every checkpoint, so that a resumed run has them too. The optimizer, and
        the last checkpoint, stay those of the last step.
    callbacks : sequence of Callback
        Are told how it goes, in their order; they start in the reverse one.
    resume : Checkpoint, optional
        Go on where this was saved, as if nothing had happened: the numbers are the same bit for
        bit, with any number of threads. Make model, batches and optimizer as for the first
        run; their state is replaced.
    strict : bool, default True
        Whether `watch`, optimizer, schedule and batches must have the settings they had before a
        resume.
    ranks : nbbn.distributed.Ranks, optional
        Train together with the other ranks, which all call this with the same settings: every step
        is made of the batches of all, and every number reported is about all. A pair (x, y) is
        divided among them; `Batches` must have been made with the same `ranks`; of anything else
        each rank passes its own part. Give callbacks that write to rank 0 alone. BatchNorm layers
        with ``sync=True`` normalize over all ranks; the running statistics of others are averaged
        after each epoch.

    Returns
    -------
    list of Epoch
        The finished epochs, those before a resume included; fewer than `epochs` where training was
        stopped. Whether by a signal, `StopOnSignal.signum` tells.

    Raises
    ------
    ArgumentError
        `epochs` below 1; `until`, `restore_best` or `EarlyStopping` without data to watch; an
        accuracy to watch, but targets that are no labels; batches of one example for a BatchNorm
        that needs more; or ranks that differ in weights, data or settings.
    DivergenceError
        The loss is not finite. Parameters and buffers are those before that step; on a device the
        step has been made.
    DTypeError
        An argument of another type than above.
    ShapeError
        A batch without rows.
    CheckpointError
        `resume` belongs to another model, optimizer or data set, was watched by something else, or
        does not hold the best weights that are to be restored.
    """
    _check_callbacks(callbacks)
    with contextlib.ExitStack() as stack:
        # Close every callback in the end, those behind one that fails too.
        for callback in reversed(callbacks):
            stack.callback(callback.close)
        epochs = positive(epochs, "epochs")
        if until is not None:
            until = fraction(until, "until")
        choice(watch, ("loss", "accuracy"), "watch")
        restore_best = switch(restore_best, "restore_best")
        part = _watched_part(validation, test)
        for name, wanted in (("until", until is not None), ("restore_best", restore_best)):
            if wanted and part is None:
                raise ArgumentError(f"{name} needs data to watch: pass validation or test as well")
        check_step(model, loss, optimizer)
        check_ranks(ranks)
        device = optimizer.parameters[0].device
        size = 128 if batch_size is None else positive(batch_size, "batch_size")
        given, rng = batches, generator(rng)
        batches = as_batches(model, batches, size, device, rng, ranks)
        if given is batches and batch_size is not None:
            raise ArgumentError("batch_size is for a pair (x, y): these batches have theirs")
        validation, test = (
            None if data is None else as_batches(model, data, _EVALUATED, device, None, ranks)
            for data in (validation, test)
        )
        check_batches(
            batches, *(data for data in (validation, test) if data is not None), ranks=ranks
        )
        if isinstance(batches, Batches):
            _check_batch_size(model, batches)
        counts = any(callback.counts_right for callback in callbacks)
        if ranks is not None:
            counts = ranks.any(counts)
        needed = "until" if until is not None else "watch='accuracy'"
        needs = part is not None and (until is not None or watch == "accuracy")
        watched = _Watched(loss, counts, device, needed if needs else None, ranks is None)
        share = None if ranks is None else Share(ranks, watched.right, _check_finite)
        step = _Timed(
            record_step(model, watched, optimizer)
            if share is None
            else Step(model, watched, optimizer, share)
        )
        run = Run(model, batches, optimizer, epochs, watch, part)
        if resume is not None:
            instance(resume, Checkpoint, "resume")
            run.resumed = resume
            own = batches if isinstance(batches, Batches) else None
            run.load_state_dict(resume.progress)
            run.history = [_epoch(values) for values in run.history]
            _check_best(run, resume, restore_best, strict)
            checkpoint.restore(resume, model, optimizer, own, strict=strict)
            run.best_state = resume.best if restore_best else {}
        if share is not None:
            share.begin(model, _settings(run, until))
        # The last one first: Checkpoints refuse a folder before a log in it begins again.
        for callback in reversed(callbacks):
            callback.start(run)
        if resume is not None and resume.average and run.average is None and strict:
            raise CheckpointError(
                f"{resume.path} holds an average of the weights: pass EMA again, or strict=False"
            )
        while run.epoch <= epochs and not stopped(run, share) and not _reached(run, until):
            model.train()
            _train_epoch(run, step, watched, callbacks, share)
            if stopped(run, share):
                break
            if share is not None:
                share.end_epoch(model)
            if not run.count:
                raise ArgumentError(
                    f"there are no batches in epoch {run.epoch}: pass Batches, or a list"
                )
            result = Epoch(
                run.epoch,
                run.total / run.count,
                None if run.right is None else run.right / run.count,
                run.seconds,
                run.count / run.seconds,
                *(
                    None if data is None else evaluate(model, data, loss=loss, ranks=ranks)
                    for data in (validation, test)
                ),
            )
            model.train()
            run.history.append(result)
            if restore_best and run.best is result:
                run.best_state = model.state_dict()
            run.next_epoch()
            for callback in callbacks:
                callback.epoch(run, result)
            if device == "cpu" and (ranks is None or ranks.rank == 0):
                step.tell_if_crowded()
        for callback in callbacks:
            callback.end(run)
        # Not before: the last checkpoint is where a longer run goes on.
        if run.best_state:
            model.load_state_dict(run.best_state)
    return run.history


def _settings(run: Run, until: float | None) -> dict[str, Any]:
    """Collect what must be the same on all ranks, beside the weights."""
    batches = run.batches if isinstance(run.batches, Batches) else None
    found: dict[str, Any] = {
        "epochs": run.epochs, "until": until, "watch": run.watch, "first step": run.step,
        **describe(run.model, run.optimizer, batches),
    }  # fmt: skip
    layers = [layer for layer in run.model.modules() if isinstance(layer, BatchNorm)]
    found["sync of each BatchNorm"] = [layer.sync for layer in layers]
    if batches is not None:
        found["order of the examples"] = (batches.position, batches.rng.bit_generator.state)
    return found


def _check_best(run: Run, resume: Checkpoint, restore_best: bool, strict: bool) -> None:
    """Refuse to go on from a checkpoint whose best epoch was chosen otherwise, or is needed."""
    before = resume.progress.get("watch", run.watch)  # which old checkpoints do not state
    if strict and before != run.watch:
        raise CheckpointError(
            f"{resume.path} was trained with watch={before!r}, not {run.watch!r}: keep it, or pass "
            "strict=False"
        )
    best = None if run.best is None else run.best.epoch
    held = resume.progress.get("best_epoch") if resume.best else None
    if restore_best and best != held:
        raise CheckpointError(
            f"{resume.path} does not hold the weights of epoch {best}, the best so far by "
            f"{run.watched}: resume without restore_best, or begin a new run"
        )


class _Timed:
    """A step that notices when other programs hold the cores for which its threads wait.

    A step only computes, on one core at least: what it lacks of one, others have had.
    """

    EVERY = 8  # steps between two that are timed
    least = 0.2  # seconds to judge by
    told = False  # in this process

    def __init__(self, step: Step) -> None:
        self._step, self._count = step, 0
        self._passed = self._had = 0.0

    def __call__(self, x: np.ndarray, y: np.ndarray) -> float:
        self._count += 1
        if self._count % self.EVERY:
            return self._step(x, y)
        passed, had = time.perf_counter(), time.process_time()
        loss = self._step(x, y)
        self._passed += time.perf_counter() - passed
        self._had += time.process_time() - had
        return loss

    def tell_if_crowded(self) -> None:
        """Say it once in a process, if there is something that helps."""
        import numba

        if _Timed.told or self._passed < self.least:
            return
        share = self._had / self._passed
        if share < 0.9 and numba.get_num_threads() > 1:
            _Timed.told = True
            _log.warning(
                "other programs keep the cores busy, training had one for %.0f%% of the time: one "
                "thread may be faster, with nbbn.threads.limit(1) or --threads 1", 100 * share,
            )  # fmt: skip
        self._passed = self._had = 0.0


def _train_epoch(
    run: Run,
    step: _Timed,
    watched: _Watched,
    callbacks: Sequence[Callback],
    share: Share | None,
) -> None:
    """Make the steps of an epoch, or what is left of it."""
    run.start_clock()
    # Of those before a resume rank 0 keeps count.
    backend.fill(watched.right, run.right or 0 if share is None or share.ranks.rank == 0 else 0)
    # Batches know themselves where to go on.
    done = 0 if isinstance(run.batches, Batches) else run.position
    places = _buffers(run.model) if backend.device_of(watched.right) == "cpu" else []
    for x, y in pairs(itertools.islice(run.batches, done, None), empty=share is not None):
        if share is not None:
            share.ask(run)
        # The forward pass writes them before the loss is known.
        before = [(module, name, getattr(module, name).copy()) for module, name in places]
        try:
            # What is not finite is told of below, with the operation that it comes from.
            with np.errstate(all="ignore"):
                run.loss = step(x, y)
            # On a device this is the first look at it: the step has been made.
            if not math.isfinite(run.loss):
                raise _NotFinite(run.loss)
        except _NotFinite as error:
            for module, name, array in before:
                backend.assign(getattr(module, name), array)
            whole = contextlib.nullcontext((x, y))
            with whole if share is None else share.alone(run.model, x, y) as (x, y):
                raise _diverged(run, error.value, x, y, watched.loss) from None
        right = int(watched.right[0]) if share is None else share.right
        run.take(x, y, right if watched.counts else None, None if share is None else share.count)
        for callback in callbacks:
            callback.step(run)
        if run.stopped if share is None else share.stops(run):
            return
    run.stop_clock()


def _buffers(model: Module) -> list[tuple[Module, str]]:
    """Find the arrays that are state but not learned, such as running statistics."""
    return [
        (module, name)
        for module in model.modules()
        for name in module.buffers
        if getattr(module, name) is not None
    ]


def _reached(run: Run, until: float | None) -> bool:
    last = run.history[-1].watched if run.history else None
    return until is not None and last is not None and last.accuracy >= until


def _epoch(values: Sequence[Any]) -> Epoch:
    """Rebuild what JSON has made lists of."""
    *numbers, validation, test = values
    return Epoch(*numbers, *(part and Evaluation(*part) for part in (validation, test)))


def as_batches(
    model: Module,
    data: Any,
    size: int,
    device: str,
    rng: np.random.Generator | None = None,
    ranks: Ranks | None = None,
) -> Any:
    """Return `Batches` of a pair (x, y) of all examples, shuffled by `rng`; or `data` as it is.

    Examples keep their shape where the model begins with a layer that cannot take rows.
    """
    if not isinstance(data, tuple) or len(data) != 2 or isinstance(data[0], tuple):
        return data
    x, y = data
    # A list of arrays is one of two pairs.
    if isinstance(x, list) and any(map(backend.is_array, x)):
        return data
    plain = isinstance(x, list | np.ndarray) or hasattr(x, "to_numpy")
    if not plain and backend.as_csr(x) is None:
        return data
    return Batches(
        x, y, size, shuffle=rng is not None, rng=rng, flatten=_takes_rows(model), device=device,
        ranks=ranks,
    )  # fmt: skip


def _takes_rows(model: Module) -> bool:
    """Whether the first layer can take examples that are rows of numbers."""
    _, first = next(unnested(model), ("", model))
    while isinstance(first, Reweighted):
        first = first.layer
    return first.takes_rows


def check_batches(*all_data: Any, ranks: Ranks | None = None) -> None:
    """Refuse what is not batches, and those that are not divided among `ranks`."""
    for data in all_data:
        if isinstance(data, Batches) and data.ranks is not ranks:
            raise ArgumentError(
                "the batches must be divided among the ranks that use them: pass the same ranks to "
                f"Batches and here, got {data.ranks} and {ranks}"
            )
        pair = isinstance(data, tuple | list) and data and isinstance(data[0], np.ndarray)
        if pair or isinstance(data, np.ndarray):
            raise DTypeError(
                f"expected batches, got arrays ({type(data).__name__}): "
                "pass the pair (x, y), or nbbn.data.Batches(x, y, batch_size)"
            )
        if not isinstance(data, Iterable) or isinstance(data, memoryview):
            raise DTypeError(
                f"expected batches, got {type(data).__name__}: pass nbbn.data.Batches(x, y, "
                "batch_size), or any iterable of pairs (x, y)"
            )


def pairs(batches: Iterable[Any], *, empty: bool = False) -> Iterator[tuple[Any, Any]]:
    """Yield the pairs (x, y) of batches, each checked; `empty` ones too."""
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            many = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
            raise DTypeError(f"batches must be pairs (x, y), got {type(batch).__name__}{many}")
        x, y = batch
        for name, array in (("x", x), ("y", y)):
            if backend.is_array(array) and (array.ndim == 0 or not (empty or len(array))):
                raise ShapeError(
                    f"a batch needs at least one row, but its {name} has shape {array.shape}: "
                    "leave such batches out"
                )
        yield x, y


def _check_callbacks(callbacks: Any) -> None:
    wrong = [callbacks]
    if isinstance(callbacks, Sequence):
        wrong = [callback for callback in callbacks if not isinstance(callback, Callback)]
    if wrong:
        raise DTypeError(
            f"callbacks must be a list of Callbacks, such as [EarlyStopping(3)], got {wrong[0]!r}"
        )
    for callback in callbacks:
        for name in slips(type(callback)):
            _log.warning(
                "%s.%s is never called: the methods that fit calls are %s and %s",
                type(callback).__name__, name, ", ".join(HOOKS[:-1]), HOOKS[-1],
            )  # fmt: skip


def _check_batch_size(model: Module, batches: Batches) -> None:
    """Refuse batches of one example for a layer that needs several, before the first step."""
    count, size = batches.count, batches.batch_size
    if size > count:
        _log.warning(
            "the batch size %d exceeds the %d training examples: every step uses all of them",
            size, count,
        )  # fmt: skip
    ranks = 1 if batches.ranks is None else batches.ranks.size
    rest = 0 if batches.drop_last or size > count else count % size
    batch = min(size, count), f"every batch of {count} by {size} is one", "use larger batches"
    last = rest, f"the last batch of {count} by {size} is one", (
        "use another batch size, drop_last=True"
    )  # fmt: skip
    for name, layer in unnested(model):
        # What other layers make of a row is not known here.
        if not isinstance(layer, _ROW_BY_ROW) or getattr(layer, "axis", 1) not in (1, -1):
            return
        if not isinstance(layer, BatchNorm) or not layer.refuses_single:
            continue
        parts = 1 if layer.sync else ranks
        for rows, reason, advice in (batch, last):
            if rows and rows // parts <= 1:
                reason += f" on one of {ranks} ranks" if parts > 1 else ""
                raise ArgumentError(
                    f"layer {name}, {layer!r}, cannot normalize a single example, but {reason}: "
                    f"{advice} or Convention(on_single='eval')"
                )


class _NotFinite(Exception):  # noqa: N818 - never leaves this module
    def __init__(self, value: float) -> None:
        self.value = value


class _Watched:
    """The loss, and what a step notices beside it before it changes anything.

    It goes through `backend.run`, so that a replayed step notices the same.
    """

    def __init__(
        self, loss: Loss, counts: bool, device: str, needs_labels: str | None, alone: bool = True
    ) -> None:
        self.loss, self.counts = loss, counts
        # Else it is the loss of all ranks that must be finite.
        self._alone = alone
        self._needs_labels = needs_labels
        self.right = backend.zeros(1, np.int64, device)

    def __call__(self, output: Tensor, y: np.ndarray) -> Tensor:
        judge = _judge(self.loss, y, output)
        # The first step always comes here: nothing has changed yet.
        if self._needs_labels and judge is None:
            raise ArgumentError(
                f"{self._needs_labels} needs accuracies: class labels of shape (N,) for outputs "
                f"(N, K), got targets {y.dtype} {y.shape} for outputs {output.shape}; watch='loss' "
                "goes without"
            )
        value = self.loss(output, y)
        one = isinstance(value, Tensor) and value.size == 1 and value.device == "cpu"
        if one and self._alone:
            backend.run(_check_finite, value.data)
        if self.counts and judge is not None:
            backend.run(_count_right, judge, output.data, y, self.right)
        return value


def _judge(loss: Loss, y: Any, output: Tensor) -> Callable[..., Any] | None:
    """Return what tells which examples are right, or None where targets and loss do not."""
    if output.ndim == 2 and y.ndim == 1 and y.dtype.kind in "iu":
        return _largest_is_label
    while isinstance(loss, functools.partial):
        loss = loss.func
    return _all_on_their_side if loss is binary_cross_entropy else None


def _largest_is_label(output: np.ndarray, labels: np.ndarray) -> Any:
    return output.argmax(axis=1) == labels


def _all_on_their_side(logits: np.ndarray, targets: np.ndarray) -> Any:
    agree = (logits > 0) == (targets > 0.5)
    return np.all(agree.reshape(len(logits), -1), axis=1)


def _check_finite(loss: np.ndarray) -> None:
    value = loss.item()
    if not math.isfinite(value):
        raise _NotFinite(value)


def _count_right(judge: Any, output: np.ndarray, y: np.ndarray, right: np.ndarray) -> None:
    np.add(right, np.count_nonzero(judge(output, y)), right)


def _diverged(run: Run, value: float, x: np.ndarray, y: np.ndarray, loss: Loss) -> DivergenceError:
    found = first_nonfinite(run.model, x, y, loss)
    on_cpu = run.optimizer.parameters[0].device == "cpu"
    model = "the model is as before this step" if on_cpu else "the step has been made"
    saved = f"the last good checkpoint is {run.saved}" if run.saved else "no checkpoint was saved"
    # Of this epoch, and as checkpoints and logs count.
    number, total = run.position + 1, run.step + on_cpu
    return DivergenceError(
        f"the loss is {value} at step {number} of epoch {run.epoch} ({total:,} in all): "
        f"{found.text}; {model}; {saved}; {found.advice}"
    )


def evaluate(
    model: Module,
    batches: Batches | tuple[Any, Any],
    *,
    loss: Loss = cross_entropy,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Measure loss and accuracy, with the model in evaluation mode.

    An example is right where the largest of its outputs is that of its label; under
    `binary_cross_entropy`, where every output is on the side of its target. Of other targets
    the accuracy is NaN.

    Parameters
    ----------
    model : Module
        Its mode is restored afterwards.
    batches : Batches or (x, y)
        As for `fit`.
    loss : callable, default `nbbn.losses.cross_entropy`
        A mean over the batch.
    ranks : nbbn.distributed.Ranks, optional
        Measure together with the other ranks: each example counts once, on one of them.

    Returns
    -------
    Evaluation

    Raises
    ------
    ArgumentError
        There are no batches.
    ShapeError
        A batch without rows.
    DTypeError
        Something else than batches.
    """
    instance(model, Module, "model")
    function(loss, "loss")
    check_ranks(ranks)
    device = next((p.device for p in model.parameters()), "cpu")
    batches = as_batches(model, batches, _EVALUATED, device, None, ranks)
    check_batches(batches, ranks=ranks)
    total, right, count = 0.0, 0.0, 0
    with evaluating(model):
        for x, y in pairs(batches, empty=ranks is not None):
            if not len(y):
                continue
            with np.errstate(all="ignore"):
                output = model(x)
                found = loss(output, y)
            instance(found, Tensor, "the loss")
            value = found.item()
            if math.isfinite(total) and not math.isfinite(value):
                where = first_nonfinite(model, x, y, loss)
                _log.warning(
                    "the loss is %s in evaluation: %s; %s", value, where.text, where.advice
                )
            total += value * len(y)
            judge = _judge(loss, y, output)
            if judge is not None:
                right += int(np.count_nonzero(judge(output.data, y)))
            else:
                right = math.nan
            count += len(y)
    if ranks is not None:
        every = np.empty(3)
        ranks.total(np.array([total, right, count]), every)
        total, right, count = float(every[0]), float(every[1]), int(every[2])
    if not count:
        raise ArgumentError("there is nothing to evaluate: batches is empty")
    return Evaluation(total / count, right / count, count)
