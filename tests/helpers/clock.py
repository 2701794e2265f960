"""A clock that a busy machine does not disturb."""

from __future__ import annotations

import time


class Clock:
    """Stands for the clocks of `time`: every look takes a millisecond.

    Of the time that passes, but for `rest`, this process has a share.
    """

    def __init__(self, share, monkeypatch):
        self.share, self.now, self.rested = share, 0.0, 0.0
        monkeypatch.setattr(time, "perf_counter", self.look)
        monkeypatch.setattr(time, "process_time", lambda: self.share * (self.now - self.rested))

    def look(self):
        self.now += 0.001
        return self.now

    def rest(self, seconds):
        self.now += seconds
        self.rested += seconds
