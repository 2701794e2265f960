"""Run all experiments on batch norm's claims, two at a time, and print the table of their verdicts.

`python examples/paper/run_all.py [--quick] [--out=docs/science] [--jobs=2]`; `--table` only prints
the table, in Markdown, of what lies in the folder.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

HERE = pathlib.Path(__file__).resolve().parent
# As on the page; others follow by name.
ORDER = ("fig1_sigmoids", "learning_rates", "fewer_steps", "initialization", "regularization",
         "small_batches", "before_or_after", "gradients", "gradient_growth", "noise", "smoothness",
         "scale_invariance", "weight_decay", "running_averages", "inception")  # fmt: skip
SCRIPTS = sorted(
    (path for path in HERE.glob("*.py") if path.stem not in ("common", "run_all")),
    key=lambda path: (ORDER.index(path.stem) if path.stem in ORDER else len(ORDER), path.stem),
)

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--quick", action="store_true")
parser.add_argument("--table", action="store_true")
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/science"))
parser.add_argument("--jobs", type=int, default=2)
given = parser.parse_args()


def run(script):
    """Run one experiment, on one thread, and return its exit status."""
    command = [sys.executable, script, f"--out={given.out}", *["--quick"] * given.quick]
    one = dict.fromkeys(("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return subprocess.run(command, env=os.environ | one, check=False).returncode


failed = []
if not given.table:
    with ThreadPoolExecutor(given.jobs) as pool:
        results = pool.map(run, SCRIPTS)
        failed = [path.name for path, status in zip(SCRIPTS, results, strict=True) if status]

print("\n| experiment | claim | verdict | seen | seeds |\n|---|---|---|---|---|")
for script in SCRIPTS:
    path = given.out / f"{script.stem}.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        print(f"| {script.stem} | {found['claim']} | **{found['verdict']}** | {found['reason']} "
              f"| {found['seeds']} |")  # fmt: skip
if failed:
    sys.exit(f"failed: {', '.join(failed)}")
