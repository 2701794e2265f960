"""What goes wrong on the command line ends in one line that says what to do."""

from __future__ import annotations

import json
import os
import shutil
import time

import numpy as np
import pytest

import nbbn
import nbbn.cli.train
from nbbn import checkpoint, cli, logs
from nbbn.errors import ArgumentError, DataError, DTypeError
from nbbn.train import loop
from nbbn.train.checkpoint import Checkpoints
from nbbn.train.inference import Classifier, read_images
from tests.helpers.small_run import FLAGS, SIDE, call, digits


def refused(capsys, *arguments):
    """Run a command that must fail in one line, and return it."""
    status, lines, error = call(capsys, *arguments)
    assert (status, lines) == (2, [])
    assert error.count("\n") == 1
    assert error.startswith("nbbn")
    return error


@pytest.mark.parametrize(
    ("command", "flag"),
    [("train", "--epo=1"), ("eval", "--data-d=x"), ("predict", "--inv"), ("plot", "--ou=x"),
     ("data", "--di=x"), ("warmup", "--qu")],
)  # fmt: skip
def test_flags_have_no_abbreviations(command, flag, capsys):
    rest = {"eval": ["run"], "predict": ["run", "x.npy"], "plot": ["run"]}.get(command, [])
    assert f"unrecognized arguments: {flag}" in refused(capsys, command, *rest, flag)


# ---------------------------------------------------------------------------- a checkpoint


@pytest.fixture
def things(trained, own, tmp_path):
    """Files and folders that are no checkpoints."""
    whole = (trained / "best.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "text.txt").write_text("not a checkpoint, but long enough to be one")
    (tmp_path / "folder").mkdir()
    shutil.copy(own, tmp_path / "data.npz")
    return tmp_path


@pytest.mark.parametrize("command", ["predict", "eval", "export"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "data.npz",
            "is not a checkpoint, or damaged: expected a .safetensors file that nbbn train",
        ),
        (
            "text.txt",
            "is not a checkpoint, or damaged: expected a .safetensors file that nbbn train",
        ),
        ("cut.safetensors", "is damaged or cut short"),
        ("empty.safetensors", "is damaged or cut short"),
        ("folder", "there is no checkpoint in the folder"),
        ("nothing", "there is no checkpoint"),
        ("text.txt/x", "cannot be read: Not a directory"),
    ],
)
def test_what_is_no_checkpoint(command, name, reason, things, capsys):
    np.save(things / "images.npy", digits(2, 0)[0])
    rest = {"predict": [things / "images.npy"], "export": [things / "x.npz"]}.get(command, [])
    error = refused(capsys, command, things / name, *rest)
    assert f"{things / name}" in error
    assert reason in error


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
        with pytest.raises(
            DTypeError, match=f"must be a path, a str or an os.PathLike, got {kind}"
        ):
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


