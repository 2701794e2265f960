"""Every kernel compiled to machine code, without a device, and what must hold of the result.

Narrow kernels hold no float64 instruction, nothing lives in local memory, no register is spilled,
and whole lanes move in one access.
"""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import pytest
from numba.cuda import dispatcher

from nbbn.kernels import _cuda
from tests.gpu.every_launch import every_launch
from tests.gpu.ptx_engine import compile_kernel

LAUNCHES = every_launch(pytest.MonkeyPatch)
# Most registers per thread; with 256 threads a block, 128 leave room for two blocks on each
# multiprocessor. Lanes of eight need more.
CEILINGS = {
    "_train": 128,
    "_backward": 104,
    "_normalize": 72,
    "_input_gradient": 80,
    "_forward_runs": 96,
    "_backward_runs": 88,
    "_channel_gradients": 96,
    "_column_sums": 72,
    "_cross_entropy_backward": 72,
    "_max_pool_backward": 72,
    "_spread": 72,
    "_avg_pool": 72,
    "gelu_tanh_backward": 72,
    "_forward": 80,
    "_image_gradient": 88,
}
CEILING = 64
# Kernels without an access of whole lanes in one direction.
NO_VECTOR_LOAD = {"_dropout_mask", "_update_running", "_gather_targets"}
NO_VECTOR_STORE = {"_column_sums", "_update_running", "_gather_targets"}


@pytest.fixture(autouse=True, scope="module")
def no_device():
    """Compiling a kernel that calls device functions asks the current device for its kind."""
    with pytest.MonkeyPatch.context() as patch:
        stand_in = SimpleNamespace(compute_capability=(9, 0))
        patch.setattr(dispatcher, "get_current_device", lambda: stand_in)
        yield


def test_all_kernels_are_there():
    compiled = {variant.name for variant, _ in LAUNCHES.values()}
    modules = [module for name, module in sys.modules.items() if name.startswith("nbbn.kernels.")]
    for module in modules:
        for name, value in vars(module).items():
            if isinstance(value, _cuda.Kernel | _cuda.Elementwise):
                assert f"{module.__name__.rpartition('.')[2]}.{name}" in compiled
    assert len(LAUNCHES) > 150


@pytest.mark.parametrize("architecture", [(8, 0), (9, 0)], ids=["sm_80", "sm_90"])
@pytest.mark.parametrize("name", LAUNCHES)
def test_machine_code(name, architecture):
    variant, kinds = LAUNCHES[name]
    code = compile_kernel(variant, kinds, architecture)
    cubin, report = _cuda.link(code, architecture, "-verbose", "-Xptxas=-v")
    ptx, kernel = code.decode(), variant.name.rpartition(".")[2]
    assert cubin[:4] == b"\x7fELF"

    # What runs in the interpreter for sm_90 is the code for sm_80 too: names and target differ.
    names, text = (
        r"_ZN\w+|_cudapy_smem_\d+|sm_\d\d",
        compile_kernel(variant, kinds, (9, 0)).decode(),
    )
    assert re.sub(names, "", ptx) == re.sub(names, "", text)

    assert ".local" not in ptx
    assert "call" not in ptx
    if "float64" not in str(kinds):
        assert ".f64" not in ptx
    assert re.search(r"\b0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", report)
    registers = int(re.search(r"Used (\d+) registers", report)[1])
    assert registers <= CEILINGS.get(kernel, CEILING)

    whole = isinstance(variant.constants[:1] and variant.constants[0], int)
    if whole and variant.constants[0] > 1:
        loads = re.search(r"ld\.global(\.nc)?\.v\d", ptx)
        stores = re.search(r"st\.global\.v\d", ptx)
        assert bool(loads) or kernel in NO_VECTOR_LOAD
        assert bool(stores) or kernel in NO_VECTOR_STORE

    # The arguments that a launch packs are those that the kernel reads.
    header = ptx.split(".entry", 1)[1].split(")", 1)[0]
    assert _cuda.entry_name(code).decode() in header
    names = {"u64": "Qq", "f32": "f", "f64": "d"}
    parameters = re.findall(r"\.param \.(\w+) ", header)
    fields = _cuda._format(kinds)
    assert len(parameters) == len(fields)
    assert all(field in names[kind] for kind, field in zip(parameters, fields, strict=True))
