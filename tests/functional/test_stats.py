"""Statistics that are none, or that no batch has, are refused."""

from __future__ import annotations

import numpy as np

from nbbn import functional as F  # noqa: N812 - the usual name
from nbbn.errors import ArgumentError, DTypeError
from tests.helpers.refusals import refusing

X = np.arange(12.0).reshape(4, 3)
STATS = F.batch_norm_train(X)[1]
MEAN, VAR = np.zeros(3), np.ones(3)

REFUSED = [
    ("F.batch_norm_backward(X, X, tuple(STATS))", DTypeError, "of the forward, got tuple"),
    ("F.update_running_stats(MEAN, VAR, STATS.mean)", DTypeError, "BatchNormStats, got ndarray"),
    ("F.merge_stats([STATS._replace(var=-VAR)])", ArgumentError, "not be negative, got -1.0"),
]

test_statistics_are_refused = refusing(REFUSED, {**globals(), "F": F})
