"""The code on the pages of the documentation runs, and prints what it should."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Return what runs the code of a page or of one section, where the packages are.

    In a file: a step is replayed only if its source can be read. Its names come back, what it
    printed, and the numbers behind words that a pattern gives.
    """

    def run(page, section=None, *, needs="", skip="\0", numbers=None):
        for package in needs.split():
            pytest.importorskip(package)
        text = (DOCS / page).read_text()
        if section is not None:
            text = text[text.index(f"## {section}\n") :].split("\n## ")[0]
        blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        script = tmp_path / "script.py"
        script.write_text("\n".join(block for block in blocks if not re.search(skip, block)))
        monkeypatch.chdir(tmp_path)
        names = runpy.run_path(str(script))
        printed = capsys.readouterr().out
        found = re.findall(numbers or r"[\d.]+", printed) if printed else []
        return names, printed, [float(n) for n in found if re.search(r"\d", n)]

    return run


def test_sequences(run):
    names, _, _ = run("sequences.md", needs="torch")
    assert names["y"].shape == (8, 28, 64)
    assert len(names["history"]) == 2
    assert (names["y"].data[1, 5:] == 0).all()
    assert names["head"](names["x"]).shape == (8, 10)
    tokens = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert names["encoder"](tokens).shape == (3, 4, 64)


def test_embedding(run):
    run("embedding.md", skip="sklearn|cuda")


def test_normalization(run):
    assert run("normalization.md")[0]["slope"].shape == (320, 3)


def test_from_pytorch(run):
    assert float(run("coming_from.md", "From PyTorch", needs="torch")[1]) < 1


def test_from_keras(run, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert float(run("coming_from.md", "From Keras", needs="torch keras")[1]) > 0.85


def test_from_scikit_learn(run):
    _, printed, _ = run("coming_from.md", "From scikit-learn", needs="sklearn")
    scores = [float(line.split()[-1]) for line in printed.splitlines()]
    assert len(scores) == 2
    assert min(scores) > 0.94


def test_interoperability(run):
    _, printed, _ = run("interoperability.md", needs="torch onnxruntime")
    assert "0.9 False" in printed
    assert "1 BatchNorm(256, convention='keras', activation='relu')" in printed


@pytest.mark.filterwarnings("error")
def test_convolutions_are_recorded(run):
    names, _, _ = run("convolution.md")
    assert names["step"].refusal is None
    assert len(names["history"]) == 2
    assert all(p.grad is not None for p in names["model"].parameters() if p.ndim == 4)
    kinds = [type(layer).__name__ for layer in names["deployed"]]
    assert kinds == ["Conv2d", "Conv2d", "Conv2d", "Flatten", "Dense"]


@pytest.mark.filterwarnings("error")
def test_images_and_sequences_keep_their_shape(run):
    history = run("training.md", "Images and sequences")[0]["history"]
    assert history[-1].loss < 0.3


@pytest.mark.filterwarnings("error")
def test_other_targets_than_classes_are_learned(run):
    (title,) = re.findall("## (Regression, yes and no.*)", (DOCS / "training.md").read_text())
    _, _, (error, *accuracies) = run("training.md", title)
    assert error < 0.1
    assert min(accuracies) > 85


def test_scikit_learn(run):
    pattern = r"digits ([\d.]+)%"
    _, _, (accuracy,) = run("scientific.md", "scikit-learn", needs="sklearn", numbers=pattern)
    assert accuracy > 95


@pytest.mark.filterwarnings("error")
def test_scipy(run):
    _, printed, (loss,) = run(
        "scientific.md", "SciPy: training on all examples at once",
        numbers=r"full batch: ([\d.]+) after",
    )  # fmt: skip
    assert loss < 0.02
    assert float(re.findall(r"eigenvalue ([\d.e+-]+)", printed)[0]) > 0


def test_arrays_lists_and_tables(run):
    _, printed, (sparse, tables) = run(
        "scientific.md", "Arrays, lists and tables", needs="pandas",
        numbers=r"of (?:sparse rows|tables) ([\d.]+)%",
    )  # fmt: skip
    assert "226 parameters, 65 statistics" in printed
    assert sparse > 75
    assert tables > 90


@pytest.mark.filterwarnings("error")
def test_weights(run):
    title = "Weights: how they begin, how far a step goes, their average"
    _, _, (accuracy,) = run("scientific.md", title, numbers=r"of averages ([\d.]+)%")
    assert accuracy > 90
