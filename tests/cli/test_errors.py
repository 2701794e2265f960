"""What goes wrong on the command line ends in one line that says what to do."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

import nbbn
import nbbn.cli.train
from nbbn import checkpoint, cli, logs
from nbbn.errors import ArgumentError, DataError, DTypeError
from nbbn.train import loop
from nbbn.train.checkpoint import Checkpoints
from nbbn.train.inference import Classifier, read_images
from tests.helpers.clock import Clock
from tests.helpers.small_run import FLAGS, SIDE, call, digits


def refused(capsys, *arguments):
    """Run a command that must fail in one line, and return it."""
    status, lines, error = call(capsys, *arguments)
    assert (status, lines) == (2, [])
    assert error.count("\n") == 1
    assert error.startswith("nbbn")
    return error


# ------------------------------------------------------------------------------ one line each


@pytest.fixture(scope="module")
def things(trained, own, tmp_path_factory):
    """Files and folders that are not what a command needs."""
    folder = tmp_path_factory.mktemp("things")
    images, labels = digits(40, 1)
    whole = (trained / "best.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.safetensors").touch()
    (folder / "text.txt").write_text("not a checkpoint, but long enough to be one")
    (folder / "text.png").write_text("no picture")
    (folder / "bad.jsonl").write_text("{}\n")
    (folder / "folder").mkdir()
    checkpoint.save(folder / "api", nbbn.mlp((3, 2), rng=0))
    np.savez(folder / "no_test.npz", x=images, y=labels)
    np.savez(folder / "archive.npz", x=images)
    shutil.copy(folder / "archive.npz", folder / "archive.npy")
    for name, array in {
        "images": images,
        "labels": labels,
        "numbers": np.zeros(5, np.uint8),
        "wide": np.zeros((2, SIDE, SIDE), np.int64),
        "float": np.zeros((2, SIDE, SIDE)),
    }.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "cut.npy").write_bytes((folder / "numbers.npy").read_bytes()[:50])
    return folder


TRAIN = [
    ("--optimizer rmsprop", "must be one of 'adam', 'adamw', 'sgd'; got 'rmsprop'"),
    ("--schedule linear", "--schedule: the value must be one of 'one-cycle', 'cosine'"),
    ("--device tpu", "'tpu' (choose from"),
    ("--standardize yes", "'global', 'feature'; got 'yes'"),
    ("--epochs 2.5", "--epochs: the value must be an integer, got float"),
    ("--keep 0", "--keep: the value must be at least 1, got 0"),
    ("--out ''", "--out: expected a path, got ''"),
    ("--epochs 0", "--epochs: the value must be at least 1, got 0"),
    ("--hidden 8,x", "--hidden: expected a number, got 'x'"),
    ("--hidden 100000000000000000000",
     "a Dense with a weight of shape (100000000000000000000, 16) would take"),
    ("--lr nan", "--lr: the value must be finite, got nan"),
    ("--dropout 1", "must be at least 0 and below 1, got 1.0"),
    ("--momentum 0.5", "momentum belongs to the optimizer sgd, not to adam"),
    ("--data-dir /does/not/exist", "--data-dir: there is no folder /does/not/exist"),
    ("--data-dir {things}",
     "data_dir is the folder of a named data set (mnist, fashion-mnist)", "{own}"),
    ("--resume", "--resume auto looks into the folder --out: name it"),
    ("--resume /does/not/exist", "there is no checkpoint /does/not/exist"),
    ("--save-every 3", "--save-every needs a folder for checkpoints: name it with --out"),
    ("--keep 2", "--keep needs a folder for checkpoints: name it with --out"),
    ("--percentiles", "--percentiles needs a log: name its folder with --out, or --log-file"),
    ("--log-every 9", "--log-every needs a log: name its folder with --out"),
    ("--watch loss", "--watch needs something that asks for the best epoch: --patience"),
    ("--watch speed", "'loss', 'accuracy'; got 'speed'"),
    ("--percentiles --no-batch-norm --log-file x.csv", "batch normalization: there"),
    ("--learning-rate 1", "--learning-rate 1 (see nbbn train --help)"),
    ("--log-file a.txt", "a log file must end in .jsonl or .csv, got a.txt"),
    ("--log-file {things}/text.txt/x.csv --quiet", "cannot write to"),
    ("--out /dev/null/x", "cannot write to /dev/null/x"),
    ("--epoch 2", "unrecognized arguments: --epoch 2"),
    ("--epo=1", "unrecognized arguments: --epo=1"),  # flags have no abbreviations
    ("--epochs", "expected one argument"),
]  # fmt: skip
NO_CHECKPOINTS = {
    "no_test.npz": "is not a checkpoint, or damaged: expected a .safetensors file that nbbn train",
    "text.txt": "is not a checkpoint, or damaged: expected a .safetensors file that nbbn train",
    "cut.safetensors": "is damaged or cut short",
    "empty.safetensors": "is damaged or cut short",
    "folder": "there is no checkpoint in the folder",
    "nothing": "there is no checkpoint",
    "text.txt/x": "cannot be read: Not a directory",
}
NO_IMAGES = {
    "large.png": "takes images of shape (4, 4), one or several, got an array of shape (7, 9)",
    "text.png": "holds no images: expected an array in a .npy or IDX file, or a picture",
    "archive.npz": "holds no images: expected an array in a .npy or IDX file, or a picture",
    "float.npy": "was trained on bytes (uint8), got float64",
    "wide.npy": "wide.npy: this model was trained on bytes (uint8), got int64",
    "numbers.npy": "takes images of shape (4, 4), one or several, got an array of shape (5,)",
    "cut.npy": "cannot be read as .npy",
    "archive.npy": "archive.npy cannot be read as .npy",
    "missing.png": "there is no file",
    "folder": "is a folder: name the files of images in it",
}
# A command, and what its one line must say.
REFUSED = [
    *((f"train --data {{own}} {flags}", *reasons) for flags, *reasons in TRAIN),
    ("train --data imagenet", "there is no data set imagenet: expected mnist, fashion-mnist"),
    ("train --data a b c", "expected a name, one path, or those of"),
    *((f"{command} {{things}}/{name}{rest}", reason, f"{{things}}/{name}")
      for command, rest in (("eval", ""), ("predict", " {things}/images.npy"),
                            ("export", " {things}/x.npz"))
      for name, reason in NO_CHECKPOINTS.items()),
    ("eval run --data-d=x", "unrecognized arguments: --data-d=x"),
    ("eval {things}/api", "was not saved by nbbn train"),
    ("eval {trained} --data {things}/no_test.npz",
     "has no test set: name other data with --data"),
    ("eval {trained} --data a b c",
     "expected a name, one path, or those of images and labels, got 3"),
    ("eval {trained} --data ''",
     "expected a name, one path, or those of images and labels, got ''"),
    ("eval {trained} --data {own} {things}/labels.npy",
     "{own} is an archive, which holds images and labels: name it alone"),
    ("eval {trained} --data-dir {things}",
     "data_dir is the folder of a named data set (mnist, fashion-mnist)", "{own}"),
    ("eval {trained} --data-dir {things}/none", "there is no folder"),
    *((f"predict {{trained}} {{things}}/{name}", reason) for name, reason in NO_IMAGES.items()),
    ("predict run x.npy --inv", "unrecognized arguments: --inv"),
    ("export {trained} {things}/a.pt", "can export to .onnx, .safetensors and .npz"),
    ("export {trained} {things}/none/x.npz", "cannot write {things}/none"),
    ("export {trained} {things}/text.txt/x.safetensors", "Not a directory"),
    ("plot run --ou=x", "unrecognized arguments: --ou=x"),
    ("plot {things}", "there is no log.jsonl or log.csv in"),
    ("plot {things}/bad.jsonl", "is not a log of nbbn"),
    ("plot {trained} --data-dir {things}/none", "there is no folder"),
    ("plot {trained} --out {things}/text.txt", "cannot write to {things}/text.txt"),
    ("data cifar", "'cifar' (choose from"),
    ("data --di=x", "unrecognized arguments: --di=x"),
    ("warmup --qu", "unrecognized arguments: --qu"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "reasons"), [(row[0], row[1:]) for row in REFUSED])
def test_what_is_refused_gets_one_line_and_writes_nothing(
    command, reasons, things, own, trained, capsys, request
):
    if command.startswith("plot {"):
        pytest.importorskip("matplotlib")
    if command.endswith("large.png"):
        image = pytest.importorskip("PIL.Image")
        image.new("L", (9, 7)).save(things / "large.png")
        request.addfinalizer((things / "large.png").unlink)
    before = sorted(path.name for path in (*things.iterdir(), *trained.iterdir()))
    places = {"things": things, "own": own, "trained": trained}
    error = refused(capsys, *shlex.split(command.format(**places)))
    for reason in reasons:
        assert reason.format(**places) in error
    assert not Path("/does").exists()
    assert sorted(path.name for path in (*things.iterdir(), *trained.iterdir())) == before


@pytest.mark.parametrize("thing", [None, 3, b"bytes", ["a"]])
def test_what_is_no_path(thing):
    model = nbbn.mlp((3, 2), rng=0)
    kind = type(thing).__name__
    for use in (
        lambda: checkpoint.load(thing),
        lambda: checkpoint.latest(thing),
        lambda: checkpoint.save(thing, model),
        lambda: Checkpoints(thing),
        lambda: Classifier.load(thing),
        lambda: read_images(thing),
        lambda: logs.LogFile(thing),
        lambda: logs.read_log(thing),
    ):
        with pytest.raises(DTypeError, match=f"path, a str or an os.PathLike, got {kind}"):
            use()


def test_a_path_that_no_system_knows():
    with pytest.raises(ArgumentError, match=r"path without null characters, got 'a\\x00b'"):
        checkpoint.save("a\0b", nbbn.mlp((3, 2), rng=0))


# ------------------------------------------------------------------------- images to classify


@pytest.fixture(scope="module")
def trained_on_floats(tmp_path_factory, own):
    """The folder of a run on images of floats."""
    folder = tmp_path_factory.mktemp("floats")
    with np.load(own) as arrays:
        parts = {name: arrays[name] for name in arrays}
    for name in ("x_train", "x_test"):
        parts[name] = (parts[name] / 255).astype(np.float32)
    np.savez(folder / "own.npz", **parts)
    flags = ("--data", str(folder / "own.npz"), *FLAGS, "--epochs", "1", "--quiet")
    assert cli.main(["train", *flags, "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_that_are_not_finite(value, trained_on_floats, tmp_path, capsys):
    images = (digits(2100, 3)[0] / 255).astype(np.float32)
    np.save(tmp_path / "good.npy", images)
    images[[7, 1000, 2050], 1, 2] = value
    np.save(tmp_path / "bad.npy", images)
    status, lines, _ = call(capsys, "predict", trained_on_floats, tmp_path / "good.npy")
    assert (status, len(lines)) == (0, 2100)
    error = refused(capsys, "predict", trained_on_floats, tmp_path / "bad.npy")
    assert (
        f"{tmp_path / 'bad.npy'}: 3 of 2100 images hold NaN or Inf (number 7, 1000, 2050" in error
    )
    np.savez(tmp_path / "set.npz", x=images[:8], y=[0] * 8, x_test=images, y_test=[0] * 2100)
    error = refused(capsys, "eval", trained_on_floats, "--data", tmp_path / "set.npz")
    assert "3 of 2100 images hold NaN or Inf" in error
    images[:] = value
    with pytest.raises(DataError, match=r"2100 of 2100.*number 0, 1, 2, 3, 4, \.\.\., counted"):
        Classifier.load(trained_on_floats).probabilities(images)


def test_images_too_large_for_the_model(trained_on_floats, tmp_path, capsys):
    images = (digits(3, 3)[0] / 255).astype(np.float32)
    images[1] = -3e38
    np.save(tmp_path / "large.npy", images)
    error = refused(capsys, "predict", trained_on_floats, tmp_path / "large.npy")
    assert "outputs for 1 of 3 images are not finite (number 1 is the first, counted" in error


# ------------------------------------------------------------------------------ other data


@pytest.fixture
def changed(own, tmp_path):
    """Return what writes a data set like `own`, with a change."""

    def write(change):
        with np.load(own) as arrays:
            parts = {name: arrays[name].copy() for name in arrays}
        change(parts)
        np.savez(tmp_path / "other.npz", **parts)
        return tmp_path / "other.npz"

    return write


def fewer(parts):
    parts["x_train"], parts["y_train"] = parts["x_train"][:-1], parts["y_train"][:-1]


def another_label(parts):
    parts["y_train"][50] = (parts["y_train"][50] + 1) % 3


def other_images(parts):
    parts["x_train"] = digits(100, 9)[0]


def larger(parts):
    for name in ("x_train", "x_test"):
        parts[name] = np.pad(parts[name], ((0, 0), (0, 1), (0, 0)))


def of_floats(parts):
    for name in ("x_train", "x_test"):
        parts[name] = parts[name].astype(np.float32)


@pytest.mark.parametrize("epochs", [["--epochs", 3], []])
@pytest.mark.parametrize(
    ("change", "here"),
    [
        (fewer, "holds 99 examples of 16 values: give the data that it was trained on"),
        (another_label, "holds 100 examples of 16 values, but not the same ones: give"),
        (other_images, "holds 100 examples of 16 values, but not the same ones: give"),
        (larger, "holds 100 examples of 20 values: give"),
        (of_floats, "holds 100 examples of 16 values, but not the same ones: give"),
    ],
)
def test_a_run_does_not_go_on_with_other_data(change, here, epochs, own, changed, tmp_path, capsys):
    flags = (*FLAGS, "--quiet", "--epochs", 1)
    call(capsys, "train", "--data", own, *flags, "--out", tmp_path / "run")
    before = sorted((path.name, path.read_bytes()) for path in (tmp_path / "run").iterdir())
    other = changed(change)
    again = ("train", "--resume", tmp_path / "run", *epochs, "--quiet", "--data", other)
    error = refused(capsys, *again)
    assert f"was trained on {own}, 100 examples of 16 values; {other} {here}" in error
    assert sorted((p.name, p.read_bytes()) for p in (tmp_path / "run").iterdir()) == before


def test_a_run_goes_on_with_its_data_elsewhere(own, changed, tmp_path, capsys):
    flags = (*FLAGS, "--quiet", "--epochs", 1)
    call(capsys, "train", "--data", own, *flags, "--out", tmp_path / "run")
    moved = changed(lambda parts: None)
    again = ("train", "--resume", tmp_path / "run", "--quiet", "--data", moved)
    status, lines, _ = call(capsys, *again, "--epochs", 2)
    assert (status, json.loads(lines[-1])["epochs"]) == (0, 2)


@pytest.mark.parametrize(
    ("flags", "more"),
    [(("--epochs", 1), "--epochs go on"), (("--epochs", 3, "--until", 0.001), "--until goes on")],
)
def test_a_run_that_has_ended_says_what_goes_on(flags, more, own, tmp_path, capsys):
    call(capsys, "train", "--data", own, *FLAGS, *flags, "--out", tmp_path)
    status, lines, _ = call(capsys, "train", "--resume", tmp_path)
    assert status == 0
    assert f"nothing was left to train: the run had ended after epoch 1; more {more}" in lines


# -------------------------------------------------------------------- single examples, sizes


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--batch-size", 1], "every batch of 100 by 1 is one: use larger batches"),
        (["--batch-size", 33], "the last batch of 100 by 33 is one: use another batch size"),
        (["--validation", 0.99], "every batch of 1 by 128 is one: use larger batches"),
    ],
)
def test_a_single_example_is_refused_before_training(flags, reason, own, tmp_path, capsys):
    command = ("train", "--data", own, "--hidden", 8, "--epochs", 1, "--out", tmp_path / "run")
    status, lines, error = call(capsys, *command, *flags)
    assert status == 2
    assert reason in error
    assert "layer 1, BatchNorm(8, activation='relu'), cannot normalize a single example" in error
    assert not [line for line in lines if line.startswith("epoch")]
    assert not list((tmp_path / "run").glob("*"))
    assert call(capsys, *command, *flags, "--no-batch-norm")[0] == 0


def test_widths_beyond_this_memory(own, capsys, monkeypatch):
    def allocate(*arguments, **options):
        raise MemoryError("Unable to allocate 9.0 TiB")

    monkeypatch.setattr("nbbn.nn.layers.initialize", allocate)
    status, _, error = call(capsys, "train", "--data", own)
    assert status == 1
    assert error == "nbbn: error: there is not enough memory: Unable to allocate 9.0 TiB\n"


@pytest.mark.parametrize("more", [[], ["--percentiles", "--log-every", 1]])
@pytest.mark.parametrize("rate", ["1e300", "1e30"])
def test_overflow_is_told_once(rate, more, own, tmp_path, capsys, recwarn):
    flags = ("--data", own, "--hidden", 8, "--batch-size", 16, "--log-file", tmp_path / "a.csv")
    flags += ("--quiet", "--optimizer", "sgd")
    assert "training has diverged" in refused(capsys, "train", *flags, *more, "--lr", rate)
    assert not recwarn.list


# ----------------------------------------------------------------- where data come from and go


def test_plot_of_a_run_by_the_api(trained, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    shutil.copy(trained / "log.jsonl", tmp_path)
    checkpoint.save(tmp_path / "step-00000001.safetensors", nbbn.mlp((3, 2), rng=0))
    status, lines, error = call(capsys, "plot", tmp_path)
    assert status == 0
    assert lines == [str(tmp_path / "curves.png"), str(tmp_path / "percentiles.png")]
    assert error.startswith("nbbn: no confusion matrix and mistakes: ")
    assert "was not saved by nbbn train" in error


def test_plot_of_a_run_without_a_test_set(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    images, labels = digits(40, 1)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels)
    run = tmp_path / "run"
    flags = (*FLAGS, "--epochs", 1, "--validation", 0.5)
    call(capsys, "train", "--data", tmp_path / "a.npz", *flags, "--out", run)
    status, lines, _ = call(capsys, "plot", run)
    names = ["curves", "confusion", "mistakes"]
    assert (status, lines) == (0, [str(run / f"{name}.png") for name in names])
    run = tmp_path / "all"
    call(capsys, "train", "--data", tmp_path / "a.npz", *FLAGS, "--epochs", 1, "--out", run)
    status, lines, error = call(capsys, "plot", run)
    assert (status, lines) == (0, [str(run / "curves.png")])
    assert f"no confusion matrix and mistakes: {tmp_path / 'a.npz'} has no test set" in error
    assert "has no test set: name other data with --data" in refused(capsys, "eval", run)


def test_a_folder_for_tensorboard_that_cannot_be_one(own, tmp_path, capsys):
    pytest.importorskip("tensorboardX")
    (tmp_path / "file").touch()
    error = refused(capsys, "train", "--data", own, "--tensorboard", tmp_path / "file", "--quiet")
    assert f"cannot write to {tmp_path / 'file'}" in error


def test_a_folder_that_data_cannot_be_kept_in(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(nbbn.data, "load", lambda name, data_dir: nbbn.data.Dataset(*([[]] * 4)))
    error = refused(capsys, "data", "mnist", "--dir", tmp_path / "nothing")
    assert "nothing could not be filled: name a folder that can be written" in error


# ------------------------------------------------------------------------------ a busy machine


@pytest.mark.parametrize(("share", "told"), [(0.1, True), (0.95, False), (1.9, False)])
def test_training_says_when_others_have_its_cores(
    share, told, own, tmp_path, capsys, caplog, monkeypatch
):
    Clock(share, monkeypatch)
    monkeypatch.setattr(loop._Timed, "least", 0.0)
    monkeypatch.setattr(loop._Timed, "EVERY", 1)
    flags = ("--data", own, *FLAGS, "--epochs", 3)
    text = "training had one for 10% of the time: one thread may be faster, with nbbn.threads.limit"

    def messages(*others):
        caplog.clear()
        # Said once in a process, and each command has its own.
        monkeypatch.setattr(loop._Timed, "told", False)
        call(capsys, "train", *flags, *others)
        return [text in message for message in caplog.messages]

    monkeypatch.setattr("numba.get_num_threads", lambda: 2)
    assert messages("--out", tmp_path) == [True] * told
    assert messages("--quiet") == [True] * told
    assert messages("--out", tmp_path, "--resume", "--epochs", 4) == [True] * told
    monkeypatch.setattr("numba.get_num_threads", lambda: 1)
    assert messages() == []
