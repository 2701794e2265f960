"""`nbbn train`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from .._validation import write_atomically
from ..errors import ArgumentError, CheckpointError, NbbnError
from ..train.callbacks import Callback, EarlyStopping, StopOnSignal
from ..train.config import CNN, Config, Training
from .parser import AUTO
from .values import as_text

if TYPE_CHECKING:
    from ..distributed import Ranks
    from ..train.checkpoint import Checkpoint, Checkpoints

# What may change when a run goes on: how long it is, and where its data lies.
_FREE = {"epochs", "until", "patience", "data"}
_FOLDER = ("out",), "a folder for checkpoints: name it with --out"
_LOG = ("out", "log_file", "tensorboard"), "a log: name its folder with --out, or --log-file"
# Flags that would change nothing without one of others.
_NEEDS = {
    "save_every": _FOLDER,
    "keep": _FOLDER,
    "log_every": _LOG,
    "percentiles": _LOG,
    "watch": (("patience", "out"), "something that asks for the best epoch: --patience or --out"),
}


def run(arguments: argparse.Namespace) -> int:
    """Train, and return the exit status."""
    if arguments.distributed is None:
        return _train(arguments, None)
    from .. import distributed

    try:
        ranks = distributed.start(arguments.distributed)
        with ranks.together():
            return _train(arguments, ranks)
    except (NbbnError, OSError) as error:
        # All ranks have failed alike: the first one says it.
        world = distributed.world()
        if world is None or world.rank == 0:
            raise
        return 2 if isinstance(error, NbbnError) else 1


def _train(arguments: argparse.Namespace, ranks: Ranks | None) -> int:
    _check(arguments)
    if arguments.out is None:
        # Nothing would come of it if nobody read on.
        return _fit(arguments, ranks)
    outputs = _Patient(sys.stdout), _Patient(sys.stderr)
    with contextlib.redirect_stdout(outputs[0]), contextlib.redirect_stderr(outputs[1]):
        return _fit(arguments, ranks)


class _Patient:
    """An output whose reader may leave; what is written after that goes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._unless_left(self._stream.write, text) or 0

    def flush(self) -> None:
        self._unless_left(self._stream.flush)

    def _unless_left(self, call: Callable[..., Any], *arguments: str) -> Any:
        try:
            return call(*arguments)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            print("nbbn: nobody reads this output any more; training goes on", file=sys.stderr)


def _fit(arguments: argparse.Namespace, ranks: Ranks | None) -> int:
    start = time.perf_counter()
    signals: StopOnSignal = arguments.signals
    first = ranks is None or ranks.rank == 0

    def say(text: str) -> None:
        if first and not arguments.quiet:
            print(text, flush=True)

    if ranks is None:
        found = _checkpoint(arguments)
    else:
        if first:
            # A launcher that ends the run names a process, not a rank.
            print(f"nbbn: {ranks.describe()}", file=sys.stderr, flush=True)
        found = ranks.first(lambda: _checkpoint(arguments))
    config = _config(arguments, found)
    if ranks is not None:
        ranks.agree(config.to_dict())
    if arguments.percentiles and not config.batch_norm:
        raise ArgumentError("--percentiles are those of batch normalization: there is none")
    callbacks = [signals, *_watchers(arguments, config, first)]
    keeper = None
    if arguments.out is not None and first:
        from ..train.checkpoint import Checkpoints

        keeper = Checkpoints(arguments.out, every=arguments.save_every, keep=arguments.keep or 3)
        # Last, so that the log has all that a checkpoint covers.
        callbacks.append(keeper)

    from .. import backend

    device = backend.choose(arguments.device)
    training = config.prepare(data_dir=arguments.data_dir, device=device, ranks=ranks)
    # Where there is no TBB: OpenMP's idle threads must not spin on cores that others want.
    if "numba" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    from ..backend import threads
    from ..train import loop as train

    if arguments.threads is not None:
        threads.limit(arguments.threads)
    elif ranks is not None:
        threads.limit(min(ranks.cores, threads.most()))
    say(f"{_summary(config, training)}, on {device}")
    if found is not None:
        say(f"resuming from {found.path}, step {int(found.optimizer['step_count']):,}")
    if keeper is not None:
        keeper.config = training.description()
    if found is not None:
        _check_data(found, config, training)
    history = train.fit(
        training.model, training.batches, training.optimizer,
        epochs=config.epochs, validation=training.validation, test=training.test,
        until=config.until, watch=config.watch, callbacks=callbacks, resume=found,
        strict=found is None or config.epochs == _saved_config(found).epochs, ranks=ranks,
    )  # fmt: skip
    if ranks is not None:
        signals.signum = max(ranks.exchange(signals.signum or 0)) or None
    if signals.signum is not None:
        if first:
            _say_where(keeper, training)
        return signals.status
    if not first:
        return 0
    if found is not None and training.optimizer.step_count == int(found.optimizer["step_count"]):
        say(f"nothing was left to train: the run had ended after epoch {history[-1].epoch}; "
            f"{_advice(config, history[-1].epoch)}")  # fmt: skip
    result = _result(training, history)
    result |= {"seconds": round(time.perf_counter() - start, 3), "device": device}
    result["seed"] = config.seed
    if ranks is not None:
        result["ranks"] = ranks.size
    status = 0
    if keeper is not None:
        say(f"checkpoints in {keeper.folder}")
        status = _finish(keeper, result)
    print(json.dumps(result), flush=True)
    return status


