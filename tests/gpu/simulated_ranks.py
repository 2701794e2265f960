"""Two ranks on simulated devices train as one process on the CPU: staged, and by a stand-in NCCL.

Run by `test_ranks.py`: ``mpiexec -n 2 python -m tests.gpu.simulated_ranks``.
"""

from __future__ import annotations

import ctypes
import types
import warnings

import numpy as np

from tests.gpu import engine, simulated

engine.install()
simulated.install()

import nbbn  # noqa: E402 - the simulator comes first
from nbbn import distributed  # noqa: E402
from tests.helpers.rank_checks import difference, synchronize, task  # noqa: E402


class Communicator:
    """NCCL's all-reduce with MPI's, on the simulated memory behind a pointer."""

    calls = 0

    def __init__(self, size: int, identity: object, rank: int) -> None:
        assert (size, identity, rank) == (ranks.size, "of rank 0", ranks.rank)

    def allReduce(  # noqa: N802 - CuPy's name
        self, source: int, target: int, count: int, kind: str, op: str, stream: int
    ) -> None:
        assert (source, kind, op, stream) == (target, "float", "sum", 0)
        Communicator.calls += 1
        memory = (ctypes.c_float * count).from_address(target)
        ranks.sum(np.ctypeslib.as_array(memory))


def trained(device: str, together: distributed.Ranks | None) -> nbbn.Module:
    x, y = task(44)
    model = nbbn.mlp((12, 8, 3), rng=0)
    model = (synchronize(model) if together else model).to(device)
    batches = nbbn.data.Batches(x, y, 20, rng=5, ranks=together, device=device)
    optimizer = nbbn.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        nbbn.train.fit(model, batches, optimizer, epochs=1, ranks=together, test=(x, y))
    assert [str(w.message).partition(": ")[2][:29] for w in told] == (
        ["ranks speak through the host,"] if together else []
    )
    return model.to("cpu")


if __name__ == "__main__":
    ranks = distributed.start()
    expected = trained("cpu", None)
    assert difference(expected, trained("cuda", ranks)) < 1e-6
    assert Communicator.calls == 0
    simulated.cuda.nccl = types.SimpleNamespace(
        available=True, NCCL_FLOAT32="float", NCCL_FLOAT64="double", NCCL_SUM="sum",
        NcclCommunicator=Communicator,
        get_unique_id=lambda: f"of rank {ranks.rank}",
    )  # fmt: skip
    simulated.cuda.get_current_stream = lambda: types.SimpleNamespace(ptr=0)
    del ranks._device_adder
    assert difference(expected, trained("cuda", ranks)) < 1e-6
    assert Communicator.calls == 3
    print("done", flush=True)
