"""Data parallelism: strong and weak scaling on this machine's cores, and a model of 1,024 ranks.

    python asv_benchmarks/scaling.py            # under four minutes, on an idle machine
    python asv_benchmarks/scaling.py --quick    # does everything run?

It starts itself under `mpiexec` with 1, 2, 4, ... ranks, up to the number of cores, one thread
each, measures collectives and training steps as nbbn makes them, fits the model's terms to them,
and prints tables in Markdown.

The model. A step of p ranks with b examples each takes

    T = compute(b) + gradients(p) + small(p),  compute(b) = fixed + b * each,

where `small` has one gather for the loss, and for each BatchNorm a gather and a sum. With latency l
and bandwidth w, a sum of n bytes takes min(k * (l + n / w), 2 * k * l + 2 * (1 - 1 / p) * n / w),
k = log2(p), which are recursive doubling and Rabenseifner's algorithm, and a gather of n bytes from
each k * l + (p - 1) * n / w. `l` and `w` are fitted to sums of two ranks. Where sums overlap with
the backward pass, two thirds of the computation, only what exceeds it counts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

# Bytes that are summed, examples of a step per rank, and of all ranks in strong scaling.
SIZES = [32, 256, 2048, 16384, 131072, 1 << 20, 4 << 20, 16 << 20]
LOCAL = {"mlp": [8, 32, 128, 512], "cnn": [8, 32, 128]}
STRONG = {"mlp": [128, 1024], "cnn": [128]}
# A network between hosts, assumed: 2 us and 100 Gbit/s.
NETWORK = 2e-6, 12.5e9
RANKS = [2**k for k in range(1, 11)]


# ------------------------------------------------------------------------------------ one rank


def time_of(function: Any, seconds: float, ranks: Any) -> float:
    """Lower decile of at least five runs, of which all ranks make the same number.

    One rank, on one thread, waits for nobody: its CPU time counts, which other programs do not
    change.
    """
    clock = time.perf_counter if ranks.size > 1 else time.process_time
    function()
    function()
    begin = time.perf_counter()
    function()
    once = max(ranks.exchange(time.perf_counter() - begin))
    times = []
    for _ in range(max(5, min(2000, int(seconds / max(once, 1e-6))))):
        begin = clock()
        function()
        times.append(clock() - begin)
    return max(ranks.exchange(float(np.quantile(times, 0.1))))


def make(kind: str, sync: bool = True) -> Any:
    import nbbn

    if kind == "cnn":
        model = nbbn.cnn((28, 28), 10, rng=0)
    else:
        model = nbbn.mlp((784, 256, 128, 10) if kind == "mlp" else (784, 2048, 2048, 10), rng=0)
    for layer in model.modules():
        if isinstance(layer, nbbn.BatchNorm):
            layer.sync = sync
    return model


def step_time(kind: str, rows: int, seconds: float, ranks: Any, sync: bool = True) -> float:
    """Time of a recorded step with `rows` examples on this rank."""
    import nbbn

    rng = np.random.default_rng(ranks.rank)
    x, y = rng.random((rows, 784), np.float32), rng.integers(0, 10, rows)
    model = make(kind, sync)
    optimizer = nbbn.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    step = nbbn.train.record_step(model, nbbn.losses.cross_entropy, optimizer, ranks=ranks)
    return time_of(lambda: step(x, y), seconds, ranks)


def measure(quick: bool) -> dict[str, Any]:
    """Measure all that this number of ranks can."""
    from nbbn import distributed, threads

    ranks = distributed.start(timeout=120)
    threads.limit(1)
    seconds = 0.02 if quick else 1.0
    found: dict[str, Any] = {"sums": {}, "local": {}, "strong": {}, "without": {}, "buckets": {}}
    for size in SIZES[: 3 if quick else None]:
        array = np.zeros(size // 4, np.float32)
        found["sums"][size] = time_of(lambda a=array: ranks.sum(a), seconds, ranks)
    for kind, sizes in LOCAL.items():
        for rows in sizes[: 2 if quick else None]:
            found["local"][f"{kind} {rows}"] = step_time(kind, rows, seconds, ranks)
        for rows in STRONG[kind]:
            own = ranks.part(rows)
            found["strong"][f"{kind} {rows}"] = step_time(
                kind, own.stop - own.start, seconds, ranks
            )
        found["without"][kind] = step_time(kind, 128, seconds, ranks, sync=False)
    for name, bucket in (("one sum", 1 << 30), ("buckets", 1 << 22)):
        ranks.bucket = bucket
        found["buckets"][name] = step_time("wide mlp", 128, 2 * seconds, ranks)
    return found if ranks.rank == 0 else {}


# ------------------------------------------------------------------------------------ the model


def fit_line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Fit time = a + b * n so that relative errors are small."""
    n, t = np.array(points).T
    a, b = np.linalg.lstsq(np.stack([1 / t, n / t], 1), np.ones(len(t)), rcond=None)[0]
    return max(a, 0.0), max(b, 1e-15)


