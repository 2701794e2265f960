"""The command line as its users meet it: flags, files, signals, resumes, and what comes after."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numba
import numpy as np
import pytest

from nbbn import checkpoint, data, logs, metrics, optim, train
from nbbn.errors import ArgumentError, CheckpointError, DTypeError
from nbbn.train.callbacks import Callback, StopOnSignal
from nbbn.train.config import Config
from nbbn.train.inference import Classifier, read_images
from tests.helpers.small_run import FLAGS, call, digits


def fit(training, *callbacks, epochs=1, **options):
    return train.fit(
        training.model, training.batches, training.optimizer, epochs=epochs,
        callbacks=callbacks, **options,
    )  # fmt: skip


def weights(folder):
    return {name: array.tobytes() for name, array in checkpoint.load(folder).model.items()}


# ---------------------------------------------------------------------------------- flags


def test_help_fits_on_one_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, lines, _ = call(capsys, "train", "--help")
    assert status == 0
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80


def test_every_flag_of_training(own, tmp_path, capsys):
    status, lines, _ = call(
        capsys, "train", "--data", own, "--validation", 0.1, "--standardize", "global",
        "--hidden", "9,5", "--no-batch-norm", "--epochs", 3, "--batch-size", 7,
        "--optimizer", "sgd", "--lr", 0.05, "--schedule", "cosine", "--weight-decay", 1e-3,
        "--momentum", 0.5, "--patience", 2, "--seed", 4, "--out", tmp_path / "run",
        "--save-every", 5, "--keep", 2, "--log-file", tmp_path / "own.csv", "--log-every", 4,
        "--tensorboard", tmp_path / "board", "--device", "cpu",
    )  # fmt: skip
    assert status == 0
    result = json.loads(lines[-1])
    assert result == json.loads((tmp_path / "run" / "result.json").read_text())
    assert {"test_accuracy", "validation_accuracy", "train_loss", "steps"} <= result.keys()
    assert result["steps"] == 39
    assert "90 + 10 + 40 images, net 16-9-5-3" in lines[0]
    found = checkpoint.load(tmp_path / "run")
    assert found.settings["optimizer"]["momentum"] == 0.5
    assert found.settings["optimizer"]["weight_decay"] == 1e-3
    assert found.settings["schedule"] == {
        "type": "Cosine", "lr": 0.05, "total": 39, "final": 0.0, "warmup": 0,
    }  # fmt: skip
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["seed"] == 4
    saved = sorted(path.name for path in (tmp_path / "run").glob("step-*"))
    assert saved == ["step-00000035.safetensors", "step-00000039.safetensors"]
    rows = list(csv.DictReader((tmp_path / "own.csv").read_text().splitlines()))
    steps = [int(row["step"]) for row in rows if row["kind"] == "step"]
    assert steps == list(range(4, 40, 4))
    assert list((tmp_path / "board").iterdir())


def test_a_cnn_trains_resumes_and_is_used(own, tmp_path, capsys):
    """As long as once without a stop, to the bit; and onnxruntime computes the same."""
    flags = ("--data", own, "--model", "cnn", "--channels", 3, *FLAGS, "--quiet")
    call(capsys, "train", *flags, "--epochs", 4, "--out", tmp_path / "whole")
    call(capsys, "train", *flags, "--epochs", 4, "--out", tmp_path / "run", "--save-every", 5)
    for late in sorted((tmp_path / "run").glob("step-*"))[-2:]:
        late.unlink()
    status, lines, _ = call(capsys, "train", "--resume", tmp_path / "run", "--quiet")
    assert status == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    result = json.loads(lines[-1])
    status, lines, _ = call(capsys, "eval", tmp_path / "run")
    assert json.loads(lines[-1])["accuracy"] >= result["test_accuracy"]
    classifier = Classifier.load(tmp_path / "run")
    assert [type(layer).__name__ for layer in classifier.model][:2] == ["Unflatten", "Conv2d"]
    assert (classifier.config.model, classifier.config.channels) == ("cnn", (3,))
    images, _ = digits(9, 2)
    assert classifier.probabilities(images).shape == (9, 3)
    status, lines, error = call(capsys, "export", tmp_path / "run", tmp_path / "model.onnx")
    assert (status, error) == (0, "")


def test_a_cnn_has_defaults_of_its_own(own, tmp_path, capsys):
    flags = ("--data", own, "--model", "cnn", "--channels", 2, "--epochs", 1, "--quiet", "--out")
    call(capsys, "train", *flags, tmp_path / "sgd")
    call(capsys, "train", *flags, tmp_path / "adam", "--optimizer", "adam")
    found = [checkpoint.load(tmp_path / name).config["config"] for name in ("sgd", "adam")]
    assert [(c["optimizer"], c["lr"], c["weight_decay"]) for c in found] == [
        ("sgd", 0.1, 5e-4),
        ("adam", 4e-3, 0.0),
    ]
    assert [(c["hidden"], c["dropout"]) for c in found] == [([128], 0.3)] * 2


def test_channels_belong_to_a_cnn(own, capsys):
    status, _, error = call(capsys, "train", "--data", own, "--channels", 3)
    assert status == 2
    assert "--channels needs --model cnn" in error


def test_it_learns_and_until_stops_it(own, capsys):
    status, lines, _ = call(
        capsys, "train", "--data", own, *FLAGS, "--epochs", 200, "--until", 0.9, "--quiet"
    )
    assert status == 0
    assert len(lines) == 1
    result = json.loads(lines[0])
    assert result["test_accuracy"] >= 0.9
    assert result["epochs"] < 200


def test_the_command_is_a_few_lines_of_public_api(own, tmp_path, capsys):
    call(capsys, "train", "--data", own, *FLAGS, "--epochs", 3, "--out", tmp_path, "--quiet")
    training = Config(
        data=(str(own),), hidden=(8,), batch_size=16, dropout=0.2, seed=1, epochs=3
    ).prepare()  # fmt: skip
    keeper = checkpoint.Checkpoints(tmp_path / "own", config=training.description())
    fit(training, keeper, epochs=3)
    assert weights(tmp_path / "own") == weights(tmp_path)
    images, _ = digits(9, 2)
    np.testing.assert_array_equal(
        Classifier.load(tmp_path / "own").probabilities(images),
        Classifier.load(sorted(tmp_path.glob("step-*"))[-1]).probabilities(images),
    )


def test_a_plain_training_loads_nothing_that_it_does_not_use(own):
    script = "import sys; from nbbn.cli import main; main(sys.argv[1:]); print(*sys.modules)"
    flags = ["train", "--data", str(own), *FLAGS, "--epochs", "1", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", script, *flags], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "numba" in loaded
    assert not loaded & {"safetensors", "PIL", "matplotlib", "tensorboardX", "tqdm", "onnx"}
    assert not loaded & {"nbbn.data.mirrors", "nbbn.data.wheel", "nbbn.plots", "nbbn.inference"}


# -------------------------------------------------------------------------------- configs


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": True}, "epochs must be an integer, got bool"),
        ({"hidden": (3, 0)}, "hidden must be at least 1, got 0"),
        ({"hidden": 3}, "hidden must be a list of integers, got int"),
        ({"lr": float("inf")}, "lr must be finite, got inf"),
        ({"optimizer": "x"}, "optimizer must be one of 'adam', 'adamw', 'sgd'; got 'x'"),
        ({"schedule": None}, "schedule must be one of 'one-cycle'"),
        ({"validation": 1.0}, "validation must be at least 0 and below 1, got 1.0"),
        ({"until": 0}, "until must be above 0 and at most 1, got 0.0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"momentum": 0.9}, "momentum belongs to the optimizer sgd"),
        ({"watch": "f1"}, "watch must be one of 'loss', 'accuracy'; got 'f1'"),
    ],
)
def test_a_configuration_checks_itself(values, reason):
    with pytest.raises((ArgumentError, DTypeError), match=reason):
        Config(**values)


def test_a_configuration_survives_json():
    config = Config(data=("a", "b"), hidden=(3,), optimizer="sgd", momentum=0.5, patience=2)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(CheckpointError, match="not the configuration of a training"):
        Config.from_dict({"colour": "red"})


def test_a_run_from_before_watch_goes_on_by_the_accuracy():
    before = Config(seed=3).to_dict()
    del before["watch"]
    assert Config.from_dict(before) == Config(seed=3, watch="accuracy")


# ------------------------------------------------------------------------------ what is shown


def test_lines_where_there_is_no_terminal(own, capsys):
    _, lines, error = call(capsys, "train", "--data", own, *FLAGS, "--epochs", 2)
    assert [line.split("  ")[0] for line in lines[1:3]] == ["epoch 1", "epoch 2"]
    assert "images/s" in lines[1]
    assert "it/s" not in error


def test_a_bar_on_a_terminal(own, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    status, lines, error = call(capsys, "train", "--data", own, *FLAGS, "--epochs", 2)
    assert status == 0
    assert len(lines) == 4
    assert "epoch 2" in error
    assert "/100 [" in error
    assert "images/s" in error


# -------------------------------------------------------------------------------- resuming


def test_more_epochs(own, tmp_path, capsys):
    flags = ("--data", own, *FLAGS, "--out", tmp_path, "--quiet")
    call(capsys, "train", *flags, "--epochs", 2)
    status, lines, _ = call(capsys, "train", "--resume", tmp_path, "--epochs", 4, "--quiet")
    assert status == 0
    assert json.loads(lines[0])["epochs"] == 4
    rows = logs.read_log(tmp_path)
    assert [row["epoch"] for row in rows if row["kind"] == "epoch"] == [1, 2, 3, 4]


def test_other_flags_than_before_are_refused(own, tmp_path, capsys):
    flags = ("--data", own, *FLAGS, "--out", tmp_path, "--quiet")
    call(capsys, "train", *flags, "--epochs", 1)
    log = (tmp_path / "log.jsonl").read_bytes()
    status, _, error = call(capsys, "train", *flags, "--resume", "--hidden", 9)
    assert status == 2
    assert "was trained with --hidden 8, not --hidden 9: leave that out" in error
    status, _, error = call(capsys, "train", *flags)
    assert status == 2
    assert "holds another run's checkpoints, up to step-00000007.safetensors, and this one" in error
    assert log
    assert (tmp_path / "log.jsonl").read_bytes() == log


def test_resume_auto_begins_where_there_is_nothing(own, tmp_path, capsys):
    flags = ("--data", own, *FLAGS, "--out", tmp_path / "new", "--resume", "auto", "--epochs", 1)
    status, lines, _ = call(capsys, "train", *flags, "--quiet")
    assert (status, json.loads(lines[0])["epochs"]) == (0, 1)


def test_a_resumed_run_may_log_other_columns_and_start_elsewhere(
    own, tmp_path, capsys, monkeypatch
):
    log = ("--log-file", tmp_path / "log.csv", "--log-every", 3, "--quiet")
    monkeypatch.chdir(own.parent)
    call(capsys, "train", "--data", own.name, *FLAGS, "--epochs", 1, "--out", tmp_path / "run",
         "--percentiles", *log)  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "train", "--resume", "run", "--epochs", 2, *log)[0] == 0
    steps = [row for row in logs.read_log(tmp_path / "log.csv") if row["kind"] == "step"]
    assert [("1.p50" in row) for row in steps] == [row["epoch"] == 1 for row in steps]
    assert {row["epoch"] for row in steps} == {1, 2}


def test_a_damaged_log_does_not_keep_a_run_from_going_on(own, tmp_path, capsys, caplog):
    call(capsys, "train", "--data", own, *FLAGS, "--epochs", 1, "--out", tmp_path, "--quiet")
    path = tmp_path / "log.jsonl"
    damaged = path.read_bytes() + bytes(100) + b"\n"
    path.write_bytes(damaged)
    flags = ("--epochs", 2, "--log-every", 1, "--quiet")
    assert call(capsys, "train", "--resume", tmp_path, *flags)[0] == 0
    assert "is not a log of nbbn" in caplog.text
    assert (tmp_path / "log.jsonl.damaged").read_bytes() == damaged
    assert {row["epoch"] for row in logs.read_log(tmp_path)} == {2}


def test_a_run_resumed_with_another_number_of_threads_is_the_same(own, tmp_path, capsys):
    flags = ("--data", own, *FLAGS, "--schedule", "constant", "--quiet")
    call(capsys, "train", *flags, "--epochs", 2, "--out", tmp_path / "straight")
    before = numba.get_num_threads()
    call(capsys, "train", *flags, "--epochs", 1, "--out", tmp_path / "parts", "--threads", 1)
    numba.set_num_threads(before)
    call(capsys, "train", "--epochs", 2, "--quiet", "--resume", tmp_path / "parts")
    one, two = (checkpoint.latest(tmp_path / name).model for name in ("straight", "parts"))
    assert one.keys() == two.keys()
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid:RuntimeWarning")
def test_divergence_names_step_layer_and_checkpoint(own, tmp_path, capsys):
    flags = ("--optimizer", "sgd", "--lr", 1e20, "--no-batch-norm", "--schedule", "constant")
    status, _, error = call(
        capsys, "train", "--data", own, *FLAGS, *flags, "--out", tmp_path, "--save-every", 1
    )
    assert status == 2
    assert "at step " in error
    assert "layer " in error
    saved = list(tmp_path.glob("step-*"))
    expected = f"the last good checkpoint is {max(saved)}" if saved else "no checkpoint was saved"
    assert expected in error


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_log_has_no_rows_of_lost_steps(ending, own, tmp_path, capsys):
    def go(folder, *more):
        path = tmp_path / f"{folder}.{ending}"
        flags = ("--out", tmp_path / folder, "--log-file", path, "--log-every", 2, "--quiet")
        assert call(capsys, "train", "--data", own, *FLAGS, *flags, *more)[0] == 0
        rows = logs.read_log(path)
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]

    whole = go("whole", "--epochs", 4)
    go("cut", "--epochs", 4)
    for path in sorted((tmp_path / "cut").glob("step-*"))[1:]:
        path.unlink()
    path = tmp_path / f"cut.{ending}"
    path.write_text(path.read_text() + '{"kind": "st')
    assert go("cut", "--resume") == whole
    assert len(whole) == 4 + 14


# --------------------------------------------------------------------------------- signals

_ENVIRONMENT = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
# Seconds after which a process hangs; a busy machine takes many of them.
LIMIT = 300


def start(*arguments, script=None):
    """Start the command, or a script that is given its arguments."""
    code = ("-m", "nbbn") if script is None else ("-c", script)
    return subprocess.Popen(
        [sys.executable, "-W", "error", *code, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_ENVIRONMENT,
    )  # fmt: skip


def wait_for_rows(path, count, process):
    """Wait until a log has so many lines."""
    until = time.monotonic() + LIMIT
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)


def test_signals_and_kills_at_random_steps_change_nothing(own, tmp_path):
    rng = random.Random(3)
    flags = ("--data", own, *FLAGS, "--epochs", 150, "--log-every", 1, "--keep", 2)
    whole = start("train", *flags, "--out", tmp_path / "whole", "--quiet")
    out = tmp_path / "cut"
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        done = len((out / "log.jsonl").read_bytes().splitlines()) if out.exists() else 0
        with start("train", *flags, "--out", out, "--resume", "--save-every", 7) as process:
            wait_for_rows(out / "log.jsonl", done + rng.randrange(5, 100), process)
            process.send_signal(signum)
            _, error = process.communicate(timeout=LIMIT)
        assert process.returncode == {2: 130, 15: 143, 9: -9}[signum], error
        assert "Traceback" not in error
        if signum != signal.SIGKILL:
            assert f"saved in {out}; go on with --resume {out}" in error
    with start("train", "--out", out, "--resume", out, "--quiet") as process:
        printed, error = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, error
    expected, _ = whole.communicate(timeout=LIMIT)
    assert weights(out) == weights(tmp_path / "whole")
    assert {p.name[:5] for p in out.iterdir()} == {"best.", "confi", "log.j", "resul", "step-"}
    passing = {"seconds", "images_per_second"}
    one, other = (
        {k: v for k, v in json.loads(text).items() if k not in passing}
        for text in (printed, expected)
    )
    assert one == other


# --------------------------------------------------------------------------------- outputs


def run_in_shell(redirection, *arguments):
    """Run a command behind a shell's redirection."""
    line = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "nbbn"]
    return subprocess.run(
        [*line, *map(str, arguments)], capture_output=True, text=True, env=_ENVIRONMENT,
        check=False, timeout=LIMIT,
    )  # fmt: skip


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_runs_where_outputs_are_closed(closed, own, tmp_path):
    out = tmp_path / "run"
    done = run_in_shell(closed, "train", "--data", own, *FLAGS, "--epochs", 2, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((out / "result.json").read_text())["epochs"] == 2
    assert checkpoint.latest(out).optimizer["step_count"] == 14
    assert len(logs.read_log(out / "log.jsonl")) == 2


@pytest.mark.parametrize("kept", [True, False])
def test_a_reader_that_leaves(kept, own, tmp_path):
    """With a folder training goes on; without one nothing would come of it."""
    out = ("--out", tmp_path / "run") if kept else ()
    read, write = os.pipe()
    os.close(read)
    line = [sys.executable, "-m", "nbbn", "train", "--data", own, *FLAGS, "--epochs", 2, *out]
    done = subprocess.run(
        list(map(str, line)), stdout=write, stderr=subprocess.PIPE, text=True, env=_ENVIRONMENT,
        check=False, timeout=LIMIT,
    )  # fmt: skip
    os.close(write)
    if not kept:
        assert (done.returncode, done.stderr) == (1, "")
        return
    assert done.returncode == 0
    assert done.stderr == "nbbn: nobody reads this output any more; training goes on\n"
    assert json.loads((out[1] / "result.json").read_text())["epochs"] == 2
    assert checkpoint.latest(out[1]).optimizer["step_count"] == 14


def test_a_second_signal_ends_the_process_at_once():
    script = """
import time
import numpy as np
import nbbn
from nbbn import data, optim, train
from nbbn.train.callbacks import Callback, StopOnSignal

class Slow(Callback):
    def step(self, run):
        print("step", flush=True)
        time.sleep(3600)

model = nbbn.mlp((4, 2), rng=0)
batches = data.Batches(np.zeros((4, 4), np.float32), np.zeros(4, int), 4)
optimizer = optim.SGD(model.parameters())
train.fit(model, batches, optimizer, epochs=1, callbacks=[StopOnSignal(), Slow()])
"""
    with start(script=script) as process:
        assert process.stdout.readline() == "step\n"
        process.send_signal(signal.SIGTERM)
        assert process.stderr.readline() == "\n"
        assert "finishing this step; once more to exit at once" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.wait(timeout=LIMIT)
    assert process.returncode == 130


@pytest.mark.parametrize("delay", [0.05, 0.2, 0.4, 0.7])
def test_an_interrupt_while_libraries_load(delay, own, tmp_path):
    script = "import sys; from nbbn.cli import main; print('ready', flush=True); sys.exit(main())"
    flags = ("--data", own, *FLAGS, "--epochs", "100000", "--out", tmp_path, "--quiet")
    with start("train", *flags, script=script) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=LIMIT)
    assert process.returncode == 130
    assert "Traceback" not in error


