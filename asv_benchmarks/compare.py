"""Time nbbn beside NumPy, PyTorch and JAX, and beside what the machine allows.

Each contender has a process of its own (worker.py); they take turns, round by round, so that a slow
moment of the machine hits all alike. Quote the ratios: microseconds are this machine's.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report
from benchmarks.common import CELLS, CNNS, NETS, NORMS, SHAPES, cpu_count

HERE = Path(__file__).resolve().parent
KINDS = ("forward", "inference", "backward")
# Lets the OpenMP threads of the last contender stop spinning before the next one's turn.
PAUSE_SECONDS = 0.1

# Name -> module in peers/, options for its bn() and, where it has one, its cnn(), for its step()
# and recurrent(); None: does not take part.
CONTENDERS = {
    "nbbn": ("with_nbbn", {}, {}),
    "nbbn out=": ("with_nbbn", {"out": True}, None),
    "NumPy": ("with_numpy", {}, {}),
    "PyTorch": ("with_torch", {}, {}),
    "torch.compile": ("with_torch", {"compiled": True}, {"compiled": True}),
    "JAX": ("with_jax", {}, {}),
}
LIMITS = {
    report.COPY: ("limits", {}, None),
    report.COPY_ALL: ("limits", {"threads": cpu_count()}, None),
    report.PRODUCTS: ("limits", None, {}),
    report.TILES: ("limits", None, {"tiles": True}),
}
# Who has norms(); the others have no such operators, or would be timed on their parts.
WITH_NORMS = ("nbbn", "nbbn out=", "PyTorch", report.COPY, report.COPY_ALL)


def environment():
    """What every process gets: all cores, and OpenBLAS free to choose its kernels."""
    removed = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OMP_WAIT_POLICY")
    env = {key: value for key, value in os.environ.items() if key not in removed}
    for library in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
        env[f"{library}_NUM_THREADS"] = str(cpu_count())
    return env


class Worker:
    """A contender's process."""

    def __init__(self, name, module):
        self.name = name
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        self.process = subprocess.Popen(
            [sys.executable, "worker.py", module],
            cwd=HERE,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            return {"error": f"the process ended with status {self.process.wait()}"}
        return json.loads(line)

    def ask(self, **request):
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer tells
        return self.answer()

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()


def say(text):
    print(text, file=sys.stderr, flush=True)


def start_workers(names, what, versions):
    """Start those that take part in `what` and can be imported."""
    workers = []
    known = CONTENDERS | LIMITS
    which = 2 if what in ("step", "recurrent") else 1
    for name in [*names, *LIMITS]:
        module, options = known[name][0], known[name][which]
        if options is None or (what == "norms" and name not in WITH_NORMS):
            continue
        worker = Worker(name, module)
        worker.options = options
        answer = worker.answer()
        if "error" in answer:
            say(f"{name} is left out: {answer['error']}")
            worker.close()
            continue
        versions.update(answer["versions"])
        workers.append(worker)
    return workers


@contextlib.contextmanager
def spinning(count):
    """Keep `count` processes busy with nothing beside what runs inside."""
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(PAUSE_SECONDS)
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def run_cases(what, cases, names, rounds, samples, busy, versions):
    """Time every case; `cases` maps a title to the arguments of the peers' function."""
    workers = start_workers(names, what, versions)
    results = []
    try:
        for title, case in cases:
            say(f"{what}: {' '.join(title.values())}")
            taking_part, errors = [], {}
            for worker in workers:
                answer = worker.ask(do="prepare", what=what, case=case | worker.options)
                if "error" in answer:
                    errors[worker.name] = answer["error"]
                    say(f"  {worker.name} is left out: {answer['error']}")
                else:
                    taking_part.append(worker)
            times = time_rounds(taking_part, rounds, samples, errors)
            crowded = {}
            if busy:
                with spinning(busy):
                    crowded = time_rounds(taking_part, rounds, samples, errors)
            # Of a limit the best round counts: what else the machine did sets no limit.
            seconds = {
                name: (min if name in LIMITS else statistics.median)(many)
                for name, many in times.items()
                if many
            }
            found = {"seconds": seconds, "rounds": times, "busy": crowded, "errors": errors}
            if what == "cnn":
                found["memory"] = {w.name: w.ask(do="memory")["bytes"] for w in taking_part}
            results.append(title | found)
    finally:
        for worker in workers:
            worker.close()
    return results


def time_rounds(workers, rounds, samples, errors):
    """Seconds of each round, by contender."""
    times = {worker.name: [] for worker in workers}
    for turn in range(rounds):
        for worker in rotated(workers, turn):
            time.sleep(PAUSE_SECONDS)
            answer = worker.ask(do="time", samples=samples)
            if "error" in answer:
                errors[worker.name] = answer["error"]
            else:
                times[worker.name].append(answer["seconds"])
    return times


def rotated(items, by):
    by %= max(len(items), 1)
    return items[by:] + items[:by]


def parse_shape(name):
    """Shape and channel axis of a name such as 128x256 or "32x56x56x64 last"."""
    if name in SHAPES:
        return SHAPES[name]
    sizes, _, last = name.partition(" ")
    shape = tuple(int(n) for n in sizes.split("x"))
    if last not in ("", "last") or not 2 <= len(shape) <= 5 or min(shape) < 1:
        raise ValueError(name)
    return shape, -1 if last else 1


def cases_of(what, arguments):
    """What is timed: for each case a title, and the arguments of the peers' function."""
    if what == "bn":
        for kind, name in itertools.product(KINDS, arguments.shapes):
            shape, axis = parse_shape(name)
            yield {"kind": kind, "shape": name}, {"kind": kind, "shape": shape, "axis": axis}
    elif what == "norms":
        for kind, name in itertools.product(KINDS, arguments.norms):
            norm, shape, groups = NORMS[name]
            case = {"kind": kind, "norm": norm, "shape": shape, "groups": groups}
            yield {"kind": kind, "norm": name}, case
    elif what == "step":
        for name in arguments.nets:
            hidden, batch = NETS[name]
            yield {"net": name}, {"sizes": (784, *hidden, 10), "batch": batch}
    elif what == "cnn":
        # The last one alone: what a smaller one before it took would count as its own.
        name = list(CNNS)[0 if arguments.quick else -1]
        filters, batch = CNNS[name]
        yield {"net": name}, {"filters": filters, "batch": batch}
    else:
        for cell in CELLS[: 1 if arguments.quick else None]:
            yield {"net": cell}, {"cell": cell}


def run_processes(rounds, epochs):
    """Whole processes from the shell to a trained net: nbbn's command and PyTorch's script."""
    recipe = ["--epochs", str(epochs)]
    commands = {
        "nbbn": [sys.executable, "-m", "nbbn", "train", *recipe, "--quiet"],
        "PyTorch": [sys.executable, str(HERE / "peers" / "torch_mnist.py"), *recipe],
    }
    if importlib.util.find_spec("torch") is None:
        say("PyTorch is left out: it is not installed")
        del commands["PyTorch"]
    runs = {}
    for command in commands.values():
        run_once(command)  # fills the kernel cache and the system's file cache
    for turn in range(rounds):
        for name in rotated(list(commands), turn):
            say(f"process: {name}, run {turn + 1}")
            runs.setdefault(name, []).append(run_once([*commands[name], "--seed", str(turn)]))
    say("process: nbbn, empty kernel cache")
    with tempfile.TemporaryDirectory() as empty:
        runs["nbbn, empty kernel cache"] = [run_once(commands["nbbn"], NBBN_CACHE_DIR=empty)]
    return [
        {
            "process": name,
            "seconds": statistics.median(run["wall"] for run in many),
            "test_accuracy": statistics.median(run["test_accuracy"] for run in many),
            "epochs": statistics.median(run["epochs"] for run in many),
            "runs": many,
        }
        for name, many in runs.items()
    ]


def run_once(command, **more):
    start = time.perf_counter()
    done = subprocess.run(
        command, env=environment() | more, stdout=subprocess.PIPE, text=True, check=False
    )
    wall = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with status {done.returncode}")
    return {"wall": wall, **json.loads(done.stdout.splitlines()[-1])}


TABLES = "bn", "norms", "step", "cnn", "recurrent", "process"


def cpu_name():
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def arguments_of(argv):
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.partition("\n")[0])
    parser.add_argument("--what", choices=(*TABLES, "all"), default="all")
    parser.add_argument("--shapes", help=f"comma-separated, of {', '.join(SHAPES)} or others")
    parser.add_argument("--norms", help=f"comma-separated, of {', '.join(NORMS)}")
    parser.add_argument("--nets", help=f"comma-separated, of {', '.join(NETS)}")
    parser.add_argument("--contenders", help=f"comma-separated, of {', '.join(CONTENDERS)}")
    parser.add_argument("--rounds", type=int, help="turns of each contender (default 9)")
    parser.add_argument("--busy", type=int, default=0, metavar="N",
                        help="time all again beside N processes that spin")  # fmt: skip
    parser.add_argument("--epochs", type=int, default=2, help="of a whole process (default 2)")
    parser.add_argument("--quick", action="store_true", help="smoke run: few cases, 2 rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it (needs matplotlib)")
    arguments = parser.parse_args(argv)
    few = 2 if arguments.quick else None
    arguments.shapes = arguments.shapes.split(",") if arguments.shapes else list(SHAPES)[:few]
    arguments.norms = arguments.norms.split(",") if arguments.norms else list(NORMS)[:few]
    arguments.nets = arguments.nets.split(",") if arguments.nets else list(NETS)[:few]
    if arguments.contenders:
        arguments.contenders = arguments.contenders.split(",")
    else:
        slow = {"torch.compile"} if arguments.quick else set()
        arguments.contenders = [name for name in CONTENDERS if name not in slow]
    arguments.rounds = arguments.rounds or few or 9
    try:
        for name in arguments.shapes:
            parse_shape(name)
    except ValueError:
        parser.error(f"--shapes takes names such as 128x256, got {name!r}")
    for flag, known in (("contenders", CONTENDERS), ("nets", NETS), ("norms", NORMS)):
        if unknown := set(getattr(arguments, flag)) - set(known):
            parser.error(f"--{flag} knows {', '.join(known)}; got {', '.join(sorted(unknown))}")
    if arguments.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install 'nbbn[plot]'")
    return arguments


