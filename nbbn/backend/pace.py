"""Whether a repeated step uses all threads or one: what took less time lately. Bits are the same.

Several threads wait for one another. Beside other programs, and where cores lie far apart, short
steps take longer with them than without. Neither can be asked for, so the other way is tried.
"""

from __future__ import annotations

# How long a trial takes: some turns of the system's scheduler.
TRIAL_SECONDS = 0.02
# How long what won goes on until the next trial: this, and twice as long after each clear result.
WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 8.0
# Longer steps are quicker with all threads even beside other programs.
LONGEST_STEP_SECONDS = 4e-3
# A trial wins with less than this share of the time, and fails clearly with more than that one.
WINS, FAILS = 0.9, 1.1


class Pace:
    """Choice of one step, by the time that each run of it took.

    Attributes
    ----------
    alone : bool
        Whether the next run is to use one thread.
    """

    def __init__(self) -> None:
        self.alone = False
        self._trying = False
        self._wait = WAIT_SECONDS
        self._usual = 0.0
        self._restart(WAIT_SECONDS)

    def _restart(self, seconds: float) -> None:
        self._due, self._spent, self._runs = seconds, 0.0, -1

    def took(self, seconds: float) -> None:
        """Take in the time of one run."""
        self._runs += 1
        # The first run another way prepares it, and may compile.
        if not self._runs:
            return
        self._spent += seconds
        if self._spent < self._due:
            return
        mean = self._spent / self._runs
        if self._trying:
            self._judge(mean)
        elif self.alone or mean < LONGEST_STEP_SECONDS:
            self._usual = mean
            self._trying, self.alone = True, not self.alone
            self._restart(TRIAL_SECONDS)
        else:
            self._restart(self._wait)

    def _judge(self, mean: float) -> None:
        share = mean / self._usual
        if share >= WINS:
            self.alone = not self.alone
        clear = share > FAILS
        self._wait = min(2 * self._wait, LONGEST_WAIT_SECONDS) if clear else WAIT_SECONDS
        self._trying = False
        self._restart(self._wait)