def test_a_swallowed_interrupt_stops_training_before_its_first_step(own):
    training = Config(data=(str(own),), epochs=3).prepare()
    before = signal.getsignal(signal.SIGINT)
    with StopOnSignal() as signals:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        except KeyboardInterrupt:
            pass  # as a library may do that is interrupted in a callback
        history = fit(training, signals, epochs=3)
    assert (history, training.optimizer.step_count, signals.status) == ([], 0, 130)
    assert signal.getsignal(signal.SIGINT) is before


def test_no_traceback_of_an_interrupt_that_nobody_can_catch(own, tmp_path):
    """Interrupts in callbacks of the import system are such; this one comes in a finalizer."""
    script = """
import os, signal, sys
from nbbn import checkpoint
from nbbn.cli import main

class Trap:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        sum(range(100000))

latest = checkpoint.latest
def spring(folder):
    Trap()
    return latest(folder)
checkpoint.latest = spring
sys.exit(main(sys.argv[1:]))
"""
    flags = ("--data", own, *FLAGS, "--out", tmp_path, "--resume", "auto", "--quiet")
    with start("train", *flags, script=script) as process:
        _, error = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in error
    assert "stopped after step 0; there is nothing to save yet" in error


_LAST_MOMENTS = """
import atexit, os, signal, sys
from nbbn import _validation, cli
moment, number = sys.argv.pop(1), getattr(signal, sys.argv.pop(1))

def spring(*anything):
    os.kill(os.getpid(), number)
    sum(range(100000))

class Output:
    def __init__(self, stream): self.stream = stream
    def __getattr__(self, name): return getattr(self.stream, name)
    def write(self, text):
        written = self.stream.write(text)
        if text.startswith("{"): spring()
        return written

if moment == "printing":
    sys.stdout = Output(sys.stdout)
elif moment == "writing":
    write = _validation.write_atomically
    _validation.write_atomically = lambda path, content: (
        write(path, content), path.name == "config.json" and spring())
elif moment == "removing":
    remove = cli.StopOnSignal._remove
    cli.StopOnSignal._remove = lambda self: (spring(), remove(self), spring())[1]
elif moment == "returning":
    run = cli._run
    cli._run = lambda *arguments: (run(*arguments), spring())[0]
else:
    atexit.register(spring)
sys.exit(cli.main())
"""


