"""Whatever is put in place of an argument, a call returns or raises one of nbbn's own errors.

Everything public is found by introspection: a new function, class or method is covered as soon as
`VALUES` knows the names of the arguments that it needs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import operator
import os
import random
import re
import signal
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import pytest
from scipy import sparse

import nbbn
from nbbn import data, losses, optim, pool
from nbbn import functional as F  # noqa: N812 - the usual name
from nbbn.errors import DataError, NbbnError
from nbbn.export import BatchNormState
from nbbn.train import Objective
from nbbn.train.callbacks import EMA, Run
from nbbn.train.config import Config
from nbbn.train.inference import Classifier
from nbbn.train.rates import RateTrial

# As many as `NBBN_FUZZ_CALLS` says, to look for more.
CALLS = int(os.environ.get("NBBN_FUZZ_CALLS", 2000))
SEED = int(os.environ.get("NBBN_FUZZ_SEED", 20150211))
SECONDS = 20


def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def images() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(2, 3, 6, 4)).astype(np.float32)


def deep() -> np.ndarray:
    """Give channels positions."""
    return x().reshape(1, 4, 6)


def sequences() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)


def through_time() -> dict[str, Any]:
    return {"projected": sequences(), "weight": np.ones((4, 1), np.float32), "kind": "lstm",
            "initial": np.zeros((2, 3, 1), np.float32), "lengths": np.array([5, 1, 3]),
            "bias": vector()}  # fmt: skip


def back_through_time() -> dict[str, Any]:
    given = through_time()
    states = F.recurrent(**given)
    del given["projected"], given["initial"]
    return {**given, "states": states, "dstates": np.ones_like(states.states)}


def vector() -> np.ndarray:
    return np.random.default_rng(1).uniform(0.5, 2, 4).astype(np.float32)


def model() -> nbbn.Sequential:
    return nbbn.mlp((4, 3, 2), rng=0)


def batches() -> data.Batches:
    return data.Batches(x(), labels(), 3, rng=0)


def labels() -> np.ndarray:
    return np.array([0, 1, 0, 1, 1, 0])


def convolved() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(2, 4, 5, 5)).astype(np.float32)


def kernel(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def sgd(own: nbbn.Module) -> optim.SGD:
    return optim.SGD(own.parameters())


def run() -> Run:
    return Run(model(), batches(), sgd(model()), 2)


def recorded() -> dict[str, Any]:
    with nbbn.Tape() as tape:
        return {"self": tape, "loss": (nbbn.Parameter(vector()) ** 2).sum()}


def trained() -> dict[str, Any]:
    own = model()
    return {"model": own, "optimizer": sgd(own), "validation": batches()}


def objective() -> Objective:
    return Objective(model(), losses.cross_entropy, x(), labels())


def averaged() -> EMA:
    found, own = EMA(), run()
    found.start(own)
    found.step(own)
    return found


def classifier() -> Classifier:
    return Classifier(model(), Config(), (4,), np.float32)


def batch_norm_state() -> BatchNormState:
    return BatchNormState(vector(), vector(), vector(), vector())


# ----------------------------------------------------------------------------- valid arguments

# By name, for every function; what has a default and no value here is called with its default.
VALUES: dict[str, Callable[[], Any]] = {
    "axis": lambda: 1, "batch_size": lambda: 3, "batches": batches, "beta": vector,
    "blocks": lambda: 2, "channels": lambda: 4,
    "checkpoint": lambda: nbbn.checkpoint.load("saved.safetensors"), "config": dict,
    "count": lambda: 6, "data": x, "data_dir": lambda: "empty", "device": lambda: "cpu",
    "download": lambda: False, "dtype": lambda: np.float32, "dy": x, "end": lambda: 2.0,
    "epochs": lambda: 1, "every": lambda: 5, "features": lambda: 4, "classes": lambda: 2,
    "first": lambda: 1, "folder": lambda: "run", "fraction": lambda: 0.25,
    "framework": lambda: "torch", "function": lambda: lambda a: (a * a).sum(), "gamma": vector,
    "groups": lambda: 2,
    "image": lambda: x()[0], "images": x, "in_features": lambda: 4, "inputs": lambda: [np.ones(3)],
    "labels": labels, "last": lambda: 9, "layer": lambda: nbbn.BatchNorm(4),
    "layers": lambda: [nbbn.Dense(4, 3), nbbn.ReLU()], "logits": x,
    "loss": lambda: losses.cross_entropy, "loss_fn": lambda: losses.cross_entropy,
    "lr": lambda: 0.1, "max_norm": lambda: 1.0,
    "mean": vector, "mode": lambda: True, "model": model, "most": lambda: 3,
    "name": lambda: "he", "optimizer": lambda: sgd(model()), "exponent": lambda: 2.0,
    "index": lambda: (1, slice(0, 2)), "axes": lambda: [1, 0], "k": lambda: 2, "other": x,
    "out_features": lambda: 3, "position": lambda: 0, "reason": lambda: "enough",
    "step": lambda: 1, "generators": dict, "settings": dict, "version": lambda: "1",
    "embed_dim": lambda: 4, "embedding_dim": lambda: 4, "num_heads": lambda: 2,
    "num_embeddings": lambda: 4, "d_model": lambda: 4, "nhead": lambda: 2, "input_size": lambda: 4,
    "hidden_size": lambda: 3, "max_steps": lambda: 4,
    "p": lambda: 0.5, "output": x, "parameters": lambda: model().parameters(),
    "parts": lambda: [F.batch_norm_train(x())[1], F.batch_norm_train(x())[1]],
    "path": lambda: "saved.safetensors", "patience": lambda: 2,
    "predicted": lambda: np.array([0, 1, 1, 1, 1, 0]), "probabilities": lambda: F.softmax(x()),
    "progress": lambda: None, "residual": x, "rng": lambda: 0, "rows": lambda: np.array([0, 2, 3]),
    "run": run, "running_mean": vector, "running_var": vector,
    "runs": lambda: {"run": [{"kind": "step", "step": 1, "loss": 0.5}]}, "shape": lambda: (3, 4),
    "size": lambda: 2, "sizes": lambda: (4, 3, 2), "slope": lambda: 0.1,
    "source": lambda: "own.npz", "start": lambda: 1.0, "stats": lambda: F.batch_norm_train(x())[1],
    "std": vector, "targets": lambda: np.ones((6, 4), np.float32), "threads": lambda: 1,
    "total": lambda: 10, "var": vector, "weight": lambda: np.ones((3, 4), np.float32),
    "weight_decay": lambda: 0.1, "weights": lambda: np.array([1, 0, 1, 1, 1, 1], bool), "x": x,
    "y": x, "in_channels": lambda: 4, "out_channels": lambda: 2, "kernel_size": lambda: 3,
}  # fmt: skip

POOLING = [
    *(f"{name}Pool2d.__call__" for name in ("Max", "Avg", "GlobalAvg", "GlobalMax")),
    *(f"{home}.{name}" for home in ("functional", "ops") for name in (
        "max_pool2d", "avg_pool2d", "global_avg_pool2d", "global_max_pool2d",
    )),
]  # fmt: skip
SHAPE = {"shape": (2, 3, 6, 4)}

# Where a name means something else, arguments belong together, or a default says nothing.
OWN: dict[str, Callable[[], dict[str, Any]]] = {
    "Batches.load_state_dict": lambda: {"state": batches().state_dict()},
    "BatchNormState.assign": lambda: {"self": batch_norm_state(), "layer": nbbn.BatchNorm(4)},
    "InstanceNorm.__call__": lambda: {"x": deep()},
    "LocalResponseNorm.__call__": lambda: {"x": deep()},
    "LayerNorm": lambda: {"shape": 4},
    "RMSNorm": lambda: {"shape": 4},
    "BatchRenorm": lambda: {"r_max": 2.0, "d_max": 1.0},
    "Classifier.batches": lambda: {"self": classifier()},
    "Classifier.load": lambda: {"path": "classifier.safetensors"},
    "Classifier.probabilities": lambda: {"self": classifier()},
    "Config.build_model": lambda: {"rng": 0},
    "Config.from_dict": lambda: {"values": Config().to_dict()},
    "Config.prepare": lambda: {"self": Config(data=("own.npz",))},
    "Conv2d.__call__": lambda: {"x": convolved()},
    "ConvTranspose2d.__call__": lambda: {"x": convolved()},
    "EMA.apply": lambda: {"self": averaged(), "batches": batches()},
    "Embedding.__call__": lambda: {"x": labels()},
    **{
        name: lambda: {"x": sequences(), "lengths": np.array([3, 1, 2, 3, 3])}
        for name in (
            "GRU.__call__",
            "LSTM.__call__",
            "RNN.__call__",
            "Recurrent.with_state",
            "MultiheadAttention.__call__",
            "MultiheadAttention.with_weights",
        )
    },
    **{
        f"{kind}.__call__": lambda: {"x": sequences()}
        for kind in ("PositionalEmbedding", "TransformerEncoderLayer")
    },
    "Flatten.__call__": lambda: {"x": np.ones((2, 3, 4), np.float32)},
    "Module.load_state_dict": lambda: {
        "self": nbbn.BatchNorm(4),
        "state": nbbn.BatchNorm(4).state_dict(),
    },
    "Optimizer.add_param_group": lambda: {"group": {"params": [nbbn.Parameter([1.0])]}},
    "Optimizer.expected": lambda: {"state": sgd(model()).state_dict()},
    "Optimizer.load_state_dict": lambda: {"state": sgd(model()).state_dict()},
    "Run.load_state_dict": lambda: {"state": run().state_dict()},
    "SpectralNorm": lambda: {"layer": nbbn.Dense(4, 3, rng=0), "rng": 0},
    "WeightStandardization": lambda: {"layer": nbbn.Dense(4, 3, rng=0)},
    "Step.submit": lambda: {"y": labels()},
    "Tape.backward": recorded,
    "Tensor.__matmul__": lambda: {"other": np.ones((4, 2), np.float32)},
    "Tensor.__rmatmul__": lambda: {"other": np.ones((2, 6), np.float32)},
    "Tensor.backward": lambda: {"self": recorded()["loss"], "grad": np.ones((), np.float32)},
    "Tensor.max": lambda: {"axis": (0, 1)},
    "Tensor.mean": lambda: {"axis": (0, 1)},
    "Tensor.reshape": lambda: {"shape": [2, 12]},
    "Tensor.sum": lambda: {"axis": (0, 1)},
    "apply": lambda: {"op": nbbn.ops.Add, "inputs": [x(), x()]},
    "convert.BatchNormState": dict,
    "convert.load_keras": lambda: {"weights": nbbn.convert.to_keras(model())},
    "convert.load_torch": lambda: {"source": nbbn.convert.to_torch(model())},
    # Nothing is downloaded; where there is no copy, a DataError says so.
    "data.load_fashion_mnist": lambda: {"data_dir": "empty", "download": False},
    "data.load_mnist": lambda: {"data_dir": "empty", "download": False},
    "data.read_idx": lambda: {"source": "labels.idx"},
    **{
        f"{home}.{name}": lambda shape=shape: {"x": convolved(), "weight": kernel(*shape)}
        for home in ("functional", "ops")
        for name, shape in (("conv2d", (6, 4, 3, 3)), ("conv_transpose2d", (4, 6, 3, 3)))
    },
    "functional.conv2d_backward": lambda: {
        "dy": kernel(2, 6, 3, 3),
        "x": convolved(),
        "weight": kernel(6, 4, 3, 3),
    },
    "functional.conv_transpose2d_backward": lambda: {
        "dy": kernel(2, 6, 7, 7),
        "x": convolved(),
        "weight": kernel(4, 6, 3, 3),
    },
    "functional.avg_pool2d_backward": lambda: {"dy": images()[..., ::2, ::2], **SHAPE},
    "functional.global_avg_pool2d_backward": lambda: {"dy": x()[:2, :3], **SHAPE},
    "functional.global_max_pool2d_backward": lambda: dict(
        zip(("dy", "index"), F.global_max_pool2d(images()), strict=True), **SHAPE
    ),
    "functional.max_pool2d_backward": lambda: dict(
        zip(("dy", "index"), F.max_pool2d(images(), 2), strict=True), **SHAPE
    ),
    **{name: lambda: {"x": images()} for name in POOLING},
    "functional.group_norm_backward": lambda: {"stats": F.group_norm(x(), groups=2)[1]},
    "functional.instance_norm": lambda: {"x": deep()},
    "functional.instance_norm_backward": lambda: {
        "dy": deep(),
        "x": deep(),
        "stats": F.instance_norm(deep())[1],
    },
    "functional.layer_norm_backward": lambda: {"stats": F.layer_norm(x(), axis=1)[1]},
    "functional.local_response_norm": lambda: {"x": deep()},
    "functional.local_response_norm_backward": lambda: {"dy": deep(), "x": deep()},
    "functional.rms_norm_backward": lambda: {"stats": F.rms_norm(x(), axis=1)[1]},
    "functional.weighted_batch_norm_backward": lambda: {
        "stats": F.weighted_batch_norm_train(x(), VALUES["weights"]())[1]
    },
    "grad": lambda: {"output": recorded()["loss"], "inputs": []},
    "inference.Classifier": lambda: {"config": Config(), "shape": (4,), "dtype": np.float32},
    "inference.read_images": lambda: {"path": "images.npy"},
    "inspect": lambda: {"y": labels()},
    "logs.LogFile": lambda: {"path": "new.jsonl"},
    "logs.read_log": lambda: {"path": "log.jsonl"},
    "mlp": lambda: {"rng": 0},
    "onnx.load": lambda: {"source": "model.onnx"},
    "functional.recurrent": through_time,
    "functional.recurrent_backward": back_through_time,
    "ops.recurrent": through_time,
    "ops.concatenate": lambda: {"tensors": [x(), x()]},
    "ops.local_response_norm": lambda: {"x": deep()},
    "ops.instance_norm": lambda: {"x": deep()},
    "ops.dropout": lambda: {"rng": np.random.default_rng(0)},
    "ops.einsum": lambda: {"subscripts": "ij,ij->i", "a": x(), "b": x()},
    "ops.gather": lambda: {"index": np.zeros((6, 2), np.int64)},
    "ops.maximum": lambda: {"a": x(), "b": x()},
    "ops.minimum": lambda: {"a": x(), "b": x()},
    "ops.pad": lambda: {"widths": ((1, 0), (0, 2))},
    "ops.scatter_add": lambda: {"index": np.zeros((6, 4), np.int64), "size": 3},
    "ops.split": lambda: {"sections": 3},
    "ops.stack": lambda: {"tensors": [x(), x()]},
    "ops.where": lambda: {"condition": x() > 0, "a": x(), "b": x()},
    "plots.rates": lambda: {"trial": RateTrial(vector(), vector(), vector(), 0.1)},
    "plots.mistakes": lambda: {"images": np.ones((6, 2, 2))},
    "plots.percentiles": lambda: {"rows": [{"kind": "step", "step": 1, "0.p50": 0.5}]},
    "train.Step.__call__": lambda: {"y": labels()},
    "Objective.assign": lambda: {"self": objective(), "vector": objective().vector()},
    "Objective.hessian_product": lambda: {
        "self": objective(),
        "vector": objective().vector(),
        "direction": objective().vector(),
    },
    "Objective.value_and_gradient": lambda: {"self": objective(), "vector": objective().vector()},
    "train.Objective": lambda: {"y": labels()},
    "train.minimize": lambda: {"y": labels(), "options": {"maxiter": 2}},
    "train.find_lr": lambda: {"model": (own := model()), "optimizer": sgd(own), "steps": 10},
    "train.fit": trained,
    "train.record_step": lambda: {"model": (own := model()), "optimizer": sgd(own)},
    "Unflatten.__call__": lambda: {"x": np.ones((2, 12), np.float32)},
    "cnn": lambda: {"shape": (8, 6), "channels": (2,), "hidden": (3,), "rng": 0},
    "warmup": lambda: {"dtypes": ()},
}

# Not fuzzed, and why.
EXCLUDED = {
    "Module.__call__": "abstract",
    "BatchNorm.weight_of_new": "BatchNorm's own",
    "Op": "run by apply",
    "Ramp.__call__": "called with the number of a batch",
    "Sequential.__getitem__": "raises IndexError as a list does, or it could not be iterated over",
    "distributed": "called by all processes of a run alike: tests/test_distributed.py",
    "errors": "exceptions",
    "NbbnError": "an exception",
    "jit": "called from compiled code, whose types the compiler checks",
    "losses.DoubleSigmoidWarning": "a warning",
    "losses.DoubleSoftmaxWarning": "a warning",
    **{
        f"Tape.{name}": "called by apply and grad"
        for name in ("holds", "record", "release", "result")
    },
    "optim.Cosine.__call__": "called with the number of a step",
    "optim.OneCycle.__call__": "called with the number of a step",
    "optim.Schedule": "the name of a type",
    "optim.StepDecay.__call__": "called with the number of a step",
}
# Called by the library, with what it has made itself.
HOOKS = {"reweighted", "start", "step", "epoch", "end", "close", "take", "forward"}
OPERATORS = {
    "__call__", "__getitem__", "__add__", "__sub__", "__rsub__", "__mul__", "__truediv__",
    "__rtruediv__", "__pow__", "__matmul__", "__rmatmul__",
}  # fmt: skip
# It downloads what is missing.
KEPT = {"download"}
# As many as are asked for, however long that takes.
PATIENT = {"directions", "dtypes", "epochs", "num_layers", "steps"}


# ---------------------------------------------------------------------------- wrong arguments


class Anything:
    """A class that takes any arguments, where a function is expected or an object."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args


