"""A process that regenerates in children of its own, which a test may kill: what is slow is imported once.

Reads jobs from standard input, a JSON object a line; tells the child's number, a line for each sample, and
how it ended: its exit status, and before that in one line what it raised.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from deepspec.errors import DeepSpecError
from deepspec.regenerate import RegenerationReport, Server, ServerWriter, regenerate
from tests.regenerate.asking import PARAMS, patience, plan
from tests.regenerate.targets import engine_writer, writing_target


def tell(text: str) -> None:
    os.write(1, f"{text}\n".encode())


class Observer:
    """Tells of each sample that is written."""

    def __init__(self) -> None:
        self._told = 0

    def __call__(self, report: RegenerationReport) -> None:
        if report.num_written > self._told:
            self._told = report.num_written
            tell(f"sample {self._told}")


def work(job: dict[str, Any]) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have turned off
    if (most := job.get("most_bytes")) is not None:  # of every file, as on a disk that is full
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    try:
        if "url" in job:
            server = Server.at(job["url"], patience=patience())
            writer: Any = ServerWriter(server, PARAMS, concurrency=8)
        else:
            writer = engine_writer(writing_target(), concurrency=job["concurrency"])
        regenerate(plan(Path(job["source"]), Path(job["out"])), writer, observer=Observer())
    except DeepSpecError as error:
        tell(f"raised {type(error).__name__}: {error}")
        return 1
    except KeyboardInterrupt as interruption:
        tell(f"interrupted: {interruption}")
        return 130
    return 0


def main() -> None:
    tell("ready")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(work(json.loads(line)))
        tell(f"child {child}")
        tell(f"exit {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")


if __name__ == "__main__":
    main()
