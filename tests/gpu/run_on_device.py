"""Everything that only a real CUDA device can show, in one run: one JSON, and a table of it.

    python tests/gpu/run_on_device.py --out device.json

Each section runs in a process of its own with a limit of time: one that fails, hangs or dies leaves
its error and what it had measured in the JSON, and the rest go on. `--only` and `--skip` choose
sections, `--simulate` tries the script itself, in Numba's simulator and with tiny arrays. The
status is 1 where a section failed; targets that were missed are in the table alone.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.gpu.device_targets import Skipped, show, targets  # noqa: E402

PACKAGES = (
    "numpy", "numba", "numba-cuda", "cuda-bindings", "cuda-core", "cuda-toolkit",
    "cupy-cuda12x", "cupy-cuda13x", "nvidia-cublas", "nvidia-cublas-cu12", "nvidia-nvjitlink",
    "nvidia-nvjitlink-cu12", "nvidia-nvvm", "torch", "ml-dtypes",
)  # fmt: skip
# The most seconds that each may take; in this order: first what everything rests on and what is
# cheap, last what takes long. Kernels are compiled in the first.
SECTIONS = {
    "versions": 60, "correctness": 240, "repeatability": 90, "graph": 90, "step": 120,
    "bandwidth": 120, "torch": 150, "mnist": 120, "huge": 120, "blocks": 90,
    "memcheck": 240, "racecheck": 240,
}  # fmt: skip
SANITIZERS = ("memcheck", "racecheck")


def main() -> int:
    options = parse()
    if options.simulate:
        os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
    if options.worker:
        work(options)
        return 0
    deadline = time.monotonic() + options.budget
    chosen = [name for name in options.only or SECTIONS if name not in options.skip]
    options.seed = time.time_ns() % 2**32 if options.seed is None else options.seed
    report: dict[str, Any] = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(["python", Path(__file__).name, *sys.argv[1:]]),
        "seed": options.seed,
        "simulated": options.simulate,
        "sections": {},
    }
    found = report["sections"]
    for name in chosen:
        found[name] = run(name, options, deadline)
        report["targets"] = [target._asdict() for target in targets(found)]
        write(options.out, report)
        show(name, found[name])
        sys.stdout.flush()
    print("\ntargets")
    for target in targets(found):
        print(f"  {target.line}")
    failed = [name for name in chosen if found[name]["status"] == "failed"]
    print(
        f"\n{len(chosen) - len(failed)} of {len(chosen)} sections without an error; {options.out}"
    )
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("device.json"), help="where the JSON goes")
    add("--only", type=sections, default=[], metavar="A,B", help=f"of {', '.join(SECTIONS)}")
    add("--skip", type=sections, default=[], metavar="A,B", help="sections to leave out")
    add("--budget", type=float, default=540.0, metavar="S", help="seconds for all of it [540]")
    add("--seed", type=int, help="of the data; fresh by default, and in the JSON")
    add("--data-dir", help="folder of the four MNIST files")
    add("--simulate", action="store_true", help="try the script without a device")
    add("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def sections(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(SECTIONS):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
    return names


def write(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(value, indent=1, default=str) + "\n")
    draft.replace(path)


# ---------------------------------------------------------------- the process that reports


def run(name: str, options: argparse.Namespace, deadline: float) -> dict[str, Any]:
    """Run a section in a process of its own; whatever happens is what it returns."""
    start = time.monotonic()
    seconds = min(SECTIONS[name], deadline - start)
    if seconds <= 0:
        return {"status": "skipped", "reason": "no time left"}
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder, "found.json"), Path(folder, "log")
        try:
            sanitizer = name in SANITIZERS
            command = sanitize if sanitizer else worker
            status = process(command(name, options, out, seconds), log, seconds)
            found = {"status": "passed", "found": {"last lines": tail(log, 3)}}
            if not sanitizer:
                found = json.loads(out.read_text()) if out.exists() else {"status": "failed"}
            if status != 0:
                found |= {"status": "failed", "error": ending(status, seconds)}
                found["last lines"] = tail(log, 20)
        except Skipped as reason:
            found = {"status": "skipped", "reason": str(reason)}
    return {**found, "seconds": round(time.monotonic() - start, 1)}


def process(command: list[str], log: Path, seconds: float) -> int | None:
    """Exit status of a command, None where it had to be killed with all that it had started."""
    with log.open("wb") as stream:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, process_group=0
        )
        try:
            return child.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def ending(status: int | None, seconds: float) -> str:
    if status is None:
        return f"no end after {seconds:.0f} s: killed"
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with {status}"


def tail(log: Path, count: int) -> list[str]:
    lines = log.read_text(errors="replace").strip().splitlines()
    return [line[:300] for line in lines[-count:]]


def worker(name: str, options: argparse.Namespace, out: Path, seconds: float) -> list[str]:
    command = [sys.executable, "-X", "faulthandler", __file__, "--worker", name, "--out", str(out)]
    command += ["--seed", str(options.seed), "--budget", str(seconds)]
    command += ["--simulate"] if options.simulate else []
    return command + (["--data-dir", options.data_dir] if options.data_dir else [])


def sanitize(name: str, options: argparse.Namespace, out: Path, seconds: float) -> list[str]:
    """Command of the small correctness section under compute-sanitizer."""
    program = shutil.which("compute-sanitizer") or in_wheels("compute-sanitizer")
    if options.simulate or program is None:
        raise Skipped("there is no compute-sanitizer: pip install 'cuda-toolkit[sanitizer]'")
    # Libraries ask CUDA for what may not be there; and cuBLAS's own kernels are not under test.
    return [
        program, "--tool", name, "--error-exitcode", "7", "--print-limit", "20",
        "--report-api-errors", "no",
        *(["--kernel-name-exclude", "kns=gemm"] if name == "racecheck" else []),
        sys.executable, str(HERE / "sanitized.py"), str(options.seed),
    ]  # fmt: skip


def in_wheels(program: str) -> str | None:
    """Find a program that NVIDIA's packages have brought."""
    for folder in sys.path:
        for found in Path(folder or ".").glob(f"nvidia/**/{program}"):
            if os.access(found, os.X_OK) and found.is_file():
                return str(found)
    return None