WRONG: list[Callable[[], Any]] = [
    lambda: None, lambda: True, lambda: np.bool_(True), lambda: ..., lambda: NotImplemented,
    lambda: "", lambda: "x", lambda: "\0", lambda: "1", lambda: b"x", lambda: "float32",
    lambda: -1, lambda: 0, lambda: 3, lambda: 2**62, lambda: 10**30, lambda: -(10**30),
    lambda: 10**400, lambda: np.int64(3), lambda: np.int8(-1), lambda: np.uint64(2**63),
    lambda: 0.5, lambda: -0.5, lambda: 1e308, lambda: 1e-320, lambda: float("nan"),
    lambda: float("inf"), lambda: np.float32("nan"), lambda: np.float64(2.5), lambda: 1j,
    lambda: np.array(3.0), lambda: np.array(3), lambda: np.array(None), lambda: np.array("x"),
    lambda: np.array(float("nan")), lambda: np.empty(0), lambda: np.empty(0, np.float32),
    lambda: np.empty((0, 4), np.float32), lambda: np.empty((6, 0), np.float32),
    lambda: np.ones(4, np.float32), lambda: np.ones((2, 3)), lambda: np.ones((6, 4), np.float32),
    lambda: np.ones((6, 4), np.float16), lambda: np.ones((6, 4), ">f4"),
    lambda: np.ones((6, 4), np.longdouble), lambda: np.ones((2, 4, 2), np.float32),
    lambda: np.ones((1,) * 7, np.float32), lambda: np.full((6, 4), np.nan, np.float32),
    lambda: np.full((6, 4), 3e38, np.float32), lambda: np.full(4, -1.0, np.float32),
    lambda: np.broadcast_to(np.float32(1), (6, 4)), lambda: np.ones((6, 4), np.float32)[::-1],
    lambda: np.arange(6), lambda: np.arange(6, dtype=np.uint8), lambda: np.full(6, -1),
    lambda: np.full(6, 2**62), lambda: np.ones(6, bool), lambda: np.ones((6, 4), complex),
    lambda: np.array([None] * 4, object), lambda: np.array(["a", "b"]),
    lambda: np.array(["2020-01-01"], "M8[D]"), lambda: np.zeros(3, [("a", int)]),
    lambda: np.ma.array(np.ones((6, 4), np.float32), mask=True),
    lambda: np.ones((6, 4), np.float32).view(np.matrix),
    lambda: memoryview(b"abc"), lambda: memoryview(np.ones(4)), lambda: memoryview(np.array(1.0)),
    lambda: bytearray(b"abc"), list, lambda: [1, 2], lambda: [None], lambda: [[1, 2], [3]],
    lambda: ["a"], lambda: (), lambda: (1,), lambda: (None, None), lambda: (-1, 2**62),
    dict, lambda: {"a": 1}, lambda: {1: None}, lambda: set(), lambda: range(3),
    lambda: slice(1, None), lambda: (n for n in (1, 2)), lambda: iter("ab"), object,
    lambda: Anything, lambda: Anything(), lambda: np.float32,
    lambda: np.dtype("i8"), lambda: np.random.default_rng(0), lambda: np.random.RandomState(0),
    lambda: nbbn.Tensor(np.ones((6, 4), np.float32)), lambda: nbbn.Parameter([1.0, 2.0]),
    lambda: sparse.csr_matrix(np.eye(6, 4, dtype=np.float32)), lambda: sparse.csc_array(np.eye(4)),
    lambda: nbbn.ReLU(), lambda: nbbn.BatchNorm, model, batches, lambda: optim.SGD,
]  # fmt: skip