@pytest.mark.parametrize(
    ("moment", "name"),
    [
        *((m, "SIGTERM") for m in ("writing", "printing", "returning", "removing", "exiting")),
        ("removing", "SIGINT"),
        ("exiting", "SIGINT"),
    ],
)
def test_a_signal_when_all_is_saved_leaves_no_trace(moment, name, own, tmp_path):
    flags = ("--data", own, *FLAGS, "--epochs", 1, "--out", tmp_path, "--quiet")
    with start(moment, name, "train", *flags, script=_LAST_MOMENTS) as process:
        out, error = process.communicate()
    assert process.returncode == 128 + getattr(signal, name), error
    assert error in ("", "nbbn: interrupted\n")
    assert checkpoint.load(tmp_path).optimizer["step_count"] == 7
    assert json.loads((tmp_path / "result.json").read_text())["steps"] == 7
    if moment != "writing":
        assert json.loads(out)["steps"] == 7


def test_a_signal_ends_one_training_not_the_next(own):
    class Interrupting(Callback):
        def step(self, run):
            os.kill(os.getpid(), signal.SIGINT)

    training = Config(data=(str(own),), epochs=2).prepare()
    stop = StopOnSignal()
    assert fit(training, stop, Interrupting(), epochs=2) == []
    assert stop.signum == signal.SIGINT
    assert [found.epoch for found in fit(training, stop, epochs=2)] == [1, 2]
    assert (stop.signum, stop.status) == (None, 0)


