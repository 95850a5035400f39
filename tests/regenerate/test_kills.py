"""Killed at any moment, stopped, or out of disk: the same call goes on; no sample is lost or there twice."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.regenerate.asking import ask, left_out, rows
from tests.regenerate.conftest import save_source
from tests.regenerate.misbehaving import Misbehaving

ROOT = Path(__file__).parents[2]
THOROUGH = os.environ.get("DEEPSPEC_THOROUGH") == "1"
KILLS = 30 if THOROUGH else 3


class Worker:
    """Regenerates in children of a process that has all imported."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert self._next() == "ready"

    def run(self, job: dict[str, Any], *, stop: signal.Signals | None = None, after: int = 0) -> list[str]:
        """All that a child told; ``stop`` is sent to it as soon as it has told of ``after`` samples."""
        print(json.dumps(job), file=self._process.stdin, flush=True)
        told: list[str] = []
        while not told or not told[-1].startswith("exit"):
            told.append(self._next())
            child = next((int(line.split()[1]) for line in told if line.startswith("child")), None)
            written = sum(line.startswith("sample") for line in told)
            if stop is not None and child is not None and written >= after:
                os.kill(child, stop)
                stop = None
        return told

    def _next(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the worker has died"
        return line.strip()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    command = [sys.executable, "-m", "tests.regenerate.worker"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    # A fork does not get over others' threads: OpenMP's, and that of Arrow's allocator.
    alone = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    environment = {**os.environ, **alone}
    with subprocess.Popen(command, cwd=ROOT, text=True, env=environment, **pipes) as process:
        yield Worker(process)
        assert process.stdin is not None
        process.stdin.close()


def job(source: Path, out: Path, **more: Any) -> dict[str, Any]:
    return {"source": str(source), "out": str(out), **more}


@pytest.mark.thorough
def test_killed_at_random_by_a_server_every_sample_is_there_once_in_the_end(
    worker: Worker, server: Misbehaving, tmp_path: Path
) -> None:
    source = save_source(tmp_path / "source.jsonl", 40 * KILLS)
    ask(server, source, tmp_path / "whole.jsonl")
    out, chance = tmp_path / "out.jsonl", random.Random(7)
    for _ in range(KILLS):
        ended = worker.run(job(source, out, url=server.url), stop=signal.SIGKILL, after=chance.randrange(40))
        assert ended[-1] == "exit -9"
    done = len(rows_that_are_whole(out))
    asked = len(server.bodies)
    assert worker.run(job(source, out, url=server.url))[-1] == "exit 0"
    assert 0 < done < 40 * KILLS
    assert len(server.bodies) - asked < 1.5 * (40 * KILLS - done)  # what was done was not asked again
    assert rows(out) == rows(tmp_path / "whole.jsonl")


@pytest.mark.thorough
def test_killed_at_random_by_the_engine_the_text_is_that_of_one_go_at_another_batch(
    worker: Worker, tmp_path: Path
) -> None:
    source = save_source(tmp_path / "source.jsonl", 12 * KILLS)
    assert worker.run(job(source, tmp_path / "whole.jsonl", concurrency=16))[-1] == "exit 0"
    out, chance = tmp_path / "out.jsonl", random.Random(8)
    for _ in range(KILLS):
        again = job(source, out, concurrency=chance.choice([1, 3, 8]))
        assert worker.run(again, stop=signal.SIGKILL, after=chance.randrange(10))[-1] == "exit -9"
    assert worker.run(job(source, out, concurrency=5))[-1] == "exit 0"
    whole = rows(tmp_path / "whole.jsonl")
    assert rows(out) == whole
    assert len({row["provenance"]["finish_reason"] for row in whole}) == 2


def rows_that_are_whole(out: Path) -> list[bytes]:
    return [line for line in out.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("way", ["server", "engine"])
def test_a_signal_ends_it_with_whole_lines_and_a_word_on_how_to_go_on(
    worker: Worker, server: Misbehaving, source: Path, tmp_path: Path, number: signal.Signals, way: str
) -> None:
    out = tmp_path / "out.jsonl"
    server.fault = lambda body, before: "hang" if len(server.bodies) > 20 else None
    asked = job(source, out, **({"url": server.url} if way == "server" else {"concurrency": 2}))
    told = worker.run(asked, stop=number, after=3)
    assert told[-1] == "exit 130"
    said = re.fullmatch(
        r"interrupted: interrupted; samples done: (\d+); the same command goes on with (.*)", told[-2]
    )
    assert said
    assert said[2] == str(out)
    assert int(said[1]) == len(rows(out)) + len(left_out(out))
    assert 3 <= len(rows(out)) < 40


def test_a_disk_that_fills_up_is_one_line_keeps_what_is_written_and_goes_on(
    worker: Worker, server: Misbehaving, source: Path, tmp_path: Path
) -> None:
    ask(server, source, tmp_path / "whole.jsonl")
    out = tmp_path / "out.jsonl"
    told = worker.run(job(source, out, url=server.url, most_bytes=5_000))
    assert told[-1] == "exit 1"
    assert re.fullmatch(
        rf"raised ResourceError: {re.escape(str(out))} cannot be written: .*File too large; make room or "
        r"choose another --out; what is done is kept \(\d+\): the same command goes on",
        told[-2],
    )
    kept = out.read_bytes()
    assert kept.endswith(b"\n")
    assert 1_000 < len(kept) <= 5_000
    assert worker.run(job(source, out, url=server.url))[-1] == "exit 0"
    assert rows(out) == rows(tmp_path / "whole.jsonl")


def test_a_second_process_keeps_out(
    worker: Worker, server: Misbehaving, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    server.fault = lambda body, before: "hang"
    thread = threading.Thread(target=worker.run, args=(job(source, out, url=server.url),), daemon=True)
    thread.start()
    server.wait_for(1, lambda: not thread.is_alive())
    with pytest.raises(Exception, match="another process is writing it") as raised:
        ask(server, source, out)
    assert type(raised.value).__name__ == "ConfigError"
    server.fault = lambda body, before: None
    server.released.set()
    thread.join()
    assert len(rows(out)) == 40