def _check(arguments: argparse.Namespace) -> None:
    """Refuse, before anything is loaded, what cannot work."""
    if arguments.out is None:
        if arguments.resume == AUTO:
            raise ArgumentError("--resume auto looks into the folder --out: name it")
        if arguments.resume is not None:
            path = arguments.resume
            arguments.out = path if path.is_dir() else path.parent
    for name, (others, advice) in _NEEDS.items():
        if getattr(arguments, name, None) and not any(getattr(arguments, o, None) for o in others):
            raise ArgumentError(f"--{name.replace('_', '-')} needs {advice}")


def _checkpoint(arguments: argparse.Namespace) -> Checkpoint | None:
    if arguments.resume is None:
        return None
    from ..train import checkpoint

    if arguments.resume == AUTO:
        return checkpoint.latest(arguments.out)
    return checkpoint.load(arguments.resume)


def _saved_config(found: Checkpoint) -> Config:
    if "config" not in found.config:
        raise CheckpointError(f"{found.path} was not saved by nbbn train: resume it where it was")
    return Config.from_dict(found.config["config"])


def _config(arguments: argparse.Namespace, found: Checkpoint | None) -> Config:
    names = {field.name for field in dataclasses.fields(Config)}
    given = {name: value for name, value in vars(arguments).items() if name in names}
    if "data" in given:
        # A run goes on from any folder.
        given["data"] = tuple(os.path.abspath(d) if os.path.exists(d) else d for d in given["data"])
    if found is None:
        return Config(**{**_recipe(given), **given})
    saved = _saved_config(found)
    for name, value in given.items():
        if name not in _FREE and value != getattr(saved, name):
            raise ArgumentError(
                f"{found.path} was trained with {_flag(name, getattr(saved, name))}, not "
                f"{_flag(name, value)}: leave that out, or begin a new run"
            )
    return dataclasses.replace(saved, **given)


def _recipe(given: dict[str, Any]) -> dict[str, Any]:
    """What replaces the defaults for the model that is asked for."""
    if given.get("model") != "cnn":
        if "channels" in given:
            raise ArgumentError("--channels needs --model cnn: an mlp has none")
        return {}
    if given.get("optimizer", CNN["optimizer"]) == CNN["optimizer"]:
        return CNN
    # The rate and the decay are that optimizer's.
    return {name: CNN[name] for name in ("hidden", "dropout", "epochs")}