def test_signals_in_another_thread_are_left_alone(own):
    import threading

    training = Config(data=(str(own),), epochs=1).prepare()
    failures = []

    def work():
        try:
            fit(training, StopOnSignal())
        except BaseException as error:
            failures.append(error)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures
    assert signal.getsignal(signal.SIGTERM) is before


# ------------------------------------------------------------------------ use of the result


def test_eval_measures_what_training_measured(trained, own, capsys):
    best = checkpoint.load(trained / "best.safetensors").progress["history"][-1]
    status, lines, _ = call(capsys, "eval", trained)
    assert status == 0
    result = json.loads(lines[0])
    assert result["examples"] == 40
    assert result["accuracy"] == best[-1][1]
    assert result["loss"] == pytest.approx(best[-1][0], rel=1e-6)
    last = sorted(trained.glob("step-*"))[-1]
    found = json.loads(call(capsys, "eval", last)[1][0])
    expected = json.loads((trained / "result.json").read_text())
    assert found["accuracy"] == expected["test_accuracy"]


def test_eval_of_a_run_without_a_test_set_takes_its_validation_split(own, tmp_path, capsys):
    with np.load(own) as parts:
        np.savez(tmp_path / "own.npz", x=parts["x_train"], y=parts["y_train"])
    flags = ("--validation", 0.3, "--epochs", 5, "--standardize", "global", "--quiet")
    _, lines, _ = call(capsys, "train", "--data", tmp_path / "own.npz", *FLAGS, *flags,
                       "--out", tmp_path / "run")  # fmt: skip
    expected = json.loads(lines[-1])
    status, lines, _ = call(capsys, "eval", max((tmp_path / "run").glob("step-*")))
    assert status == 0
    found = json.loads(lines[0])
    assert (found["part"], found["examples"]) == ("validation", 30)
    assert found["accuracy"] == expected["validation_accuracy"]
    assert found["loss"] == pytest.approx(expected["validation_loss"], rel=1e-6)


