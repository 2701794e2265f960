"""The command line: `nbbn train | eval | predict | export | plot | data | info | warmup`."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import NbbnError
from ..train.callbacks import StopOnSignal
from .parser import make_parser

__all__ = ["main"]

# The module and the function of each command; modules load what they need and nothing else.
_COMMANDS = {
    "train": ("train", "run"),
    "eval": ("use", "evaluate"),
    "predict": ("use", "predict"),
    "export": ("use", "export"),
    "plot": ("plot", "run"),
    "data": ("system", "data"),
    "info": ("system", "info"),
    "warmup": ("system", "warmup"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default, which then ends with this: a signal that comes
        after it ends the process with its status too, and without a trace.

    Returns
    -------
    int
        Exit status: 0; 1 if the system failed us; 2 after bad input; 130 after Ctrl-C; 143 after
        SIGTERM.
    """
    _open_streams()
    if argv is None:
        StopOnSignal.exit_at_once()
    with StopOnSignal() as signals, _silent_about(signals):
        try:
            status = _run(argv, signals)
            # All is done and said: from here on a signal changes the status and nothing else.
            signals.hold()
        except BaseException:
            # One that came where `_run` could not catch it: there is no second one.
            if signals.signum is None:
                raise
            status = 130
        if signals.signum is None or status == signals.status:
            return status
        # Whatever an interrupted library has made of it.
        print("nbbn: interrupted", file=sys.stderr)
        return signals.status


def _open_streams() -> None:
    """Open the null device for a standard stream that was closed before we started.

    Otherwise a file of ours would get its number, and what is written to it.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


@contextlib.contextmanager
def _silent_about(signals: StopOnSignal) -> Iterator[None]:
    """Print no traceback of an interrupt that came where Python cannot raise it.

    Such as in a callback of the import system. `signals` has noted it.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if signals.signum is None or unraisable.exc_type is not KeyboardInterrupt:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _run(argv: Sequence[str] | None, signals: StopOnSignal) -> int:
    arguments = make_parser().parse_args(argv)
    module, name = _COMMANDS[arguments.command]
    try:
        command = getattr(importlib.import_module(f".{module}", __name__), name)
        arguments.signals = signals
        status = int(command(arguments) or 0)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader has left: keep the interpreter from complaining when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (NbbnError, OSError) as error:
        if signals.signum is None:
            print(f"nbbn: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, NbbnError) else 1
    except MemoryError as error:
        print(f"nbbn: error: there is not enough memory: {error}", file=sys.stderr)
        return 1
    except BaseException:
        if signals.signum is None:
            raise
        return 130