# ---------------------------------------------------------------- the process that works


def work(options: argparse.Namespace) -> None:
    """Run one section, and write what becomes of it."""
    notes: dict[str, Any] = {}
    found: dict[str, Any] = {"status": "failed", "found": notes}

    def keep() -> None:
        write(options.out, found)

    try:
        if options.simulate:
            importlib.import_module("tests.gpu.conftest")  # sets the simulator up, as for the tests
        if options.worker == "versions":
            versions(notes, keep)
        else:
            from tests.gpu.device_checks import Setting

            deadline = time.monotonic() + options.budget
            setting = Setting(
                options.seed, options.simulate, options.data_dir, deadline, notes, keep
            )
            section(options.worker)(setting)
        found["status"] = "passed"
    except Skipped as reason:
        found = {"status": "skipped", "reason": str(reason)}
    except Exception as error:  # what it is stands in the JSON
        found["error"] = f"{type(error).__name__}: {error}"[:2000]
        found["traceback"] = traceback.format_exc().splitlines()[-12:]
    write(options.out, found)


def section(name: str) -> Any:
    from tests.gpu import device_checks, device_times

    name = "torch_side_by_side" if name == "torch" else name
    return getattr(device_times if hasattr(device_times, name) else device_checks, name)


def versions(notes: dict[str, Any], keep: Callable[[], None]) -> None:
    import nbbn
    from nbbn import backend

    packages = notes["packages"] = {"nbbn": nbbn.__version__}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    notes["python"] = platform.python_version()
    notes["platform"] = platform.platform()
    if smi := shutil.which("nvidia-smi"):
        query = "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem"
        try:
            done = subprocess.run(
                [smi, query, "--format=csv"], capture_output=True, text=True, timeout=20
            )
            notes["nvidia-smi"] = (done.stdout or done.stderr).strip().splitlines()
        except (OSError, subprocess.TimeoutExpired) as error:
            notes["nvidia-smi"] = str(error)
    keep()
    notes["devices"] = backend.describe_devices()
    backend.require("cuda")


if __name__ == "__main__":
    sys.exit(main())
