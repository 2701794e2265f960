"""What no picture can be drawn of is refused with the reason."""

from __future__ import annotations

import numpy as np

from nbbn import plots
from nbbn.errors import ArgumentError, DataError, DTypeError, ShapeError
from nbbn.train.rates import RateTrial
from tests.helpers.refusals import refusing

ROW = {"kind": "step", "step": 1}
ONES = np.ones(3)
TRIAL = RateTrial(ONES, ONES, ONES, None)

REFUSED = [
    ("plots.curves({'a': [], 'b': []})", DataError, "nothing to draw: the logs have no rows"),
    ("plots.curves({'a': [{'step': 1}]})", ArgumentError, "has a kind and a step, got {'step'"),
    ("plots.curves({'a': [{**ROW, 'loss': '0.5'}]})", DTypeError, "loss of a log.*got str"),
    ("plots.curves({'a': [{**ROW, 'step': 2**64}]})", ArgumentError, r"step.*beyond 2\*\*63"),
    ("plots.percentiles([{**ROW, 'loss': 1.0}])", DataError, "train with --percentiles"),
    ("plots.rates(TRIAL._replace(losses=[1.0]))", DTypeError, "losses.*array of floats, got list"),
    ("plots.rates(TRIAL._replace(smoothed=ONES[:2]))", ShapeError, r"smoothed.*\(K,\).*\(2,\)"),
    ("plots.mistakes([[1]], [0], [[1.0]])", ShapeError, r"\(N, height, width\), got \(1, 1\)"),
    ("plots.mistakes([[[1]]], [0.0], [[1.0]])", DTypeError, "labels.*integers, got float64"),
]

test_what_cannot_be_drawn = refusing(REFUSED, {**globals(), "plots": plots})
