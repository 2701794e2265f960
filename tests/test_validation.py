"""The same slip gives the same error everywhere: one table of scalars and of who takes them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbbn
from nbbn import (
    Convention,
    _validation,
    callbacks,
    checkpoint,
    convert,
    data,
    initializers,
    logs,
    optim,
    pool,
)
from nbbn import functional as F  # noqa: N812 - the usual name
from nbbn.errors import ArgumentError, DTypeError
from nbbn.kernels import _cache
from nbbn.train.config import Config
from nbbn.train.inference import Classifier, read_images

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
Y = np.array([0, 1, 0, 1, 1, 0])
MEAN, VAR = np.zeros(4, np.float32), np.ones(4, np.float32)

Call = Callable[[Any], Any]


def parameters():
    return nbbn.Dense(4, 3, rng=0).parameters()


def square(a):
    return (a * a).sum()


def batches(**options: Any) -> data.Batches:
    return data.Batches(X, Y, **{"batch_size": 3, **options})


def fit(**options: Any) -> Any:
    model = nbbn.Dense(4, 2, rng=0)
    return nbbn.train.fit(model, batches(), optim.SGD(model.parameters()), **options)


def find_lr(**options: Any) -> Any:
    model = nbbn.Dense(4, 2, rng=0)
    return nbbn.train.find_lr(model, batches(), optim.SGD(model.parameters()), **options)


# What takes an integer: the name in the message, the least one that will do, a call.
INTEGERS: list[tuple[str, int | None, Call]] = [
    ("channels", 1, nbbn.BatchNorm),
    ("axis", None, lambda v: nbbn.BatchNorm(4, convention=Convention(axis=v))),
    ("channels", 1, nbbn.BatchRenorm),
    ("channels", 1, lambda v: nbbn.GhostBatchNorm(v, 2)),
    ("size", 1, lambda v: nbbn.GhostBatchNorm(4, v)),
    ("channels", 1, nbbn.InPlaceBatchNorm),
    ("in_channels", 1, lambda v: nbbn.Conv2d(v, 3, 2)),
    ("out_channels", 1, lambda v: nbbn.Conv2d(3, v, 2)),
    ("groups", 1, lambda v: nbbn.Conv2d(4, 4, 2, groups=v)),
    ("axis", None, lambda v: nbbn.Conv2d(4, 4, 2, axis=v)),
    ("in_channels", 1, lambda v: nbbn.ConvTranspose2d(v, 3, 2)),
    ("out_channels", 1, lambda v: nbbn.ConvTranspose2d(3, v, 2)),
    ("groups", 1, lambda v: nbbn.ConvTranspose2d(4, 4, 2, groups=v)),
    ("shape", 1, lambda v: nbbn.LayerNorm((v,))),
    ("shape", 1, lambda v: nbbn.RMSNorm((3, v))),
    ("groups", 1, lambda v: nbbn.GroupNorm(v, 4)),
    ("channels", 1, lambda v: nbbn.GroupNorm(1, v)),
    ("axis", None, lambda v: nbbn.GroupNorm(1, 4, axis=v)),
    ("channels", 1, nbbn.InstanceNorm),
    ("size", 1, nbbn.LocalResponseNorm),
    ("axis", None, lambda v: nbbn.LocalResponseNorm(3, axis=v)),
    ("axis", None, lambda v: F.layer_norm(X, axis=v)),
    ("input_size", 1, lambda v: nbbn.LSTM(v, 3)),
    ("hidden_size", 1, lambda v: nbbn.GRU(3, v)),
    ("num_layers", 1, lambda v: nbbn.RNN(3, 3, num_layers=v)),
    ("max_steps", 1, lambda v: nbbn.LSTM(3, 3, normalization="batch", max_steps=v)),
    ("num_embeddings", 1, lambda v: nbbn.Embedding(v, 3)),
    ("embedding_dim", 1, lambda v: nbbn.Embedding(3, v)),
    ("max_steps", 1, lambda v: nbbn.PositionalEmbedding(v, 3)),
    ("features", 1, lambda v: nbbn.PositionalEmbedding(3, v)),
    ("embed_dim", 1, lambda v: nbbn.MultiheadAttention(v, 1)),
    ("num_heads", 1, lambda v: nbbn.MultiheadAttention(12, v)),
    ("in_features", 1, lambda v: nbbn.Dense(v, 3)),
    ("out_features", 1, lambda v: nbbn.Dense(3, v)),
    ("out_features", 1, lambda v: nbbn.mlp((4, v))),
    ("out_features", 1, lambda v: initializers.initialize("he", (v, 3), 0, "f4")),
    ("first", None, lambda v: nbbn.Ramp(1, 2, v, 2**40)),
    ("last", None, lambda v: nbbn.Ramp(1, 2, 0, v)),
    ("axis", None, lambda v: F.batch_norm_train(X, axis=v)),
    ("axis", None, lambda v: F.softmax(X, axis=v)),
    ("axis", None, lambda v: nbbn.Tensor(X).sum(axis=v)),
    ("axis", None, lambda v: nbbn.GlobalAvgPool2d(axis=v)),
    ("stats.count", 0, lambda v: F.merge_stats([F.BatchNormStats(MEAN, VAR, VAR, v)])),
    ("patience", 1, callbacks.EarlyStopping),
    ("every", 1, lambda v: logs.LogFile("a.csv", every=v)),
    ("every", 1, lambda v: checkpoint.Checkpoints("run", every=v)),
    ("keep", 1, lambda v: checkpoint.Checkpoints("run", keep=v)),
    ("batch_size", 1, lambda v: batches(batch_size=v)),
    ("num_classes", 1, lambda v: batches(num_classes=v)),
    ("count", 1, lambda v: batches().first(v)),
    ("count", 2, lambda v: data.split(v, 0.5)),
    ("count", 2, lambda v: convert.to_torch(nbbn.mlp((4, 3, 2)), count=v)),
    ("epochs", 1, lambda v: fit(epochs=v)),
    ("batch_size", 1, lambda v: find_lr(batch_size=v)),
    ("steps", 2, lambda v: find_lr(steps=v)),
    ("every", 1, lambda v: optim.StepDecay(0.1, v)),
    ("warmup", 0, lambda v: optim.StepDecay(0.1, 3, warmup=v)),
    ("total", 1, lambda v: optim.Cosine(0.1, v)),
    ("warmup", 0, lambda v: optim.Cosine(0.1, 9, warmup=v)),
    ("total", 1, lambda v: optim.OneCycle(0.1, v)),
    ("directions", 1, lambda v: nbbn.gradcheck(square, np.ones(3), directions=v)),
    ("blocks", 0, pool.keep),
    ("threads", 1, nbbn.threads.limit),
    ("shape", 1, lambda v: Classifier(nbbn.mlp((4, 2)), Config(), (v,))),
    ("hidden", 1, lambda v: Config(hidden=(v,))),
    ("epochs", 1, lambda v: Config(epochs=v)),
    ("batch_size", 1, lambda v: Config(batch_size=v)),
    ("patience", 1, lambda v: Config(patience=v)),
    ("seed", 0, lambda v: Config(seed=v)),
]

# What takes a real number: a value that is out of range, None where all are in it.
REALS: list[tuple[str, float | None, Call]] = [
    ("eps", 0.0, lambda v: nbbn.BatchNorm(4, convention=Convention(eps=v))),
    ("momentum", 1.5, lambda v: nbbn.BatchNorm(4, convention=Convention(momentum=v))),
    ("momentum", -0.5, lambda v: nbbn.BatchNorm(4, convention=Convention(momentum=v))),
    ("r_max", 0.5, lambda v: nbbn.BatchRenorm(4, r_max=v)),
    ("d_max", -0.5, lambda v: nbbn.BatchRenorm(4, d_max=v)),
    ("slope", 0.0, lambda v: nbbn.InPlaceBatchNorm(4, slope=v)),
    ("slope", -0.5, nbbn.LeakyReLU),
    ("decay", 1.0, callbacks.EMA),
    ("timeout", 0.0, nbbn.distributed.start),
    ("lowest", 0.0, lambda v: find_lr(lowest=v)),
    (
        "weight_decay",
        -0.5,
        lambda v: nbbn.train.Objective(
            nbbn.Dense(4, 2, rng=0), nbbn.losses.cross_entropy, X, Y, weight_decay=v
        ),
    ),
    ("highest", 0.0, lambda v: find_lr(highest=v)),
    ("eps", 0.0, lambda v: nbbn.LayerNorm(4, eps=v)),
    ("eps", 0.0, lambda v: F.rms_norm(X, eps=v)),
    ("alpha", -0.5, lambda v: nbbn.LocalResponseNorm(3, alpha=v)),
    ("beta", None, lambda v: nbbn.LocalResponseNorm(3, beta=v)),
    ("k", -0.5, lambda v: nbbn.LocalResponseNorm(3, k=v)),
    ("momentum", 1.5, lambda v: nbbn.InstanceNorm(4, momentum=v)),
    ("dropout", 1.5, lambda v: nbbn.MultiheadAttention(4, 2, dropout=v)),
    ("eps", 0.0, lambda v: nbbn.TransformerEncoderLayer(4, 2, eps=v)),
    ("p", 1.5, nbbn.Dropout),
    ("p", -0.5, nbbn.Dropout),
    ("start", None, lambda v: nbbn.Ramp(v, 2, 0, 9)),
    ("end", None, lambda v: nbbn.Ramp(1, v, 0, 9)),
    ("eps", -0.5, lambda v: F.batch_norm_infer(X, MEAN, VAR, eps=v)),
    ("momentum", -0.5, lambda v: F.batch_norm(X, MEAN, VAR, training=True, momentum=v)),
    ("fraction", 1.0, lambda v: data.split(9, v)),
    ("mean", None, lambda v: batches(mean=v)),
    ("std", 0.0, lambda v: batches(std=v)),
    ("lr", -0.5, lambda v: optim.Cosine(v, 9)),
    ("max_norm", 0.0, lambda v: optim.clip_grad_norm(parameters(), v)),
    ("max_norm", 0.0, lambda v: setattr(optim.SGD(parameters()), "max_norm", v)),
    ("lr", -0.5, lambda v: optim.StepDecay(v, 9)),
    ("lr", -0.5, lambda v: optim.OneCycle(v, 9)),
    ("final", -0.5, lambda v: optim.Cosine(0.1, 9, final=v)),
    ("factor", 0.0, lambda v: optim.StepDecay(0.1, 9, factor=v)),
    ("rise", 1.5, lambda v: optim.OneCycle(0.1, 9, rise=v)),
    ("weight_decay", -0.5, lambda v: optim.SGD(parameters(), weight_decay=v)),
    ("weight_decay", -0.5, lambda v: optim.Adam(parameters(), weight_decay=v)),
    ("momentum", 1.5, lambda v: optim.SGD(parameters(), momentum=v)),
    ("eps", -0.5, lambda v: optim.Adam(parameters(), eps=v)),
    ("tolerance", 0.0, lambda v: nbbn.fold(nbbn.mlp((4, 3, 2)), tolerance=v)),
    ("tolerance", -0.5, lambda v: nbbn.gradcheck(square, np.ones(3), tolerance=v)),
    ("step", 0.0, lambda v: nbbn.gradcheck(square, np.ones(3), step=v)),
    ("validation", 1.0, lambda v: Config(validation=v)),
    ("dropout", 1.0, lambda v: Config(dropout=v)),
    ("lr", 0.0, lambda v: Config(lr=v)),
    ("weight_decay", -0.5, lambda v: Config(weight_decay=v)),
    ("until", 0.0, lambda v: Config(until=v)),
    ("momentum", 1.0, lambda v: Config(optimizer="sgd", momentum=v)),
]

GENERATORS: list[Call] = [
    lambda v: nbbn.Conv2d(3, 2, 1, rng=v),
    lambda v: nbbn.Dense(3, 2, rng=v),
    lambda v: nbbn.Dropout(0.5, rng=v),
    lambda v: nbbn.mlp((4, 2), rng=v),
    lambda v: initializers.initialize("he", (3, 2), v, "f4"),
    lambda v: nbbn.gradcheck(square, np.ones(3), rng=v),
    lambda v: nbbn.gradgradcheck(square, np.ones(3), rng=v),
    lambda v: batches(rng=v),
    lambda v: data.split(9, 0.5, v),
]

PATHS: list[tuple[str, Call]] = [
    ("path", checkpoint.load),
    ("folder", checkpoint.latest),
    ("folder", checkpoint.Checkpoints),
    ("path", lambda v: checkpoint.save(v, nbbn.mlp((4, 2)))),
    ("path", logs.LogFile),
    ("path", logs.read_log),
    ("source", data.load),
    ("labels", lambda v: data.load("x.npy", v)),
    ("data_dir", lambda v: data.load("mnist", data_dir=v)),
    ("data_dir", lambda v: data.load_mnist(v, download=False)),
    ("source", data.read_idx),
    ("path", Classifier.load),
    ("path", read_images),
]

SWITCHES: list[tuple[str, Call]] = [
    *((name, lambda v, name=name: nbbn.BatchNorm(4, **{name: v})) for name in (
        "scale", "shift", "track_running_stats", "frozen", "skip_nonfinite", "sync",
    )),
    ("unbiased", lambda v: nbbn.BatchNorm(4, convention=Convention(unbiased=v))),
    ("zero_debias", lambda v: nbbn.BatchNorm(4, convention=Convention(zero_debias=v))),
    ("bias", lambda v: nbbn.Conv2d(3, 2, 1, bias=v)),
    ("bias", lambda v: nbbn.Dense(3, 2, bias=v)),
    ("batch_norm", lambda v: nbbn.mlp((4, 2), batch_norm=v)),
    ("requires_grad", lambda v: nbbn.Tensor(X, requires_grad=v)),
    ("keepdims", lambda v: nbbn.Tensor(X).mean(keepdims=v)),
    ("mode", lambda v: nbbn.ReLU().train(v)),
    ("strict", lambda v: nbbn.ReLU().load_state_dict({}, strict=v)),
    ("ceil_mode", lambda v: nbbn.MaxPool2d(2, ceil_mode=v)),
    ("count_include_pad", lambda v: nbbn.AvgPool2d(2, count_include_pad=v)),
    ("keepdims", lambda v: nbbn.GlobalMaxPool2d(keepdims=v)),
    ("scale", lambda v: nbbn.LayerNorm(4, scale=v)),
    ("shift", lambda v: nbbn.GroupNorm(1, 4, shift=v)),
    ("track_running_stats", lambda v: nbbn.InstanceNorm(4, track_running_stats=v)),
    *((name, lambda v, name=name: nbbn.LSTM(3, 4, **{name: v})) for name in (
        "bias", "bidirectional", "last",
    )),
    ("bias", lambda v: nbbn.MultiheadAttention(4, 2, bias=v)),
    ("causal", lambda v: nbbn.MultiheadAttention(4, 2, causal=v)),
    ("norm_first", lambda v: nbbn.TransformerEncoderLayer(4, 2, norm_first=v)),
    ("learned", lambda v: nbbn.PositionalEmbedding(4, 2, learned=v)),
    ("single", lambda v: F.batch_norm_train(X, single=v)),
    ("training", lambda v: F.batch_norm(X, training=v)),
    ("shuffle", lambda v: batches(shuffle=v)),
    ("drop_last", lambda v: batches(drop_last=v)),
    ("reuse", lambda v: batches(reuse=v)),
    ("flatten", lambda v: batches(flatten=v)),
    ("per_feature", lambda v: data.standardization(X, per_feature=v)),
    ("nesterov", lambda v: optim.SGD(parameters(), momentum=0.9, nesterov=v)),
    ("best", lambda v: checkpoint.Checkpoints("run", best=v)),
    ("percentiles", lambda v: logs.LogFile("a.csv", percentiles=v)),
    ("batch_norm", lambda v: Config(batch_norm=v)),
    ("sync", lambda v: Config(sync=v)),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)


def named(table: list[Any]) -> Any:
    return pytest.mark.parametrize(
        ("name", "out", "call") if len(table[0]) == 3 else ("name", "call"),
        table,
        ids=[f"{position} {row[0]}" for position, row in enumerate(table)],
    )


@named(INTEGERS)
def test_integers(name, out, call):
    for wrong in (True, np.True_, 2.0, np.float64(2), "2", None, [2], np.ones(2, int), 2j, b"2"):
        # None leaves out what is optional, and axis takes several.
        if (wrong is None and name in {"every", "num_classes", "count", "patience", "axis"}) or (
            name == "axis" and isinstance(wrong, list | np.ndarray)
        ):
            continue
        with pytest.raises(
            DTypeError, match=f"{name} must be an integer, got {type(wrong).__name__}"
        ):
            call(wrong)
    if out is not None:
        for value in (out - 1, np.int64(out - 1), np.array(out - 1)):
            with pytest.raises(
                ArgumentError, match=f"{name} must be at least {out}, got {out - 1}"
            ):
                call(value)


@pytest.mark.parametrize("kind", [np.int64, np.int8, np.uint16, np.array])
def test_integers_of_numpy_are_integers(kind):
    for name, _, call in INTEGERS:
        if name in {"threads", "blocks", "stats.count"}:
            continue
        call(kind(2 if name != "axis" else 1))
    assert type(Config(epochs=kind(3)).epochs) is int
    assert type(callbacks.EarlyStopping(kind(3)).patience) is int
    pool.keep(kind(2))
    nbbn.threads.limit(kind(1))


@named(REALS)
def test_reals(name, out, call):
    for wrong in (True, "0.5", [0.5], 0.5j, np.complex64(1), b"x"):
        with pytest.raises(
            DTypeError, match=f"{name} must be a number, got {type(wrong).__name__}"
        ):
            call(wrong)
    for wrong in (np.nan, np.inf, -np.inf, np.float32("nan"), np.array(np.inf), 10**400):
        with pytest.raises(ArgumentError, match=f"{name} must be finite, got "):
            call(wrong)
    if out is not None:
        for kind in (float, np.float64, np.array):
            with pytest.raises(ArgumentError, match=f"{name} must .*got {out}"):
                call(kind(out))


@pytest.mark.parametrize("call", GENERATORS)
def test_generators(call):
    for wrong in (
        "x",
        1.5,
        True,
        np.random,
        np.random.RandomState(0),
        np.ones(2, int),
        X.view(np.matrix),
    ):
        with pytest.raises(DTypeError, match=r"rng must be a numpy.random.Generator, an integer"):
            call(wrong)
    for wrong in (-1, np.int64(-1)):
        with pytest.raises(ArgumentError, match="rng must be a seed of at least 0, got -1"):
            call(wrong)
    for right in (None, 3, np.int64(3), np.uint64(2**63), 2**70, np.random.default_rng(0)):
        call(right)


@named(PATHS)
def test_paths(name, call):
    for wrong in (3, b"x", ["x"], X, object()):
        if name == "source" and isinstance(wrong, bytes):
            continue
        with pytest.raises(DTypeError, match=f"{name} must be a path.*got {type(wrong).__name__}"):
            call(wrong)
    with pytest.raises(ArgumentError, match=f"{name} must be a path without null characters"):
        call("a\0b")


@named(SWITCHES)
def test_switches(name, call):
    for wrong in ("no", 2, 0.0, np.zeros(2), np.zeros(0), [], ...):
        with pytest.raises(
            DTypeError, match=f"{name} must be True or False, got {type(wrong).__name__}"
        ):
            call(wrong)
    for right in (True, np.True_, 1, np.int64(1)):
        call(right)


def test_a_choice_is_a_string():
    for wrong in (3, X, np.zeros(1, [("a", int)])[0], [], "relu6"):
        with pytest.raises(ArgumentError, match="activation must be one of None, 'relu'; got"):
            nbbn.BatchNorm(3, activation=wrong)


_TOO_MUCH = """
import resource
import nbbn
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
for make in (lambda: nbbn.Dense(2**20, 2**20), lambda: nbbn.BatchNorm(2**40),
             lambda: nbbn.data.split(2**40, 0.5), lambda: nbbn.Dense(2**14, 2**15 + 2**14)):
    try:
        make()
    except nbbn.errors.ArgumentError as error:
        print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_parameters_beyond_memory_are_refused():
    out = subprocess.run(
        [sys.executable, "-c", _TOO_MUCH], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [line.partition("would take ")[2].partition(",")[0] for line in out] == [
        "4 TiB", "4 TiB", "8 TiB", "3 GiB",
    ]  # fmt: skip
    assert all("use smaller sizes" in line for line in out)


def test_one_idea_of_a_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("NBBN_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _validation.cache_dir() == _cache.cache_dir() == tmp_path / "nbbn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert _validation.cache_dir() == _cache.cache_dir() == tmp_path / ".cache" / "nbbn"


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_written_whole_or_not_at_all(monkeypatch, tmp_path, durable):
    target = tmp_path / "file"
    _validation.write_atomically(target, b"old", durable=durable)

    def fail(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        _validation.write_atomically(target, b"new", durable=durable)
    assert target.read_bytes() == b"old"
    assert set(os.listdir(tmp_path)) == {"file", "x.npy"}
