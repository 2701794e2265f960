"""What `run_on_device.py` says about what it found: the targets, and the table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

# Of the device's own copy, for passes over arrays that do not fit into the L2.
LEAST_SHARE = 0.85
MOST_STEP_US = 100.0
LEAST_LEAD = 3.0
LEAST_ACCURACY = 0.98


class Skipped(Exception):  # noqa: N818 - not an error
    """The section cannot run here."""


class Target(NamedTuple):
    """Something to be shown, what was measured (None: nothing), and whether that is enough."""

    what: str
    measured: float | None
    met: bool | None

    @property
    def line(self) -> str:
        verdict = {True: "met", False: "MISSED", None: "not measured"}[self.met]
        return f"{verdict:12} {self.what}" + ("" if self.met is None else f": {self.measured:.3g}")


def at_least(what: str, measured: float | None, least: float) -> Target:
    enough = None if measured is None else measured >= least
    return Target(f"{what}, at least {least:g}", measured, enough)


def targets(sections: dict[str, Any]) -> list[Target]:
    """All targets, from what the sections have found."""
    found = {name: section.get("found", {}) for name, section in sections.items()}
    return [
        *_shares(found.get("bandwidth", {})),
        *_peers(found.get("torch", {})),
        *_step(found.get("step", {})),
        _accuracy(found.get("mnist", {})),
    ]


def _named(row: dict[str, Any], kind: str) -> str:
    return f"{'x'.join(map(str, row['shape']))} {row['dtype']} {kind}"


def _shares(found: dict[str, Any]) -> Iterator[Target]:
    rows = [row for row in found.get("rows", ()) if "share of floor" in row.get("forward", {})]
    for row in rows:
        for kind in ("forward", "backward"):
            share = row.get(kind, {}).get("share of floor")
            yield at_least(f"{_named(row, kind)}, share of the floor", share, LEAST_SHARE)
    if not rows:
        yield at_least("share of the floor on large shapes", None, LEAST_SHARE)


def _peers(found: dict[str, Any]) -> Iterator[Target]:
    ratios = []
    for row in found.get("rows", ()):
        for kind in ("inference", "forward", "backward"):
            ratio = row.get(kind, {}).get("ratio")
            ratios += [] if ratio is None else [ratio]
            yield at_least(f"{_named(row, kind)}, PyTorch's time over ours", ratio, 1)
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None
    yield at_least("PyTorch's time over ours, geometric mean", mean, 1)


def _step(found: dict[str, Any]) -> Iterator[Target]:
    ours = found.get("graph, us")
    slowest = f"step by graph, microseconds, at most {MOST_STEP_US:g}"
    yield Target(slowest, ours, None if ours is None else ours <= MOST_STEP_US)
    for peer, least in (("torch eager, us", LEAST_LEAD), ("torch graph, us", 1)):
        theirs = found.get(peer)
        ratio = theirs / ours if ours and theirs else None
        yield at_least(f"step: {peer.removesuffix(', us')} over our graph", ratio, least)


def _accuracy(found: dict[str, Any]) -> Target:
    best = max((epoch["test accuracy"] for epoch in found.get("epochs", ())), default=None)
    return at_least("MNIST test accuracy", best, LEAST_ACCURACY)


def show(name: str, section: dict[str, Any]) -> None:
    """Print one section."""
    print(f"\n{name}: {section['status']} ({section.get('seconds', 0)} s)")
    for key in ("reason", "error"):
        if key in section:
            print(f"  {section[key]}")
    for line in section.get("last lines", ()):
        print(f"  | {line}")
    for key, value in section.get("found", {}).items():
        if key != "rows":
            print(f"  {key}: {value}")
            continue
        for row in value:
            cells = []
            for kind, numbers in row.items():
                if isinstance(numbers, dict):
                    text = ", ".join(f"{k} {_short(v)}" for k, v in numbers.items())
                    cells.append(f"{kind}: {text}")
            print(f"  {row['shape']} {row['dtype']}: " + "; ".join(cells))


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else str(value)