def sum_time(p: int, n: float, latency: float, width: float) -> float:
    k = math.log2(p)
    doubling = k * (latency + n / width)
    return min(doubling, 2 * k * latency + 2 * (1 - 1 / p) * n / width)


def gather_time(p: int, n: float, latency: float, width: float) -> float:
    return math.log2(p) * latency + (p - 1) * n / width


class Costs:
    """What the steps of a model exchange, and how long they compute."""

    def __init__(self, kind: str, local: dict[str, float]) -> None:
        import nbbn

        model = make(kind)
        norms = [m for m in model.modules() if isinstance(m, nbbn.BatchNorm)]
        self.channels = [m.running_mean.size for m in norms]
        self.bytes = 4 * sum(p.size for p in model.parameters())
        points = [(int(k.split()[1]), t) for k, t in local.items() if k.split()[0] == kind]
        self.fixed, self.each = fit_line(points)

    def small(self, p: int, latency: float, width: float) -> float:
        total = gather_time(p, 32, latency, width)
        for c in self.channels:
            total += gather_time(p, 16 * (c + 1), latency, width)
            total += sum_time(p, 16 * c, latency, width)
        return total

    def compute(self, rows: float) -> float:
        return self.fixed + rows * self.each

    def step(self, p: int, rows: float, latency: float, width: float, overlap: bool) -> float:
        compute = self.compute(rows)
        gradients = sum_time(p, self.bytes, latency, width)
        hidden = min(gradients, compute * 2 / 3) if overlap else 0.0
        return compute + gradients - hidden + self.small(p, latency, width)

    def least_rows(self, p: int, latency: float, width: float, overlap: bool) -> int:
        """Fewest examples a rank at which half of the time is computation."""
        rows = 1
        while self.compute(rows) < self.step(p, rows, latency, width, overlap) / 2:
            rows = math.ceil(rows * 1.02)
        return rows


# ------------------------------------------------------------------------------------ tables


