"""The flags of every command."""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path
from typing import Any, NoReturn

from .. import __version__
from ..train.config import CNN, MODELS, OPTIMIZERS, SCHEDULES, STANDARDIZE, WATCH, Config
from . import values

_DEVICES = ("auto", "cpu", "cuda")
# What --resume takes instead of a path.
AUTO = Path("auto")

# Flags that are fields of Config: those not given stay out of the result, so that a resumed run can
# tell what was asked for from what is the default.
_NOT_GIVEN = argparse.SUPPRESS


class _Parser(argparse.ArgumentParser):
    """Takes flags by their whole names only, and reports a usage error in one line."""

    def __init__(self, **options: Any) -> None:
        # What an abbreviation means would change with every new flag.
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse unknown flags here, so that the error names the command whose help has them."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


class _Help(argparse.RawDescriptionHelpFormatter):
    """Uses the width of the terminal, puts short flags beside their help, and groups together."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)

    def format_help(self) -> str:
        """Leave out the empty lines between groups, whose titles stand out."""
        return re.sub(r"\n\n(?=\w+:\n)", "\n", super().format_help())


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = _Parser(
        prog="nbbn",
        description="Batch normalization, and the training around it, on NumPy and Numba.",
    )
    parser.add_argument("--version", action="version", version=f"nbbn {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    _train(commands)
    _eval(commands)
    _predict(commands)
    _export(commands)
    _plot(commands)
    _data(commands)
    _command(commands, "info", "show versions, BLAS, threads, cache and devices")
    warm = _command(commands, "warmup", "compile all kernels into the cache")
    warm.add_argument("--quiet", action="store_true", help="print nothing")
    return parser


def _command(commands: Any, name: str, summary: str, description: str = "") -> Any:
    """Add a command; its description is its summary as a sentence, unless there is more to say."""
    sentence = f"{summary[0].upper()}{summary[1:]}."
    return commands.add_parser(name, help=summary, description=description or sentence)


def _train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train a classifier, on MNIST or on your own data",
        usage="nbbn train [flags]",
        description="Train an MLP or a CNN; the last line is JSON. "
        "Ctrl-C and SIGTERM save and stop.",
        formatter_class=_Help,
        add_help=False,
    )
    defaults = {field.name: field.default for field in dataclasses.fields(Config)}

    def own(group: Any, flag: str, metavar: str, text: str, **options: Any) -> None:
        name = flag.removeprefix("--").replace("-", "_")
        default = defaults[name]
        shown = []
        if default is not None and default != 0 and name != "data":
            shown.append(values.as_text(default))
        if name in CNN:
            shown.append(f"cnn: {values.as_text(CNN[name])}")
        if shown:
            text += f" [{'; '.join(shown)}]"
        options = options or {"type": values.setting(name, default)}
        group.add_argument(flag, default=_NOT_GIVEN, help=text, metavar=metavar, **options)

    data = train.add_argument_group("data")
    own(data, "--data", "DATA", "mnist, fashion-mnist, .npz, folder or two files",
        nargs="+", action=values.Source)  # fmt: skip
    data.add_argument("--data-dir", type=values.existing_folder, metavar="DIR",
                      help="folder of the four files of a named data set")  # fmt: skip
    own(data, "--validation", "X", "fraction of the training set to validate with")
    own(data, "--standardize", "HOW", _any_of(STANDARDIZE))

    model = train.add_argument_group("model")
    own(model, "--model", "NAME", _any_of(MODELS))
    own(model, "--channels", "N,N", "of a cnn: channels in each stage")
    own(model, "--hidden", "N,N", "widths of the hidden layers")
    own(model, "--dropout", "P", "dropout probability")
    model.add_argument("--no-batch-norm", action="store_false", dest="batch_norm",
                       default=_NOT_GIVEN, help="leave the batch normalization out")  # fmt: skip

    steps = train.add_argument_group("training")
    own(steps, "--epochs", "N", "passes over the training set")
    own(steps, "--batch-size", "N", "examples per step")
    own(steps, "--optimizer", "NAME", _any_of(OPTIMIZERS))
    own(steps, "--lr", "X", "highest learning rate")
    own(steps, "--schedule", "NAME", _any_of(SCHEDULES))
    own(steps, "--weight-decay", "X", "decay of the weights")
    own(steps, "--momentum", "X", "of sgd [0.9]")
    own(steps, "--until", "X", "stop at this accuracy, such as 0.98")
    own(steps, "--patience", "N", "stop after N epochs without a better one")
    own(steps, "--watch", "NAME", f"what is better, {_any_of(WATCH)}")
    own(steps, "--seed", "N", "of weights, shuffling, dropout and split [0]")

    run = train.add_argument_group("run")
    add = run.add_argument
    add("--out", type=values.path, metavar="DIR", help="folder of checkpoints, log and result")
    add("--resume", nargs="?", const=AUTO, type=values.path, metavar="PATH",
        help="go on; auto: from the last checkpoint in --out")  # fmt: skip
    add("--save-every", type=values.count, metavar="N", help="steps between checkpoints [an epoch]")
    add("--keep", type=values.count, metavar="N", help="checkpoints to keep in --out [3]")
    add("--log-file", type=values.path, metavar="FILE", help=".jsonl or .csv [log.jsonl in --out]")
    add("--log-every", type=values.count, metavar="N", help="steps between rows of the log [50]")
    add("--percentiles", action="store_true", help="log those of every batch norm's input")
    add("--tensorboard", type=values.path, metavar="DIR", help="write for TensorBoard as well")
    add("--quiet", action="store_true", help="print the JSON line only")
    add("--device", choices=_DEVICES, default="cpu", metavar="NAME",
        help="auto, cpu or cuda; auto: cuda if it can be [cpu]")  # fmt: skip
    add("--threads", type=values.count, metavar="N", help="threads of kernels and products")
    add("--distributed", nargs="?", const=25.0, type=values.seconds, metavar="S",
        help="with all ranks of mpiexec; the wait for one [25]")  # fmt: skip
    add("--help", "-h", action="help", help="show this and exit")


def _any_of(choices: tuple[str, ...]) -> str:
    return f"{', '.join(choices[:-1])} or {choices[-1]}"


def _checkpoint(parser: Any) -> None:
    parser.add_argument(
        "checkpoint", type=values.path, metavar="CKPT", help="a checkpoint, or the folder of a run"
    )


def _data_dir(parser: Any) -> None:
    parser.add_argument(
        "--data-dir", type=values.existing_folder, metavar="DIR", help="as in nbbn train"
    )


def _eval(commands: Any) -> None:
    evaluate = _command(
        commands, "eval", "measure a trained classifier",
        "Measure loss and accuracy of a checkpoint on the test set of its data, or on its "
        "validation split where there is none. The last line is a JSON object.",
    )  # fmt: skip
    _checkpoint(evaluate)
    add = evaluate.add_argument
    add("--data", nargs="+", action=values.Source, metavar="DATA",
        help="other data: as in nbbn train; its test set")  # fmt: skip
    _data_dir(evaluate)
    add("--per-class", action="store_true", help="print precision, recall and F1 of each class")


def _predict(commands: Any) -> None:
    predict = _command(
        commands, "predict", "classify images",
        "Classify images: .npy, IDX, or pictures such as PNG (extra nbbn[image]). MNIST's digits "
        "are white on black.",
    )  # fmt: skip
    _checkpoint(predict)
    add = predict.add_argument
    add("images", nargs="+", type=values.path, metavar="IMAGES",
        help="files of one image or of many")  # fmt: skip
    add("--invert", action="store_true", help="turn black on white around")
    add("--json", action="store_true", help="one JSON object per image")


def _export(commands: Any) -> None:
    export = _command(
        commands, "export", "write a trained classifier for other programs",
        "Write the model of a checkpoint: .onnx (extra nbbn[onnx]), or its weights under "
        "PyTorch's names: .safetensors, .npz.",
    )  # fmt: skip
    _checkpoint(export)
    export.add_argument("target", type=values.path, metavar="FILE", help="where to write")


def _plot(commands: Any) -> None:
    plot = _command(
        commands, "plot", "draw curves, confusion matrix, mistakes and percentiles of runs",
        "Draw loss and accuracy of one or more runs; for each run with checkpoints its confusion "
        "matrix and mistakes; where --percentiles was given, those. Extra nbbn[plot].",
    )  # fmt: skip
    add = plot.add_argument
    add("runs", nargs="+", type=values.path, metavar="RUN", help="folder of a run, or a log file")
    add("--out", type=values.path, metavar="DIR", help="folder for the PNG files [of the 1st run]")
    _data_dir(plot)


def _data(commands: Any) -> None:
    add = _command(commands, "data", "fetch and verify a data set").add_argument
    add("name", nargs="?", choices=("mnist", "fashion-mnist"), default="mnist", metavar="NAME",
        help="mnist or fashion-mnist [mnist]")  # fmt: skip
    add("--dir", type=values.path, metavar="DIR", help="folder for the four files [the cache]")
