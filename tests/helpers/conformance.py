"""ONNX's own tests of the operators that nbbn computes: which there are, and running them.

Run it to write docs/conformance.md: python -m tests.helpers.conformance
"""

from __future__ import annotations

import functools
import os
import re
import warnings
from pathlib import Path

import onnx
from onnx.backend.test.loader import load_model_tests

from nbbn.export.onnx.graph import Node
from tests.helpers.onnx_backend import Backend
from tests.helpers.onnx_operators import OPERATORS, pads

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"

# The operators whose tests must pass. Others, such as Transpose, only help to run these.
LISTED = (
    "LRN", "Add", "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "Dropout",
    "GRU", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "GroupNormalization",
    "InstanceNormalization", "LSTM", "LayerNormalization", "LeakyRelu", "LogSoftmax", "MatMul",
    "MaxPool", "NegativeLogLikelihoodLoss", "RMSNormalization", "RNN", "Relu", "Sigmoid", "Softmax",
    "SoftmaxCrossEntropyLoss", "Swish", "Tanh",
)  # fmt: skip
KINDS = {
    "node": "OnnxBackendNodeModelTest",
    "pytorch-converted": "OnnxBackendPyTorchConvertedModelTest",
    "pytorch-operator": "OnnxBackendPyTorchOperatorModelTest",
    "simple": "OnnxBackendSimpleModelTest",
}
EXPANDED = "the case above again, with the operator written as others (its function body)"
VOLUMES = "convolves volumes, three-dimensional images"
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
RANDOM = "drops at random in training: which elements depends on the generator"

_HEAD = """# ONNX conformance

ONNX {version}'s tests of the operators of nbbn's layers and losses run on a backend in the tests:
every case of `onnx.backend.test` (node tests, models that PyTorch converted or wrote,
simple models) in which one of them occurs. All run in the test suite, which fails if one of them
does, or if this page does not list what there is.

```bash
python -m tests.helpers.conformance
```

**{passed} cases run and pass**, with the tolerances of the ONNX tests; {excluded} are excluded.

## Run and passed

| operators | cases | names |
|---|---|---|
{rows}

## Excluded

| reason | cases | names |
|---|---|---|
{reasons}

Each case also exists for the device CUDA, which the backend does not support. The kind `real`,
networks to download, has convolutional ones only.
"""


def _model(case) -> onnx.ModelProto:
    if case.model is not None:
        return case.model
    return onnx.load(os.path.join(case.model_dir, "model.onnx"))


def _otherwise(model: onnx.ModelProto) -> str | None:
    """Why the backend refuses a model."""
    return _pooled_otherwise(model) or _recurs_otherwise(model)


def _recurs_otherwise(model: onnx.ModelProto) -> str | None:
    """Why a model has cells that nbbn does not compute."""
    for node in map(Node, model.graph.node):
        if node.op == "GRU" and not node.attribute("linear_before_reset", 0):
            return "resets the state before the product, not the product"
        if node.op == "LSTM" and node.input(7):
            return "has gates that look at the cell state (peepholes)"
    return None


def _pooled_otherwise(model: onnx.ModelProto) -> str | None:
    """Why a model pools in a way that the backend refuses."""
    for node in map(Node, model.graph.node):
        size = node.attribute("kernel_shape", None)
        if node.op not in ("MaxPool", "AveragePool") or size is None:
            continue
        kind = model.graph.input[0].type.tensor_type
        if len(size) != 2:
            return "pools images of one or three dimensions"
        if len(node.outputs) > 1:
            return "asks for the indices of maxima in the whole array"
        if kind.elem_type not in FLOATS:
            return "pools integers"
        around = pads(node, tuple(d.dim_value for d in kind.shape.dim))
        reach = [
            d * (k - 1) + 1 for d, k in zip(node.attribute("dilations", (1, 1)), size, strict=True)
        ]
        if any(max(both) > n // 2 for both, n in zip(around, reach, strict=True)):
            return "pads with more than half a window"
    return None


@functools.cache
def cases() -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """Return name -> (kind, operators) of the cases to run, and name -> reason of the excluded."""
    run: dict[str, tuple[str, str]] = {}
    excluded: dict[str, str] = {}
    with warnings.catch_warnings():
        # Making the data of unrelated cases overflows on purpose.
        warnings.simplefilter("ignore")
        found = [(kind, case) for kind in KINDS for case in load_model_tests(kind=kind)]
    used = {
        case.name: {node.op_type for node in _model(case).graph.node}
        for kind, case in found
        if kind == "node" or case.model_dir
    }
    otherwise = {case.name: _otherwise(_model(case)) for _, case in found if case.name in used}
    for kind, case in found:
        operators = used.get(case.name, set())
        whole = re.sub(r"_expanded(_ver\d+)?$", "", case.name)
        if not used.get(whole, operators) & set(LISTED):
            continue
        foreign = sorted(operators - set(OPERATORS) - {"Constant"})
        if whole != case.name:
            excluded[case.name] = EXPANDED
        elif foreign:
            excluded[case.name] = f"also needs {', '.join(foreign)}"
        elif re.search(r"Conv3d|convtranspose_3d", case.name):
            excluded[case.name] = VOLUMES
        elif reason := otherwise[case.name]:
            excluded[case.name] = reason
        elif re.match(r"test_training_dropout(_default)?(_mask)?$", case.name):
            excluded[case.name] = RANDOM
        else:
            shown = [op for op in LISTED if op in operators]
            run[case.name] = kind, ", ".join(shown)
    return run, excluded


@functools.cache
def _suites() -> dict[str, type]:
    from onnx.backend.test import BackendTest

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return BackendTest(Backend, __name__).test_cases


def check(name: str) -> None:
    """Run a case; raises what it raises, a skip included."""
    kind, _ = cases()[0][name]
    _suites()[KINDS[kind]](f"{name}_cpu").debug()


def _table(groups: dict[str, list[str]]) -> str:
    return "\n".join(
        f"| {label} | {len(names)} | {', '.join(f'`{name}`' for name in sorted(names))} |"
        for label, names in groups.items()
    )


def _place(item: tuple[str, tuple[str, str]]) -> int:
    return LISTED.index(item[1][1].split(",")[0])


def page() -> str:
    """Return the page that lists all cases."""
    run, excluded = cases()
    rows: dict[str, list[str]] = {}
    for name, (kind, operators) in sorted(run.items(), key=_place):
        source = "" if kind == "node" else " (model)"
        rows.setdefault(operators + source, []).append(name)
    reasons: dict[str, list[str]] = {}
    for name, reason in sorted(excluded.items(), key=lambda item: item[1]):
        reasons.setdefault(reason, []).append(name)
    return _HEAD.format(
        version=onnx.__version__,
        passed=len(run),
        excluded=len(excluded),
        rows=_table(rows),
        reasons=_table(reasons),
    )


if __name__ == "__main__":
    for case_name in cases()[0]:
        check(case_name)
    PAGE.write_text(page())
    print(page().split("\n## ")[0])
