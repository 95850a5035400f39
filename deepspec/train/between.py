"""What a run looks at between two steps: how fast it goes, and whether a signal asks it to stop."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Stop:
    """Which signal asked the run to stop, if one did."""

    signal_name: str | None = None


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Note the first SIGINT or SIGTERM; the second acts as it always would. Main thread only."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    watched = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in watched}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def note(number: int, frame: FrameType | None) -> None:
        stop.signal_name = signal.Signals(number).name
        restore()

    for number in watched:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        restore()


class StepClock:
    """Speed over the last few steps."""

    def __init__(self, window: int) -> None:
        self._steps: deque[tuple[float, int]] = deque(maxlen=max(1, window))

    def add(self, seconds: float, num_tokens: int) -> None:
        self._steps.append((seconds, num_tokens))

    @property
    def seconds_per_step(self) -> float:
        return sum(seconds for seconds, _ in self._steps) / max(1, len(self._steps))

    @property
    def tokens_per_s(self) -> float:
        seconds = sum(seconds for seconds, _ in self._steps)
        return sum(tokens for _, tokens in self._steps) / seconds if seconds else 0.0