def main(argv=None):
    arguments = arguments_of(argv)
    samples = 1 if arguments.quick else 5
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > 0.5:
        say(f"the machine is busy (load {load:.1f}): threads wait for each other, quote nothing")
    versions = {}
    wanted = TABLES if arguments.what == "all" else (arguments.what,)
    result = {
        "command": shlex.join(["python", "asv_benchmarks/compare.py", *(argv or sys.argv[1:])]),
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu_name(),
        "cores": cpu_count(),
        "versions": {"python": platform.python_version()},
        "rounds": arguments.rounds,
        "busy": arguments.busy,
    }
    common = (arguments.contenders, arguments.rounds, samples, arguments.busy, versions)
    for what in wanted:
        if what == "process":
            result[what] = run_processes(min(arguments.rounds, 5), arguments.epochs)
        else:
            result[what] = run_cases(what, cases_of(what, arguments), *common)
    result["versions"] |= versions
    print(report.markdown(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.plot:
        report.plot(result, arguments.plot)
    timed = [case["seconds"] for what in TABLES[:-1] for case in result.get(what, ())]
    # A smoke run must notice when nbbn itself could not be timed.
    complete = all(math.isfinite(s.get("nbbn", math.nan)) for s in timed)
    return 0 if complete or "nbbn" not in arguments.contenders else 1


if __name__ == "__main__":
    sys.exit(main())
