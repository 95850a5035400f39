"""An engine kept busy: as many requests as it has slots, a new one for each that ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from deepspec import Engine, SamplingParams


class Traffic:
    """Endless requests of some prompts, in turn, for one engine."""

    def __init__(self, engine: Engine, num_slots: int) -> None:
        self.engine, self.num_slots = engine, num_slots
        self.running: set[int] = set()
        self.count = 0

    def run(self, prompts: Sequence[Sequence[int]], params: SamplingParams, num_steps: int) -> int:
        """So many steps of the engine, and the tokens gained; what runs goes on in the next call."""
        gained = 0
        for _ in range(num_steps):
            while len(self.running) < self.num_slots:
                prompt = prompts[self.count % len(prompts)]
                self.running.add(self.engine.submit(prompt, replace(params, seed=self.count)))
                self.count += 1
            events = self.engine.step()
            gained += sum(len(event.tokens) for event in events)
            ended = {event.request_id for event in events if event.finish_reason is not None}
            self.running -= ended
            for number in ended:
                self.engine.completions.pop(number)
        return gained

    def stop(self) -> None:
        """Cancel what runs."""
        for number in self.running:
            self.engine.cancel(number)
        self.running.clear()
