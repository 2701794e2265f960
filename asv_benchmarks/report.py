"""Markdown tables and plots of what compare.py measured."""

import math

COPY = "copyto"
COPY_ALL = "copyto, all cores"
PRODUCTS = "matrix products"
# Passes over the array that each function needs; a copy makes two.
PASSES = {"inference": 2, "forward": 3, "backward": 5}
NBBN, NBBN_OUT = "nbbn", "nbbn out="


def markdown(result):
    """All tables, ready for docs/performance.md."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    parts = [
        f"{result['cpu']}, {result['cores']} cores; {versions}; {result['date']}; "
        f"medians of {result['rounds']} rounds, of limits the best.",
        f"```bash\n{result['command']}\n```",
    ]
    if "bn" in result:
        parts.append(
            "Microseconds, float32. In parentheses: a contender's time over that of nbbn (above 1x "
            "nbbn is faster; in the last column, PyTorch over nbbn with `out=`); for copyto, the "
            "time that it takes to move as many bytes (3 passes forward, 2 inference, 5 backward) "
            "over that of nbbn with `out=`."
        )
        for kind in PASSES:
            if cases := [case for case in result["bn"] if case["kind"] == kind]:
                parts += [f"### Batch norm, {kind}", bn_table(cases)]
    if "step" in result:
        parts += [
            "### Training step",
            "Microseconds, 784-hidden-10 with BatchNorm, ReLU and Adam. In parentheses: over the "
            "step's matrix products alone; then over nbbn.",
            step_table(result["step"]),
        ]
    if "process" in result:
        parts += ["### Whole process", process_table(result["process"])]
    return "\n\n".join(parts)


def floors(case):
    """Seconds that moving the bytes of this case takes, by one and by all cores."""
    passes = PASSES[case["kind"]]
    return {
        name: case["seconds"][name] * passes / 2
        for name in (COPY, COPY_ALL)
        if name in case["seconds"]
    }


def bn_table(cases):
    names = contenders(cases, leave_out=(COPY, COPY_ALL))
    limits = [name for name in (COPY, COPY_ALL) if any(name in floors(case) for case in cases)]
    extra = ["PyTorch / out="] if {"PyTorch", NBBN_OUT} <= set(names) else []
    ratios = {name: [] for name in [*names, *limits, *extra]}
    rows = []
    for case in cases:
        seconds, limit = case["seconds"], floors(case)
        ours, with_out = seconds.get(NBBN), seconds.get(NBBN_OUT, seconds.get(NBBN))
        row = [case["shape"]]
        for name in names:
            ratio = quotient(seconds.get(name), ours) if name != NBBN else None
            row.append(cell(seconds.get(name), remember(ratios[name], ratio)))
        for name in limits:
            row.append(
                cell(limit.get(name), remember(ratios[name], quotient(limit.get(name), with_out)))
            )
        for name in extra:
            ratio = quotient(seconds.get("PyTorch"), with_out)
            row.append(times(remember(ratios[name], ratio)))
        rows.append(row)
    rows.append(["geometric mean", *(times(geometric_mean(many)) for many in ratios.values())])
    return table(["shape", *names, *limits, *extra], rows)


def step_table(cases):
    names = contenders(cases, leave_out=(PRODUCTS,))
    rows = []
    for case in cases:
        seconds = case["seconds"]
        row = [case["net"], cell(seconds.get(PRODUCTS), None)]
        for name in names:
            ratios = [quotient(seconds.get(name), seconds.get(PRODUCTS))]
            if name != NBBN:
                ratios.append(quotient(seconds.get(name), seconds.get(NBBN)))
            row.append(cell(seconds.get(name), *ratios))
        rows.append(row)
    return table(["hidden/batch", PRODUCTS, *names], rows)


def process_table(runs):
    seconds = {run["process"]: run["seconds"] for run in runs}
    rows = [
        [
            run["process"],
            f"{run['seconds']:.2f}",
            times(quotient(run["seconds"], seconds.get(NBBN))),
            f"{run['epochs']:g}",
            f"{run['test_accuracy']:.4f}",
        ]
        for run in runs
    ]
    return table(["process", "wall time, s", "over nbbn", "epochs", "test accuracy"], rows)


def contenders(cases, leave_out):
    names = dict.fromkeys(name for case in cases for name in case["rounds"])
    return [name for name in names if name not in leave_out]


def quotient(numerator, denominator):
    return numerator / denominator if numerator and denominator else None


def remember(many, value):
    if value is not None:
        many.append(value)
    return value


def geometric_mean(values):
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if values else None


def times(ratio):
    return "" if ratio is None else f"{ratio:.2f}x"


def cell(seconds, *ratios):
    if seconds is None:
        return "-"
    us = seconds * 1e6
    text = f"{us:,.1f}" if us < 100 else f"{us:,.0f}"
    known = [times(ratio) for ratio in ratios if ratio is not None]
    return f"{text} ({', '.join(known)})" if known else text


def table(head, rows):
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
    nbytes = {case["shape"]: 4 * math.prod(dimensions(case["shape"])) for case in cases}
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
    names = contenders(cases, leave_out=(PRODUCTS,))
    width = 0.8 / len(names)
    for position, name in enumerate(names):
        ratios = [
            quotient(case["seconds"].get(name), case["seconds"].get(PRODUCTS)) or math.nan
            for case in cases
        ]
        places = [k + position * width for k in range(len(cases))]
        axis.bar(places, ratios, width, label=name, color=color(name))
    axis.axhline(1, color="black", linestyle="--")
    name_cases(axis, [case["net"] for case in cases], 0.4 - width / 2)
    axis.set(title="training step", ylabel="time over its matrix products")


def color(name):
    """The same in every panel."""
    order = (NBBN, NBBN_OUT, "NumPy", "PyTorch", "torch.compile", "JAX")
    return f"C{order.index(name)}" if name in order else "black"


def name_cases(axis, names, offset=0):
    positions = [k + offset for k in range(len(names))]
    axis.set_xticks(positions, names, rotation=40, ha="right", rotation_mode="anchor")


def dimensions(shape):
    return [int(n) for n in shape.split()[0].split("x")]
