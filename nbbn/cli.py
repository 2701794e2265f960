"""The command line: `nbbn train | info | warmup | data`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .callbacks import Callback
from .errors import ArgumentError, NbbnError

__all__ = ["main"]

_OPTIMIZERS = ("adam", "adamw", "sgd")
_DEVICES = ("auto", "cpu", "cuda")
_SCHEDULES = ("one-cycle", "cosine", "step", "constant")


class _Parser(argparse.ArgumentParser):
    """Reports a usage error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of a flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.

    Returns
    -------
    int
        Exit status: 0, 2 after bad input, 130 after Ctrl-C.
    """
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except NbbnError as error:
        print(f"nbbn: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader has left: keep the interpreter from complaining when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"nbbn: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nbbn: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="nbbn",
        description="Batch normalization, and the training around it, on NumPy and Numba.",
    )
    parser.add_argument("--version", action="version", version=f"nbbn {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    train = commands.add_parser(
        "train",
        help="train an MLP on MNIST",
        description="Train a multi-layer perceptron with batch normalization on MNIST. "
        "The last line of standard output is a JSON object with the results.",
        formatter_class=_Help,
    )
    add = train.add_argument
    add("--hidden", type=_widths, default="256,128", metavar="N,N", help="widths of hidden layers")
    add("--epochs", type=_count, default=5, metavar="N", help="passes over the training set")
    add("--batch-size", type=_count, default=128, metavar="N", help="images per step")
    add("--lr", type=_positive, default=4e-3, metavar="X", help="highest learning rate")
    add("--optimizer", choices=_OPTIMIZERS, default="adam", help="update rule")
    add("--schedule", choices=_SCHEDULES, default="one-cycle", help="learning rate over the steps")
    add("--weight-decay", type=_not_negative, default=0.0, metavar="X", help="decay of the weights")
    add("--momentum", type=_not_negative, default=0.9, metavar="X", help="momentum of sgd")
    add("--dropout", type=_probability, default=0.0, metavar="P", help="dropout probability")
    add("--no-batch-norm", action="store_true", help="leave the batch normalization out")
    add("--until", type=_fraction, metavar="X", help="stop at this test accuracy, such as 0.98")
    add("--seed", type=_seed, default=0, metavar="N", help="of weights, shuffling and dropout")
    add("--device", choices=_DEVICES, default="cpu", help="where to train; auto: cuda if it can be")
    add("--threads", type=_count, metavar="N", help="threads of kernels and matrix products")
    add("--dedicated", action="store_true", help="faster where nothing else runs, slow elsewhere")
    add("--data-dir", type=_folder, metavar="DIR", help="folder of the four MNIST files")
    add("--out", type=_folder, metavar="DIR", help="folder for weights (model.npz) and result.json")
    add("--quiet", action="store_true", help="print the JSON line only")
    train.set_defaults(run=_train)

    info = commands.add_parser("info", help="show versions, BLAS, threads, cache and devices")
    info.set_defaults(run=_info)

    warm = commands.add_parser(
        "warmup",
        help="compile all kernels into the cache",
        description="Compile all kernels into the cache.",
    )
    warm.add_argument("--quiet", action="store_true", help="print nothing")
    warm.set_defaults(run=_warmup)

    data = commands.add_parser(
        "data", help="fetch and verify MNIST", description="Fetch and verify MNIST."
    )
    data.add_argument("--data-dir", type=_folder, metavar="DIR", help="folder for the four files")
    data.set_defaults(run=_data)
    return parser


# ---------------------------------------------------------------- values of flags


def _number(
    text: str, convert: Callable[[str], Any], accept: Callable[[Any], bool], what: str
) -> Any:
    try:
        value = convert(text)
    except ValueError:
        value = None
    if value is None or not accept(value):
        raise argparse.ArgumentTypeError(f"expected {what}, got {text!r}")
    return value


def _count(text: str) -> int:
    return int(_number(text, int, lambda n: n >= 1, "an integer of at least 1"))


def _seed(text: str) -> int:
    return int(_number(text, int, lambda n: n >= 0, "an integer of at least 0"))


def _positive(text: str) -> float:
    return float(_number(text, float, lambda x: 0 < x < float("inf"), "a finite number above 0"))


def _fraction(text: str) -> float:
    return float(_number(text, float, lambda x: 0 < x <= 1, "a number between 0 and 1"))


def _not_negative(text: str) -> float:
    return float(_number(text, float, lambda x: 0 <= x < float("inf"), "a finite number >= 0"))


def _probability(text: str) -> float:
    return float(_number(text, float, lambda x: 0 <= x < 1, "a probability of at least 0, below 1"))


def _folder(text: str) -> Path:
    return Path(_number(text, str, bool, "the path of a folder"))


def _widths(text: str) -> tuple[int, ...]:
    if not text:
        return ()
    what = "comma-separated widths such as 256,128"
    return tuple(int(_number(part, int, lambda n: n >= 1, what)) for part in text.split(","))


# ---------------------------------------------------------------- commands


def _train(arguments: argparse.Namespace) -> None:
    start = time.perf_counter()

    def say(text: str) -> None:
        if not arguments.quiet:
            print(text, flush=True)

    if arguments.out is not None:
        _prepare(arguments.out)

    import numpy as np

    from . import backend, data, optim, threads
    from .layers import mlp

    device = backend.choose(arguments.device)
    rng = np.random.default_rng(arguments.seed)
    mnist = data.load_mnist(arguments.data_dir)
    assert mnist.test_images is not None
    assert mnist.test_labels is not None
    sizes = (784, *arguments.hidden, 10)
    model = mlp(sizes, batch_norm=not arguments.no_batch_norm, dropout=arguments.dropout, rng=rng)
    model.to(device)
    place: dict[str, Any] = {"reuse": True, "device": device}
    batches = data.Batches(
        mnist.train_images, mnist.train_labels, arguments.batch_size, rng=rng, **place
    )
    test = data.Batches(mnist.test_images, mnist.test_labels, 1000, shuffle=False, **place)
    rate = optim.SCHEDULES[arguments.schedule](arguments.lr, arguments.epochs * len(batches))
    options: dict[str, Any] = {"weight_decay": arguments.weight_decay}
    if arguments.optimizer == "sgd":
        options["momentum"] = arguments.momentum
    optimizer = optim.OPTIMIZERS[arguments.optimizer](model.parameters(), lr=rate, **options)

    # Two pools: OpenMP's idle threads must not spin while matrix products run.
    if "numba" not in sys.modules and not arguments.dedicated:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    from . import progress, train

    if arguments.threads is not None:
        threads.limit(arguments.threads)
    if arguments.dedicated:
        threads.share()
    if not arguments.quiet:
        _announce_compilation()
    count = sum(p.size for p in model.parameters())
    say(
        f"MNIST {len(mnist.train_labels):,} + {len(mnist.test_labels):,} images, "
        f"net {'-'.join(map(str, sizes))}, {count:,} parameters, seed {arguments.seed}, on {device}"
    )
    callbacks: list[Callback] = []
    if not arguments.quiet:
        callbacks.append(progress.Bar() if sys.stderr.isatty() else progress.Lines())
    history = train.fit(
        model, batches, optimizer,
        epochs=arguments.epochs, test=test, until=arguments.until, callbacks=callbacks,
    )  # fmt: skip
    last = history[-1]
    assert last.test is not None
    result = {
        "test_accuracy": last.test.accuracy,
        "test_loss": last.test.loss,
        "train_loss": last.loss,
        "epochs": last.epoch,
        "steps": optimizer.step_count,
        "images_per_second": round(last.images_per_second),
        "seconds": round(time.perf_counter() - start, 3),
        "device": device,
        "seed": arguments.seed,
    }
    if arguments.out is not None:
        _save(arguments.out, model.state_dict(), result)
        say(f"weights in {arguments.out / 'model.npz'}")
    print(json.dumps(result), flush=True)


def _prepare(folder: Path) -> None:
    """Make sure before training that results can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ArgumentError(f"cannot write to --out {folder}: {error.strerror}") from None