def test_eval_per_class(trained, own, capsys):
    status, lines, _ = call(capsys, "eval", trained, "--per-class")
    assert status == 0
    assert lines[0].split() == ["class", "precision", "recall", "f1", "examples"]
    with np.load(own) as parts:
        labels, images = parts["y_test"], parts["x_test"]
    predicted = Classifier.load(trained).probabilities(images).argmax(axis=1)
    scores = metrics.class_scores(labels, predicted)
    for number, line in enumerate(lines[1:-1]):
        found = [float(word) for word in line.split()]
        assert found == pytest.approx([number, *(part[number] for part in scores)], abs=5e-5)
    result = json.loads(lines[-1])
    assert (result["part"], result["examples"]) == ("test", scores.support.sum())
    assert result["accuracy"] == np.mean(labels == predicted)


def test_predict(trained, tmp_path, capsys):
    images, labels = digits(30, 7)
    np.save(tmp_path / "many.npy", images)
    np.save(tmp_path / "one.npy", images[0])
    np.save(tmp_path / "inverted.npy", 255 - images)
    status, lines, _ = call(capsys, "predict", trained, tmp_path / "many.npy", "--json")
    entries = [json.loads(line) for line in lines]
    assert status == 0
    assert [entry["index"] for entry in entries] == list(range(30))
    found = np.array([entry["label"] for entry in entries])
    assert np.mean(found == labels) > 0.8
    probabilities = Classifier.load(trained).probabilities(images)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), found)
    _, lines, _ = call(capsys, "predict", trained, tmp_path / "one.npy")
    assert lines == [f"{tmp_path / 'one.npy'}  {found[0]}  {probabilities[0].max():.1%}"]
    _, lines, _ = call(capsys, "predict", trained, "--invert", "--json", tmp_path / "inverted.npy")
    assert [json.loads(line)["label"] for line in lines] == found.tolist()


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
def test_predict_takes_pictures(mode, trained, tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = digits(1, 7)[0][0]
    if mode == "1":
        pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)
    path = tmp_path / "digit.png"
    image.fromarray(pixels).convert(mode).save(path)
    np.testing.assert_array_equal(read_images(path), pixels)


