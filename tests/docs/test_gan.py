"""The GAN of the examples: a training that was stopped ends with the bits of one that was not."""

from __future__ import annotations

import csv
import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

from nbbn import checkpoint
from nbbn.data import Dataset, load_mnist
from nbbn.errors import CheckpointError, DataError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT, DOCS = ROOT / "examples" / "gan.py", ROOT / "docs"


@pytest.fixture(scope="module")
def gan():
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("gan", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def mnist(gan):
    try:
        return Dataset(*(part[:640] for part in load_mnist()))
    except DataError as error:
        pytest.skip(f"MNIST cannot be had here: {error}")


def content(folder):
    """All that a run leaves behind."""
    saved = checkpoint.load(folder / "gan.safetensors")
    arrays = {**saved.model, **saved.optimizer, **saved.batches}
    pictures = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    rest = saved.progress, saved.generators, saved.settings
    return {name: a.tobytes() for name, a in arrays.items()}, pictures, rest


@pytest.mark.parametrize(("norm", "batches"), [("both", "apart"), ("discriminator", "together")])
def test_a_stopped_training_goes_on_with_the_same_bits(norm, batches, gan, mnist, tmp_path):
    with warnings.catch_warnings():
        # Both turns are replayed: what runs eagerly warns.
        warnings.simplefilter("error")
        whole = gan.train_gan(tmp_path / "whole", 3, mnist, norm, batches, seed=4)
        for epochs in (1, 3, 3):
            gan.train_gan(tmp_path / "parts", epochs, mnist, norm, batches, seed=4)
    assert content(tmp_path / "whole") == content(tmp_path / "parts")
    assert len(content(tmp_path / "whole")[1]) == 3
    # And it did train: another seed, or no training, gives other weights.
    untrained = gan.GAN(norm, batches, 4, np.random.default_rng(4)).state_dict()
    trained = whole.state_dict()
    assert all((trained[name] != array).any() for name, array in untrained.items())


def test_each_net_learns_in_its_own_turn(gan, mnist):
    training = gan.Training(mnist.train_images, mnist.train_labels, "both", "apart", 0)
    nets = training.gan.discriminator, training.gan.generator
    images, _ = next(iter(training.batches))
    x = np.hstack([images, np.ones((gan.BATCH, gan.NOISE), np.float32)])
    for turn in (0, 1):
        before = [[p.data.copy() for p in net.parameters()] for net in nets]
        training.take(turn, x)
        for net, was in zip((0, 1), before, strict=True):
            moved = [bool((p.data != a).any())
                     for p, a in zip(nets[net].parameters(), was, strict=True)]  # fmt: skip
            assert moved == [net == turn] * len(was)


def test_a_checkpoint_of_other_settings_is_refused(gan, mnist, tmp_path):
    gan.train_gan(tmp_path, 1, mnist)
    for other in ({"norm": "none"}, {"batches": "together"}, {"seed": 1}):
        with pytest.raises(CheckpointError, match="does not fit this model"):
            gan.train_gan(tmp_path, 2, mnist, **other)


def test_the_frechet_distance_of_two_normal_distributions(rng, monkeypatch):
    """By its closed form, and by SciPy's square root of a matrix."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    judge = importlib.import_module("gan_judge")
    sigma_a, sigma_b, shift = np.array([1.0, 2, 0]), np.array([3.0, 0.5, 0]), np.array([1.0, 2, 3])
    # Three columns of mean 0 and variance 1, no two of them correlated; the last one stays 0.
    white = rng.normal(size=(500, 3))
    white = np.linalg.qr(white - white.mean(axis=0))[0] * np.sqrt(499)
    expected = (shift**2).sum() + ((sigma_a - sigma_b) ** 2).sum()
    assert judge.frechet(white * sigma_a, white * sigma_b + shift) == pytest.approx(expected)
    a, b = rng.normal(size=(2, 400, 5)) @ rng.normal(size=(5, 5))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert judge.frechet(a, b) == pytest.approx(expected)


def test_the_tables_of_the_page_are_those_of_its_numbers(monkeypatch, capsys):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    judge = importlib.import_module("gan_judge")
    with open(DOCS / "gan.csv", newline="", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream)
    assert header == ["batch norm", "seed", *judge.MEASURES]
    of_variants = {
        name: np.array([row[2:] for row in rows if row[0] == name], float)
        for name in dict.fromkeys(row[0] for row in rows)
    }
    assert [*of_variants] == ["training images", *judge.VARIANTS]
    assert all(len(of_variants[name]) == judge.SEEDS for name in judge.VARIANTS)
    judge.print_table(of_variants)
    page = (DOCS / "sequences.md").read_text(encoding="utf-8")
    # Headers may be worded in another way there.
    lines = [line for line in capsys.readouterr().out.splitlines() if any(map(str.isdigit, line))]
    assert len(lines) == 10
    assert [line for line in lines if line not in page] == []
