"""The summary, the raw numbers and the plots of what compare.py measured.

Run it: python asv_benchmarks/report.py bn.json step.json process.json --csv docs/performance.csv
        python asv_benchmarks/report.py docs/performance.csv
"""

import argparse
import csv
import json
import math
import statistics
from pathlib import Path

COPY = "copyto"
COPY_ALL = "copyto, all cores"
PRODUCTS, TILES = "matrix products", "matrix products, tiles"
# Passes over the array that each function needs; a copy makes two.
PASSES = {"inference": 2, "forward": 3, "backward": 5}
NBBN, NBBN_OUT = "nbbn", "nbbn out="
PEERS = ("NumPy", "PyTorch", "torch.compile", "JAX")
COLUMNS = ("what", "case", "contender", "seconds")
# Float32 numbers in 4 MiB: above that an array leaves the caches that a core has for itself.
LARGE = 2**20


def markdown(result):
    """What compare.py prints: where it ran, the microseconds of each case, the summary."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    measured = rows(result)
    parts = [
        f"{result['cpu']}, {result['cores']} cores; {versions}; {result['date']}; "
        f"medians of {result['rounds']} rounds, of limits the best.",
        f"```bash\n{result['command']}\n```",
    ]
    for what in dict.fromkeys(row[0] for row in measured if row[0] != "process"):
        parts += [f"{what}, microseconds", case_table([row for row in measured if row[0] == what])]
    if result.get("busy"):
        parts.append(f"beside {result['busy']} that spin: median and worst round over quiet median")
        tables = (result.get(what, ()) for what in ("bn", "norms", "step", "recurrent"))
        parts.append(busy_table([case for cases in tables for case in cases]))
    for case in result.get("cnn", ()):
        lines = [[name, f"{nbytes / 2**20:.0f}"] for name, nbytes in case["memory"].items()]
        parts.append(table([f"cnn {case['net']}", "most memory after the import, MiB"], lines))
    if "process" in result:
        parts.append(process_table(result["process"]))
    return "\n\n".join([*parts, summary(measured)])


def rows(result):
    """Every number as a row of COLUMNS; a copy counts as often as its function passes over it."""
    found = []
    for what in ("bn", "norms", "step", "cnn", "recurrent"):
        for case in result.get(what, ()):
            kind = case.get("kind")
            label = {"bn": kind, "norms": f"norms {kind}"}.get(what, what)
            seconds = case["seconds"] | (floors(case) if kind else {})
            found += [(label, name_of(case), name, value) for name, value in seconds.items()]
    for run in result.get("process", ()):
        found.append(("process", "MNIST", run["process"], run["seconds"]))
    return found


def name_of(case):
    return next(case[key] for key in ("shape", "norm", "net") if key in case)


def floors(case):
    """Seconds that moving the bytes of this case takes, by one and by all cores."""
    passes = PASSES[case["kind"]]
    return {
        name: case["seconds"][name] * passes / 2
        for name in (COPY, COPY_ALL)
        if name in case["seconds"]
    }


def by_case(measured):
    """{case: {contender: seconds}}."""
    found = {}
    for _, case, name, seconds in measured:
        found.setdefault(case, {})[name] = seconds
    return found


def case_table(measured):
    names = list(dict.fromkeys(row[2] for row in measured))
    lines = [
        [case, *(microseconds(seconds.get(name)) for name in names)]
        for case, seconds in by_case(measured).items()
    ]
    return table(["case", *names], lines)


def busy_table(cases):
    names = list(dict.fromkeys(name for case in cases for name in case["busy"]))
    lines = []
    for case in cases:
        cells = []
        for name in names:
            rounds, quiet = case["busy"].get(name), case["seconds"].get(name)
            ratios = rounds and quiet and (statistics.median(rounds) / quiet, max(rounds) / quiet)
            cells.append("{:.1f}, {:.1f}".format(*ratios) if ratios else "-")
        lines.append([f"{case.get('kind', '')} {name_of(case)}".lstrip(), *cells])
    return table(["case", *names], lines)


def process_table(runs):
    lines = [[r["process"], f"{r['seconds']:.2f}", f"{r['test_accuracy']:.4f}"] for r in runs]
    return table(["process", "wall time, s", "test accuracy"], lines)


def summary(measured):
    """The table of docs/performance.md: times over that of nbbn, geometric means of a group."""
    groups = {}
    for row in measured:
        groups.setdefault(group(*row[:2]), []).append(row)
    lines = []
    for name, group_rows in groups.items():
        cases = by_case(group_rows).values()
        limit = over_nbbn(cases, (COPY, COPY_ALL, PRODUCTS, TILES))
        lines.append([name, limit, *(over_nbbn(cases, (peer,)) for peer in PEERS)])
    return table(["time over that of nbbn", "limit", *PEERS], lines)


def group(what, case):
    if what.startswith("norms "):
        return f"normalization of groups, {what.removeprefix('norms ')}"
    named = {
        "process": "shell to a trained net",
        "step": f"training step, {case}",
        "cnn": f"convolutional training step, {case}",
        "recurrent": f"recurrent training step, {case}",
    }
    if what in named:
        return named[what]
    return f"batch norm {what}, {'above' if elements(case) > LARGE else 'up to'} 4 MiB"


def over_nbbn(cases, names):
    """Geometric mean of the fastest of `names` over nbbn; "-" where a case lacks them."""
    ratios = []
    for seconds in cases:
        known = [seconds[name] for name in names if name in seconds]
        if not known or NBBN not in seconds:
            return "-"
        ratios.append(min(known) / seconds[NBBN])
    return f"{math.exp(math.fsum(map(math.log, ratios)) / len(ratios)):.2f}"


def contenders(cases, leave_out):
    names = dict.fromkeys(name for case in cases for name in case["rounds"])
    return [name for name in names if name not in leave_out]


def microseconds(seconds):
    if seconds is None:
        return "-"
    us = seconds * 1e6
    return f"{us:,.1f}" if us < 100 else f"{us:,.0f}"


def table(head, lines):
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read(path):
    """Rows of a result of compare.py --json, or of a CSV file that `write` has made."""
    if path.suffix == ".json":
        return rows(json.loads(path.read_text()))
    with path.open(newline="") as file:
        return [(*row[:3], float(row[3])) for row in list(csv.reader(file))[1:]]


def write(measured, path):
    with path.open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(COLUMNS)
        lines.writerows((*row[:3], f"{row[3]:.4g}") for row in measured)


def plot(result, path):
    """Bytes per second at every shape beside copyto's, and steps over their matrix products."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    kinds = [k for k in PASSES if any(case["kind"] == k for case in result.get("bn", ()))]
    panels = len(kinds) + ("step" in result)
    if not panels:
        return
    figure, axes = plt.subplots(
        1, panels, figsize=(4.5 * panels, 4.5), squeeze=False, layout="constrained"
    )
    for axis, kind in zip(axes[0], kinds, strict=False):
        draw_roofline(axis, [case for case in result["bn"] if case["kind"] == kind], kind)
    if "step" in result:
        draw_steps(axes[0, -1], result["step"])
    # Of the first panel of each sort: the others show the same contenders.
    shown = {
        label: line
        for axis in (axes[0, 0], axes[0, -1])
        for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(shown.values(), shown, loc="outside upper center", ncols=len(shown))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_roofline(axis, cases, kind):
    nbytes = {case["shape"]: 4 * elements(case["shape"]) for case in cases}
    cases = sorted(cases, key=lambda case: nbytes[case["shape"]])
    for name in contenders(cases, leave_out=()):
        # For a roof, what copying moves; for a contender, the bytes that its passes need.
        roof = name in (COPY, COPY_ALL)
        passes = 2 if roof else PASSES[kind]
        rates = [
            passes * nbytes[case["shape"]] / case["seconds"].get(name, math.nan) / 1e9
            for case in cases
        ]
        line = ("--" if name == COPY else ":") if roof else "-"
        axis.plot(range(len(cases)), rates, line, label=name, marker=".", color=color(name))
    name_cases(axis, [f"{case['shape']}, {nbytes[case['shape']] / 1e6:.2g} MB" for case in cases])
    axis.set(yscale="log", title=f"batch norm, {kind}", ylabel="GB/s, as counted in passes")


def draw_steps(axis, cases):
    names = contenders(cases, leave_out=(PRODUCTS, TILES))
    width = 0.8 / len(names)
    for position, name in enumerate(names):
        ratios = [
            case["seconds"].get(name, math.nan) / case["seconds"].get(PRODUCTS, math.nan)
            for case in cases
        ]
        places = [k + position * width for k in range(len(cases))]
        axis.bar(places, ratios, width, label=name, color=color(name))
    axis.axhline(1, color="black", linestyle="--")
    name_cases(axis, [case["net"] for case in cases], 0.4 - width / 2)
    axis.set(title="training step", ylabel="time over its matrix products")


def color(name):
    """The same in every panel."""
    order = (NBBN, NBBN_OUT, *PEERS)
    return f"C{order.index(name)}" if name in order else "black"


def name_cases(axis, names, offset=0):
    positions = [k + offset for k in range(len(names))]
    axis.set_xticks(positions, names, rotation=40, ha="right", rotation_mode="anchor")


def elements(shape):
    return math.prod(int(n) for n in shape.split()[0].split("x"))


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="from compare.py --json, or one CSV")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all numbers")
    arguments = parser.parse_args()
    measured = [row for path in arguments.files for row in read(path)]
    if arguments.csv:
        write(measured, arguments.csv)
    print(summary(measured))


if __name__ == "__main__":
    main()