def test_files_that_hold_no_images(trained, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    np.savez(tmp_path / "archive.npz", x=digits(2, 0)[0])
    np.save(tmp_path / "numbers.npy", np.zeros(5, np.uint8))
    np.save(tmp_path / "wide.npy", np.zeros((2, SIDE, SIDE), np.int64))
    for name, reason in {
        "folder": "is a folder: name the files of images in it",
        "archive.npz": "holds no images: expected an array in a .npy or IDX file, or a picture",
        "numbers.npy": "takes images of shape (4, 4), one or several, got an array of shape (5,)",
        "wide.npy": "wide.npy: this model was trained on bytes (uint8), got int64",
    }.items():
        assert reason in refused(capsys, "predict", trained, tmp_path / name)


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
    call(
        capsys, "train", "--data", own, *FLAGS, "--quiet", "--epochs", 1, "--out", tmp_path / "run"
    )
    moved = changed(lambda parts: None)
    again = ("train", "--resume", tmp_path / "run", "--quiet", "--data", moved)
    status, lines, _ = call(capsys, *again, "--epochs", 2)
    assert (status, json.loads(lines[-1])["epochs"]) == (0, 2)


def test_a_run_that_has_ended_says_so(own, tmp_path, capsys):
    flags = ("--data", own, *FLAGS, "--epochs", 1)
    call(capsys, "train", *flags, "--out", tmp_path)
    status, lines, _ = call(capsys, "train", "--resume", tmp_path)
    assert status == 0
    assert (
        "nothing was left to train: the run had ended after epoch 1; more --epochs go on" in lines
    )


def test_a_run_that_was_stopped_early_says_what_goes_on(own, tmp_path, capsys):
    flags = ("--data", own, *FLAGS, "--epochs", 3, "--until", 0.001)
    call(capsys, "train", *flags, "--out", tmp_path)
    status, lines, _ = call(capsys, "train", "--resume", tmp_path)
    assert status == 0
    assert (
        "nothing was left to train: the run had ended after epoch 1; more --until goes on" in lines
    )


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


def test_widths_beyond_any_memory(own, capsys):
    error = refused(capsys, "train", "--data", own, "--hidden", 10**20)
    assert "a Dense with a weight of shape (100000000000000000000, 16) would take" in error


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


# --------------------------------------------------------------------- where data comes from


def test_a_folder_for_data_belongs_to_a_named_data_set(own, trained, tmp_path, capsys):
    for command in (
        ("train", "--data", own, "--data-dir", tmp_path),
        ("eval", trained, "--data-dir", tmp_path),
    ):
        error = refused(capsys, *command)
        assert "data_dir is the folder of a named data set (mnist, fashion-mnist)" in error
        assert str(own) in error
    for command in (("eval", trained), ("plot", trained)):
        error = refused(capsys, *command, "--data-dir", tmp_path / "none")
        assert "there is no folder" in error


def test_three_sources(trained, capsys):
    error = refused(capsys, "eval", trained, "--data", "a", "b", "c")
    assert "expected a name, one path, or those of images and labels, got 3" in error
    error = refused(capsys, "eval", trained, "--data", "")
    assert "expected a name, one path, or those of images and labels, got ''" in error


def test_an_archive_is_named_alone(own, trained, tmp_path, capsys):
    np.save(tmp_path / "labels.npy", digits(40, 1)[1])
    error = refused(capsys, "eval", trained, "--data", own, tmp_path / "labels.npy")
    assert f"{own} is an archive, which holds images and labels: name it alone" in error


def test_plot_of_a_run_by_the_api(trained, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    shutil.copy(trained / "log.jsonl", tmp_path)
    checkpoint.save(tmp_path / "step-00000001.safetensors", nbbn.mlp((3, 2), rng=0))
    status, lines, error = call(capsys, "plot", tmp_path)
    assert status == 0
    assert lines == [str(tmp_path / "curves.png"), str(tmp_path / "percentiles.png")]
    assert error.startswith("nbbn: no confusion matrix and mistakes: ")
    assert "was not saved by nbbn train" in error


# -------------------------------------------------------------------------- where output goes


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


def test_output_that_cannot_be_written(trained, own, tmp_path, capsys):
    (tmp_path / "file").touch()
    for command, reason in (
        (("export", trained, tmp_path / "none" / "x.npz"), f"cannot write {tmp_path / 'none'}"),
        (("export", trained, tmp_path / "file" / "x.safetensors"), "Not a directory"),
        (("plot", trained, "--out", tmp_path / "file"), f"cannot write to {tmp_path / 'file'}"),
        (("train", "--data", own, "--log-file", tmp_path / "file" / "x.csv", "--quiet"),
         "cannot write to"),
    ):  # fmt: skip
        if command[0] == "plot":
            pytest.importorskip("matplotlib")
        assert reason in refused(capsys, *command)
    assert sorted(os.listdir(tmp_path)) == ["file"]


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
    clock = time.perf_counter
    monkeypatch.setattr(time, "process_time", lambda: share * clock())
    monkeypatch.setattr(loop._Timed, "least", 0.0)
    monkeypatch.setattr(loop._Timed, "EVERY", 1)
    flags = ("--data", own, *FLAGS, "--epochs", 3)
    text = "training had one for 10% of the time: one thread may be faster, with nbbn.threads.limit"

    def messages(*others):
        caplog.clear()
        call(capsys, "train", *flags, *others)
        return [text in message for message in caplog.messages]

    monkeypatch.setattr("numba.get_num_threads", lambda: 2)
    assert messages("--out", tmp_path) == [True] * told
    assert messages("--quiet") == [True] * told
    assert messages("--out", tmp_path, "--resume", "--epochs", 4) == [True] * told
    monkeypatch.setattr("numba.get_num_threads", lambda: 1)
    assert messages() == []