def _check_data(found: Checkpoint, config: Config, training: Training) -> None:
    """Refuse to go on with other data, which may lie elsewhere but must be the same."""
    from ..train.checkpoint.state import data_difference

    if difference := data_difference(found.settings.get("batches", {}), training.batches):
        there, here = difference
        before, now = (" ".join(c.data) for c in (_saved_config(found), config))
        raise CheckpointError(
            f"{found.path} was trained on {before}, {there}; {now} holds {here}: give the data "
            "that it was trained on, or begin a new run"
        )


def _advice(config: Config, epoch: int) -> str:
    """Say how a run goes on that had ended."""
    if epoch >= config.epochs:
        return "more --epochs go on"
    limits = [name for name in ("patience", "until") if getattr(config, name) is not None]
    return f"more --{' or --'.join(limits)} goes on"


def _flag(name: str, value: Any) -> str:
    """Spell a setting as on the command line."""
    if name == "batch_norm":
        return "batch normalization" if value else "--no-batch-norm"
    return f"--{name.replace('_', '-')} {as_text(value)}"


def _watchers(arguments: argparse.Namespace, config: Config, first: bool) -> list[Callback]:
    """Make what watches a run; what writes is for the first rank alone."""
    from ..train import logs, progress

    found: list[Callback] = []
    if config.patience is not None:
        found.append(EarlyStopping(config.patience))
    if not first:
        return found
    if not arguments.quiet:
        found.insert(0, progress.Bar() if sys.stderr.isatty() else progress.Lines())
    path = arguments.log_file
    if path is None and arguments.out is not None:
        path = arguments.out / "log.jsonl"
    rows = {"every": arguments.log_every or 50, "percentiles": arguments.percentiles}
    if path is not None:
        found.append(logs.LogFile(path, **rows))
    if arguments.tensorboard is not None:
        found.append(logs.TensorBoard(arguments.tensorboard, **rows))
    return found


def _summary(config: Config, training: Training) -> str:
    counts = [training.batches.count]
    counts += [part.count for part in (training.validation, training.test) if part is not None]
    name = " ".join(config.data).replace("fashion-mnist", "Fashion-MNIST").replace("mnist", "MNIST")
    weights = [p for p in training.model.parameters() if len(p.shape) > 1]
    sizes = [weights[0].shape[1], *(p.shape[0] for p in weights)]
    return (
        f"{name} {' + '.join(f'{count:,}' for count in counts)} images, "
        f"net {'-'.join(map(str, sizes))}, "
        f"{sum(p.size for p in training.model.parameters()):,} parameters, seed {config.seed}"
    )


def _result(training: Training, history: list[Any]) -> dict[str, Any]:
    last = history[-1]
    result: dict[str, Any] = {}
    for name in ("test", "validation"):
        if (found := getattr(last, name)) is not None:
            result |= {f"{name}_accuracy": found.accuracy, f"{name}_loss": found.loss}
    return {
        **result,
        "train_loss": last.loss,
        "epochs": last.epoch,
        "steps": training.optimizer.step_count,
        "images_per_second": round(last.images_per_second),
    }


def _finish(keeper: Checkpoints, result: dict[str, Any]) -> int:
    """Write the result beside the checkpoints; return 1 if something could not be saved."""
    try:
        content = json.dumps(result) + "\n"
        write_atomically(keeper.folder / "result.json", content.encode())
        write_atomically(
            keeper.folder / "config.json", (json.dumps(keeper.config, indent=1) + "\n").encode()
        )
        failed = keeper.error
    except OSError as error:
        failed = error
    if failed is None:
        return 0
    print(f"nbbn: error: the run could not be saved: {failed.strerror}", file=sys.stderr)
    return 1


def _say_where(keeper: Checkpoints | None, training: Training) -> None:
    """Say where an interrupted run can go on."""
    step = training.optimizer.step_count
    if keeper is None:
        text = "nothing was saved, because there is no --out"
    elif step == 0:
        text = "there is nothing to save yet"
    elif keeper.error is not None:
        text = f"the last step could not be saved: {keeper.error.strerror}"
    else:
        text = f"saved in {keeper.folder}; go on with --resume {keeper.folder}"
    print(f"nbbn: stopped after step {step:,}; {text}", file=sys.stderr)
