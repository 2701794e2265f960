"""Fixtures that several test files share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from nbbn.cli import main
from nbbn.train import loop
from tests.helpers.small_run import FLAGS, digits

# The same examples in every run, however long the machine takes for them.
settings.register_profile(
    "nbbn", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("nbbn")


@pytest.fixture(autouse=True, scope="session")
def whatever_else_this_machine_does():
    """Let training say nothing of a busy machine, but where a test wants to hear it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Timed, "told", True)
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20150211)


@pytest.fixture(scope="session")
def own(tmp_path_factory):
    """The path of a small data set for the command line."""
    path = tmp_path_factory.mktemp("data") / "own.npz"
    parts = (*digits(100, 0), *digits(40, 1))
    np.savez(path, **dict(zip(("x_train", "y_train", "x_test", "y_test"), parts, strict=True)))
    return path


@pytest.fixture(scope="session")
def trained(own, tmp_path_factory):
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    flags = ("--epochs", "40", "--validation", "0.2", "--standardize", "feature", "--percentiles")
    out_and_log = ("--out", str(out), "--log-every", "3", "--quiet")
    assert main(["train", "--data", str(own), *FLAGS, *flags, *out_and_log]) == 0
    return out