def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    print(f"\n**{title}**\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def us(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f}"


def report(found: dict[int, dict[str, Any]]) -> None:
    counts = sorted(found)
    heads = [f"{p} rank{'s' if p > 1 else ''}" for p in counts]
    several = [p for p in counts if p > 1]
    table(
        "Sums over the ranks, us", ["bytes", *(f"{p} ranks" for p in several)],
        [[f"{int(n):,}", *(us(found[p]["sums"][n]) for p in several)] for n in found[2]["sums"]],
    )  # fmt: skip
    one = found[1]["strong"]
    table(
        "Strong scaling: a step, us, and the speed-up", ["model, batch of all", *heads],
        [[k, *(f"{us(found[p]['strong'][k])} ({one[k] / found[p]['strong'][k]:.2f}x)"
               for p in counts)] for k in one],
    )  # fmt: skip
    one = found[1]["local"]
    table(
        "Weak scaling: a step, us, and the efficiency", ["model, batch of each rank", *heads],
        [[k, *(f"{us(found[p]['local'][k])} ({one[k] / found[p]['local'][k]:.0%})"
               for p in counts)] for k in one],
    )  # fmt: skip
    table(
        "A step with 128 examples a rank, us", ["", *heads],
        [
            *([f"{k}, statistics of each rank", *(us(found[p]["without"][k]) for p in counts)]
              for k in LOCAL),
            *([f"mlp 2048-2048, {k}", *(us(found[p]["buckets"][k]) for p in counts)]
              for k in found[1]["buckets"]),
        ],
    )  # fmt: skip
    points = [(float(n), t) for n, t in found[2]["sums"].items()]
    latency, per_byte = fit_line(points)
    here = latency, 1 / per_byte
    print(f"\nFitted here: latency {latency * 1e6:.1f} us, bandwidth {here[1] / 1e9:.2f} GB/s.")
    print(f"Assumed of a network: {NETWORK[0] * 1e6:g} us, {NETWORK[1] / 1e9:g} GB/s.")
    for kind in LOCAL:
        cost = Costs(kind, found[1]["local"])
        print(f"\n{kind}: {cost.bytes:,} bytes of gradients, compute {us(cost.fixed)} us "
              f"+ {cost.each * 1e6:.2f} us an example.")  # fmt: skip
        checks = [
            f"{k.split()[1]} a rank: model {us(cost.step(2, int(k.split()[1]), *here, False))}, "
            f"measured {us(t)} us"
            for k, t in found[2]["local"].items()
            if k.split()[0] == kind
        ]
        print(f"Two ranks, {'; '.join(checks)}.")
        table(
            f"Model of the {kind}: 128 examples a rank, and where half of the time is computation",
            ["ranks", "step here's terms, us", "step, network, us", "efficiency",
             "least batch a rank", "least batch of all"],
            [[f"{p:,}", us(cost.step(p, 128, *here, False)), us(cost.step(p, 128, *NETWORK, False)),
              f"{cost.compute(128) / cost.step(p, 128, *NETWORK, False):.0%}",
              f"{(least := cost.least_rows(p, *NETWORK, False)):,}", f"{p * least:,}"]
             for p in RANKS],
        )  # fmt: skip
        hidden = cost.step(1024, 128, *NETWORK, True)
        print(f"\nWith overlap, 1,024 ranks: {us(hidden)} us a step.")
        rows = []
        for batch in (128, 1024, 8192, 65536):
            times = {p: cost.step(p, batch / p, *NETWORK, False) for p in RANKS if p <= batch}
            best = min(times, key=lambda p: times[p])
            rows.append([f"{batch:,}", f"{best:,}", f"{cost.compute(batch) / times[best]:.0f}x"])
        head = ["batch of all", "ranks beyond which steps are slower", "speed-up there"]
        table(f"Strong scaling of the {kind} in the model, network", head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--ranks", type=int, help="most ranks [the cores]")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        found = measure(arguments.quick)
        if found:
            arguments.measure.write_text(json.dumps(found))
        return
    beside = str(Path(sys.executable).parent)
    mpiexec = shutil.which("mpiexec", path=beside) or shutil.which("mpiexec")
    if mpiexec is None:
        raise SystemExit("there is no mpiexec: pip install 'nbbn[mpi]'")
    most = arguments.ranks or max(2, len(os.sched_getaffinity(0)))
    counts, results = [2**k for k in range(int(math.log2(most)) + 1)], {}
    for count in counts:
        target = Path(f".scaling-{os.getpid()}.json").resolve()
        command = [mpiexec, "-n", str(count), sys.executable, __file__, "--measure", str(target)]
        try:
            subprocess.run(
                [*command, *(["--quick"] if arguments.quick else [])],
                env={**os.environ, "NUMBA_NUM_THREADS": "1"}, check=True,
            )  # fmt: skip
            results[count] = json.loads(target.read_text())
        finally:
            target.unlink(missing_ok=True)
    report(results)


if __name__ == "__main__":
    main()
