"""What does preparing data take: peak resident memory and speed at several sizes of JSONL.

    python benchmarks/data_memory.py [--megabytes 50 500]

Each size is prepared in a process of its own, conversations of about 2 kB with the demo target's tokenizer.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import records

WORDS = (
    "def",
    "return",
    "value",
    "index",
    "the",
    "list",
    "is",
    "empty",
    "self",
    "open",
    "file",
    "line",
    "not",
)


def write_conversations(path: Path, megabytes: int) -> None:
    """JSONL of about this size: a question and an answer a line, all different."""
    drawn = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        number = 0
        while file.tell() < megabytes * 1_000_000:
            texts = [" ".join(drawn.choices(WORDS, k=180)) for _ in range(2)]
            roles = zip(("user", "assistant"), (f"{number} {texts[0]}", texts[1]), strict=True)
            messages = [{"role": role, "content": content} for role, content in roles]
            file.write(json.dumps({"messages": messages}) + "\n")
            number += 1


def measure_here(source: Path, out: Path) -> None:
    """Prepare one file and print this process's peak and the seconds it took, as JSON."""
    from deepspec.config import TargetConfig
    from deepspec.data.forms import Columns
    from deepspec.data.prepare import Preparation, prepare_data
    from deepspec.target.load import load_tokenizer

    started = time.perf_counter()
    report = prepare_data(
        Preparation((str(source),), out, "demo", Columns({})), load_tokenizer(TargetConfig())
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = time.perf_counter() - started
    print(json.dumps({"peak_mb": round(peak), "seconds": round(seconds), "rows": report.num_rows}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[50, 500])
    parser.add_argument("--one", type=Path, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        return measure_here(*given.one)
    with tempfile.TemporaryDirectory() as folder:
        sizes = {}
        for megabytes in given.megabytes:
            source = Path(folder) / f"{megabytes}.jsonl"
            write_conversations(source, megabytes)
            command = [sys.executable, __file__, "--one", str(source), str(Path(folder) / f"out-{megabytes}")]
            ran = subprocess.run(command, capture_output=True, text=True, check=True)
            sizes[str(megabytes)] = json.loads(ran.stdout)
            print(megabytes, "MB:", ran.stdout.strip(), flush=True)
            source.unlink()
    for line in records.write(
        "data-memory", {"by_megabytes": sizes}, seed=0, warm_up="none", repeats="one each"
    ):
        print(line)
    return None


if __name__ == "__main__":
    main()