def test_export(trained, tmp_path, capsys):
    images, _ = digits(20, 9)
    classifier = Classifier.load(trained)
    x = next(iter(classifier.batches(images)))[0]
    expected = classifier.model(x).numpy()
    status, lines, _ = call(capsys, "export", trained, tmp_path / "a.onnx")
    assert status == 0
    assert "its input is x (N, 16) float32: (bytes / 255 - mean) / std" in lines[0]
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(tmp_path / "a.onnx")
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-5, atol=1e-6)
    from safetensors.numpy import load_file

    call(capsys, "export", trained, tmp_path / "a.safetensors")
    call(capsys, "export", trained, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as archive:
        for stored in (load_file(tmp_path / "a.safetensors"), archive):
            for name, array in classifier.model.state_dict().items():
                np.testing.assert_array_equal(stored[name], array, strict=True)


def test_plot(trained, own, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    status, lines, _ = call(capsys, "plot", trained)
    assert status == 0
    names = ["curves", "percentiles", "confusion", "mistakes"]
    assert lines == [str(trained / f"{name}.png") for name in names]
    for line in lines:
        assert Path(line).read_bytes().startswith(b"\x89PNG")
    call(capsys, "train", "--data", own, *FLAGS, "--epochs", 2, "--quiet",
         "--log-file", tmp_path / "second.csv")  # fmt: skip
    status, lines, _ = call(
        capsys, "plot", trained, tmp_path / "second.csv", "--out", tmp_path / "new"
    )
    assert status == 0
    assert lines[0] == str(tmp_path / "new" / "curves.png")
    assert str(tmp_path / "new" / "confusion-trained.png") in lines


def test_data_command(tmp_path, capsys, monkeypatch):
    asked = []

    def load(name, *, data_dir):
        asked.append((name, data_dir))
        return data.Dataset(*digits(6, 0), *digits(3, 0))

    monkeypatch.setattr(data, "load", load)
    assert call(capsys, "data")[1] == ["mnist verified: 6 training and 3 test images"]
    call(capsys, "data", "fashion-mnist", "--dir", tmp_path)
    assert asked == [("mnist", None), ("fashion-mnist", tmp_path)]


# ------------------------------------------------------------------------------------ logs


def test_the_log_says_what_happened(own, tmp_path):
    """Rows against numbers taken by hand beside the training."""
    path = tmp_path / "log.jsonl"
    training = Config(data=(str(own),), hidden=(8,), batch_size=16, seed=1, epochs=2).prepare()
    seen = []

    class ByHand(Callback):
        def step(self, run):
            norm = np.sqrt(sum((b.astype(float) ** 2).sum() for a in run.optimizer.arenas
                               for b in a.buffers))  # fmt: skip
            seen.append((run.step, run.loss, run.right / run.count, norm))

    log = logs.LogFile(path, every=3, percentiles=True)
    history = fit(training, ByHand(), log, epochs=2, test=training.test)
    rows = logs.read_log(path)
    steps = [row for row in rows if row["kind"] == "step"]
    assert [row["step"] for row in steps] == [3, 6, 9, 12]
    for row in steps:
        step, loss, accuracy, norm = seen[row["step"] - 1]
        assert (row["step"], row["loss"], row["accuracy"]) == (step, loss, accuracy)
        assert row["gradient_norm"] == pytest.approx(norm, rel=1e-6)
        assert row["lr"] == optim.OneCycle(4e-3, 14)(step - 1)
        assert row["epoch"] == (step - 1) // 7 + 1
    epochs = [row for row in rows if row["kind"] == "epoch"]
    assert [(row["loss"], row["accuracy"], row["test_accuracy"]) for row in epochs] == [
        (epoch.loss, epoch.accuracy, epoch.test.accuracy) for epoch in history
    ]
    x = training.batches.first(1000)[0]
    inner = x @ training.model[0].weight.data.T
    # The last row is two steps old: only the order of magnitude is that of the end.
    found = [steps[-1][f"1.p{percent}"] for percent in (15, 50, 85)]
    np.testing.assert_allclose(found, np.percentile(inner, (15, 50, 85)), atol=0.1)
    assert found == sorted(found)


def test_tensorboard_has_the_same_numbers(own, tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401 - the format that is read

    training = Config(data=(str(own),), hidden=(8,), batch_size=16, seed=1, epochs=2).prepare()
    log = logs.LogFile(tmp_path / "log.jsonl", every=4)
    board = logs.TensorBoard(tmp_path / "board", every=4)
    fit(training, log, board, epochs=2, test=training.test)
    points = {}
    for path in (tmp_path / "board").iterdir():
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                points[value.tag, event.step] = value.simple_value
    rows = logs.read_log(tmp_path / "log.jsonl")
    for row in rows:
        for name in ("loss", "accuracy", "test_accuracy"):
            if name in row:
                found = points[f"{row['kind']}/{name}", row["step"]]
                assert found == pytest.approx(row[name], rel=1e-6)


def test_a_log_in_the_way(own, tmp_path):
    (tmp_path / "log.jsonl").mkdir()
    training = Config(data=(str(own),), epochs=1).prepare()
    with pytest.raises(ArgumentError, match=r"cannot write to .*log.jsonl"):
        fit(training, logs.LogFile(tmp_path / "log.jsonl"))
