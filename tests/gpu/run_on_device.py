"""Everything that only a real CUDA device can show, in one run: one JSON, and a table of it.

    python tests/gpu/run_on_device.py --out device.json

Sections run one after the other; one that fails or finds no time leaves its error in the JSON and
the rest go on. The JSON is written after each. `--only` and `--skip` choose sections, `--simulate`
tries the script itself, in Numba's simulator and with tiny arrays.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PACKAGES = (
    "nbbn", "numpy", "numba", "numba-cuda", "cuda-bindings", "cuda-toolkit", "cupy-cuda12x",
    "cupy-cuda13x", "nvidia-cublas", "nvidia-cublas-cu12", "torch", "ml-dtypes",
)  # fmt: skip
# In this order: first what everything rests on, last what takes long.
SECTIONS = (
    "versions", "correctness", "repeatability", "graph", "step", "mnist", "bandwidth",
    "torch", "huge", "memcheck", "racecheck",
)  # fmt: skip


def main() -> int:
    options = parse()
    if options.simulate:
        os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
    sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]
    if options.simulate:
        importlib.import_module("conftest")  # sets the simulator up, as for the tests
    deadline = time.monotonic() + options.budget
    chosen = [name for name in options.only or SECTIONS if name not in options.skip]
    seed = time.time_ns() % 2**32 if options.seed is None else options.seed
    report: dict[str, Any] = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(["python", Path(__file__).name, *sys.argv[1:]]),
        "seed": seed,
        "simulated": options.simulate,
        "sections": {},
    }
    for name in chosen:
        report["sections"][name] = run(name, options, seed, deadline)
        options.out.write_text(json.dumps(report, indent=1, default=str) + "\n")
        show(name, report["sections"][name])
    failed = [name for name, found in report["sections"].items() if found["status"] == "failed"]
    print(
        f"\n{len(chosen) - len(failed)} of {len(chosen)} sections without an error; {options.out}"
    )
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("device.json"), help="where the JSON goes")
    add("--only", type=sections, default=[], metavar="A,B", help=f"of {', '.join(SECTIONS)}")
    add("--skip", type=sections, default=[], metavar="A,B", help="sections to leave out")
    add("--budget", type=float, default=540.0, metavar="S", help="seconds for all of it [540]")
    add("--seed", type=int, help="of the data; fresh by default, and in the JSON")
    add("--data-dir", help="folder of the four MNIST files")
    add("--simulate", action="store_true", help="try the script without a device")
    return parser.parse_args()


def sections(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(SECTIONS):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
    return names


def run(name: str, options: argparse.Namespace, seed: int, deadline: float) -> dict[str, Any]:
    """Run a section; whatever happens is what it returns."""
    start = time.monotonic()
    notes: dict[str, Any] = {}
    found: dict[str, Any] = {"status": "passed", "found": notes}
    if start >= deadline:
        return {"status": "skipped", "reason": "no time left"}
    try:
        if name in ("memcheck", "racecheck"):
            notes |= sanitize(name, options, seed, deadline)
        elif name == "versions":
            notes |= versions()
        else:
            import device_checks
            import device_times

            setting = device_checks.Setting(
                seed, options.simulate, options.data_dir, deadline, notes
            )
            work = {
                **{n: getattr(device_checks, n)
                   for n in ("correctness", "repeatability", "huge", "graph", "mnist")},
                **{n: getattr(device_times, n) for n in ("bandwidth", "step")},
                "torch": device_times.torch_side_by_side,
            }[name]  # fmt: skip
            work(setting)
    except Skipped as reason:
        found = {"status": "skipped", "reason": str(reason)}
    except Exception as error:  # the others shall run
        found |= {
            "status": "failed",
            "error": f"{type(error).__name__}: {error}"[:2000],
            "traceback": traceback.format_exc().splitlines()[-12:],
        }
    found["seconds"] = round(time.monotonic() - start, 1)
    return found


class Skipped(Exception):  # noqa: N818 - not an error
    """The section cannot run here."""


def versions() -> dict[str, Any]:
    from nbbn import backend

    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "devices": backend.describe_devices(),
    }
    if smi := shutil.which("nvidia-smi"):
        query = "--query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem"
        done = subprocess.run(
            [smi, query, "--format=csv,noheader"], capture_output=True, text=True, timeout=30
        )
        found["nvidia-smi"] = done.stdout.strip().splitlines()
    backend.require("cuda")
    return found


def sanitize(tool: str, options: argparse.Namespace, seed: int, deadline: float) -> dict[str, Any]:
    """Run the small correctness section again under compute-sanitizer."""
    program = shutil.which("compute-sanitizer") or in_wheels("compute-sanitizer")
    if options.simulate or program is None:
        raise Skipped("there is no compute-sanitizer: pip install 'cuda-toolkit[sanitizer]'")
    done = subprocess.run(
        [
            program, "--tool", tool, "--error-exitcode", "7", "--print-limit", "20",
            sys.executable, str(HERE / "sanitized.py"), str(seed),
        ],
        capture_output=True, text=True, timeout=max(30.0, deadline - time.monotonic()),
    )  # fmt: skip
    tail = (done.stdout + done.stderr).strip().splitlines()[-20:]
    if done.returncode:
        raise AssertionError(f"{tool} ends with status {done.returncode}: " + " | ".join(tail))
    return {"program": program, "last lines": tail[-3:]}


def in_wheels(program: str) -> str | None:
    """Find a program that NVIDIA's packages have brought."""
    for folder in sys.path:
        for found in Path(folder or ".").glob(f"nvidia/**/{program}"):
            if os.access(found, os.X_OK) and found.is_file():
                return str(found)
    return None


def show(name: str, found: dict[str, Any]) -> None:
    print(f"\n{name}: {found['status']} ({found.get('seconds', 0)} s)")
    for key in ("reason", "error"):
        if key in found:
            print(f"  {found[key]}")
    for key, value in found.get("found", {}).items():
        if key != "rows":
            print(f"  {key}: {value}")
            continue
        for row in value:
            cells = []
            for kind, numbers in row.items():
                if isinstance(numbers, dict):
                    text = ", ".join(f"{k} {v:.3g}" for k, v in numbers.items())
                    cells.append(f"{kind}: {text}")
            print(f"  {row['shape']} {row['dtype']}: " + "; ".join(cells))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