def _save(folder: Path, state: dict[str, Any], result: dict[str, Any]) -> None:
    import numpy as np

    try:
        part = folder / f".model-{os.getpid()}.npz"
        np.savez(part, **state)
        os.replace(part, folder / "model.npz")
        (folder / "result.json").write_text(json.dumps(result) + "\n")
    except OSError as error:
        raise ArgumentError(f"cannot write to --out {folder}: {error.strerror}") from None


def _announce_compilation() -> None:
    """Say once that kernels compile, the first time one does."""
    from .kernels import _cache

    def announce(name: str) -> None:
        print("compiling kernels for the first time; the next run finds them in the cache",
              file=sys.stderr, flush=True)  # fmt: skip
        _cache.on_compile = None

    _cache.on_compile = announce


def _info(arguments: argparse.Namespace) -> None:
    import platform

    import llvmlite
    import llvmlite.binding as llvm
    import numba
    import numpy as np
    from numba.np.ufunc.parallel import _launch_threads
    from threadpoolctl import threadpool_info

    from . import backend
    from .data.chain import cache_dir as data_cache
    from .kernels._cache import cache_dir

    _launch_threads()
    rows = [
        ("nbbn", __version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("numpy", np.__version__),
        ("numba", f"{numba.__version__} (llvmlite {llvmlite.__version__})"),
    ]
    for pool in threadpool_info():
        if pool["user_api"] == "blas":
            rows.append(
                ("BLAS", f"{pool['internal_api']} {pool['version']}, {pool.get('architecture')} "
                 f"kernels, {pool['num_threads']} threads")
            )  # fmt: skip
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        if name in os.environ:
            rows.append(("", f"{name}={os.environ[name]} is set: matrix products may be slow"))
    layer = numba.threading_layer()
    serial = " (not safe between threads: kernels run serially)" if layer == "workqueue" else ""
    rows += [
        ("threads", f"{numba.get_num_threads()} of {os.cpu_count()}, layer {layer}{serial}"),
        ("processor", llvm.get_host_cpu_name()),
        ("kernel cache", str(cache_dir() or "none: every process compiles")),
        ("data cache", str(data_cache("mnist"))),
        *zip(("devices", *[""] * 9), backend.describe_devices(), strict=False),
    ]
    for label, value in rows:
        print(f"{label:13} {value}")


def _warmup(arguments: argparse.Namespace) -> None:
    from .kernels._cache import cache_dir
    from .precompile import warmup

    start = time.perf_counter()
    count = warmup(on_compile=None if arguments.quiet else lambda name: print(f"compiling {name}"))
    if not arguments.quiet:
        seconds = time.perf_counter() - start
        print(f"{count} kernels compiled in {seconds:.1f} s, cached in {cache_dir()}")


def _data(arguments: argparse.Namespace) -> None:
    from .data import load_mnist

    mnist = load_mnist(arguments.data_dir)
    assert mnist.test_labels is not None
    counts = f"{len(mnist.train_labels):,} training and {len(mnist.test_labels):,} test images"
    print(f"MNIST verified: {counts}")