def replaced(value: Any, draw: random.Random) -> Any:
    """Return a wrong value, or `value` with a wrong one somewhere in it."""
    if isinstance(value, tuple | list | dict) and value and draw.random() < 0.7:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = draw.choice(keys)
        inside = replaced(value[key], draw)
        if isinstance(value, dict):
            return {**value, key: inside}
        items = [inside if place == key else item for place, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return draw.choice(WRONG)()


# ------------------------------------------------------------------------------ what is called


class Subject(NamedTuple):
    name: str
    function: Callable[..., Any]
    # The name of the class that makes the object of a method.
    owner: str | None = None


def subjects() -> dict[str, Subject]:
    """All that is public and takes arguments, by name."""
    found: dict[str, Subject] = {}
    _visit(nbbn, "", found, set())
    return {name: subject for name, subject in sorted(found.items()) if parameters(subject)}


def _visit(module: types.ModuleType, prefix: str, found: dict[str, Subject], seen: set) -> None:
    for name in module.__all__:
        value, full = getattr(module, name), prefix + name
        if full in EXCLUDED or (prefix == "ops." and isinstance(value, type)):
            continue
        if isinstance(value, types.ModuleType):
            _visit(value, f"{full}.", found, seen)
        elif callable(value) and value not in seen:
            seen.add(value)
            # A NamedTuple takes what it is given; those who take it check it.
            if not hasattr(value, "_fields"):
                found[full] = Subject(full, value)
            if isinstance(value, type):
                _add_methods(full, value, found, seen)


def _add_methods(owner: str, kind: type, found: dict[str, Subject], seen: set) -> None:
    for name, method in inspect.getmembers(kind, callable):
        public = not name.startswith("_") or name in OPERATORS
        ours = (getattr(method, "__module__", "") or "").startswith("nbbn")
        if not public or not ours or name in HOOKS:
            continue
        # Each class of layers computes something else when called.
        full = f"{owner}.__call__" if name == "__call__" else method.__qualname__
        if full not in EXCLUDED:
            found.setdefault(full, Subject(full, method, owner))


def parameters(subject: Subject) -> list[inspect.Parameter]:
    found = list(inspect.signature(subject.function).parameters.values())
    if subject.owner is not None and not inspect.ismethod(subject.function):
        found = found[1:]
    return [p for p in found if p.kind is not p.VAR_KEYWORD]


def valid(subject: Subject) -> dict[str, Any]:
    """Arguments that the call takes, fresh ones."""
    arguments = OWN.get(subject.name, dict)()
    if subject.owner is not None and not inspect.ismethod(subject.function):
        arguments.setdefault("self", made(subject.owner))
    for p in parameters(subject):
        if p.name in arguments:
            continue
        if p.default is not p.empty:
            arguments[p.name] = p.default
        elif p.name in VALUES:
            arguments[p.name] = VALUES[p.name]()
        else:
            raise LookupError(f"{subject.name} needs a value for {p.name}: add one to VALUES")
    return arguments


def call(subject: Subject, arguments: dict[str, Any]) -> Any:
    """Make the call."""
    positional, named = [arguments[n] for n in ("self",) if n in arguments], {}
    for p in parameters(subject):
        value = arguments[p.name]
        if p.kind is p.KEYWORD_ONLY:
            named[p.name] = value
        elif p.kind is p.VAR_POSITIONAL:
            positional += value if isinstance(value, list) else [value]
        else:
            positional.append(value)
    return subject.function(*positional, **named)


def made(name: str) -> Any:
    """Make an object of a public class."""
    kind = operator.attrgetter(name)(nbbn)
    subject = Subject(name, kind)
    return call(subject, valid(subject))


ALL = subjects()


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Work in a folder with the files that paths name, and leave the process as it was."""
    patch = pytest.MonkeyPatch()
    patch.chdir(tmp_path_factory.mktemp("fuzz"))
    patch.setenv("NBBN_DATA_DIR", "empty")
    os.mkdir("empty")
    np.savez("own.npz", x_train=x(), y_train=labels())
    np.save("images.npy", x())
    Path("labels.idx").write_bytes(b"\0\0\x08\1\0\0\0\2\0\1")
    Path("log.jsonl").write_text('{"kind": "step", "step": 1}\n')
    nbbn.checkpoint.save("saved.safetensors", model(), sgd(model()), batches())
    config = {"config": Config(hidden=(3,)).to_dict(), "shape": (4,), "classes": 2}
    config["dtype"] = "float32"
    nbbn.checkpoint.save("classifier.safetensors", model(), None, batches(), config=config)
    if importlib.util.find_spec("onnx"):
        nbbn.onnx.export(model(), "model.onnx", verify=False)
    threads = numba.get_num_threads()
    yield
    patch.undo()
    pool.keep(2)
    nbbn.threads.limit(threads)


def allowed(error: Exception, subject: Subject) -> bool:
    if isinstance(error, TypeError):
        # A class with other arguments where a function was expected, or too few operands.
        return bool(re.search("keyword|takes no arg|positional arg|takes at most", str(error)))
    if isinstance(error, RuntimeWarning):
        # What numbers come to in a computation is not for a check of arguments to say.
        return traceback.extract_tb(error.__traceback__)[-1].name in {"run", "fill", "_product"}
    return isinstance(error, OSError) and "OSError" in (subject.function.__doc__ or "")


def _too_slow(*_: object) -> None:
    raise TimeoutError(f"the call took longer than {SECONDS} seconds of the processor")


def fault(subject: Subject, arguments: dict[str, Any]) -> BaseException | None:
    """Return what is raised that must not be."""
    before = signal.signal(signal.SIGPROF, _too_slow)
    # Other programs on the machine do not count.
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with warnings.catch_warnings():
            # NumPy's would tell a user nothing; nbbn's own are UserWarnings.
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", ResourceWarning)
            call(subject, arguments)
    except NbbnError:
        pass
    except Exception as error:
        if not allowed(error, subject):
            return error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    return None


@pytest.mark.parametrize("name", ALL)
def test_valid_arguments_are_taken(name):
    with (
        contextlib.suppress(DataError)
        if name.startswith("data.load_")
        else contextlib.nullcontext()
    ):
        call(ALL[name], valid(ALL[name]))


def attempts(count: int, seed: int) -> Iterator[tuple[Subject, dict[str, Any], str]]:
    """Yield calls with a wrong argument or two, in turns for all that is public."""
    draw = random.Random(seed)
    names = list(ALL)
    for turn in range(count):
        if turn % len(names) == 0:
            draw.shuffle(names)
        subject = ALL[names[turn % len(names)]]
        arguments = valid(subject)
        wrong = draw.sample([n for n in arguments if n != "self" and n not in KEPT], k=1)
        for name in wrong:
            arguments[name] = replaced(arguments[name], draw)
        yield subject, arguments, ", ".join(wrong)


def test_wrong_arguments_are_returned_from_or_refused():
    faults = []
    for subject, arguments, wrong in attempts(CALLS, SEED):
        many = isinstance(arguments[wrong], str) and wrong == "dtypes"
        many = many or (isinstance(arguments[wrong], int | np.integer) and arguments[wrong] > 99)
        if wrong in PATIENT and many:
            continue
        described = f"{subject.name}({wrong}={arguments[wrong]!r:.80})"
        error = fault(subject, arguments)
        if error is not None:
            faults.append(f"{described}: {type(error).__name__}: {error}")
    assert not faults, f"{len(faults)} of {CALLS}:\n" + "\n".join(faults)
