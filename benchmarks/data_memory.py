"""What do data take on their way: peak resident memory of preparing and of training, by size.

    python benchmarks/data_memory.py [--prepare 50 500] [--train 50 500] [--tokens 2000]

Each size is gone through in a process of its own, with the demo target and its tokenizer. ``--prepare`` (MB
of JSONL) writes conversations of about 2 kB; ``--train`` (MB of JSONL) tokenises running text in documents of
about 2 kB and takes two steps of DSpark. ``--tokens`` (in millions; 2000 are 10 GB of text) leaves out the
tokenizer, which takes over an hour for as many: made-up ones are written as training writes them, split,
packed and read for 200 batches. All files go in the end. A size for which the disk has no room is refused.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
ROW = 256


def write_jsonl(path: Path, megabytes: int, *, chat: bool) -> None:
    """JSONL of about this size, all lines different: a question and an answer a line, or a text."""
    drawn = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        number = 0
        while file.tell() < megabytes * 1_000_000:
            texts = [" ".join(drawn.choices(WORDS, k=180)) for _ in range(2)]
            roles = zip(("user", "assistant"), (f"{number} {texts[0]}", texts[1]), strict=True)
            messages = [{"role": role, "content": content} for role, content in roles]
            text = {"text": f"{number} {texts[0]} {texts[1]}"}
            file.write(json.dumps({"messages": messages} if chat else text) + "\n")
            number += 1


def prepare(megabytes: int, folder: Path) -> dict[str, Any]:
    from deepspec.config import TargetConfig
    from deepspec.data.forms import Columns
    from deepspec.data.prepare import Preparation, prepare_data
    from deepspec.target.load import load_tokenizer

    source = folder / "chats.jsonl"
    write_jsonl(source, megabytes, chat=True)
    plan = Preparation((str(source),), folder / "out", "demo", Columns({}))
    return {"rows": prepare_data(plan, load_tokenizer(TargetConfig())).num_rows}


def train(megabytes: int, folder: Path) -> dict[str, Any]:
    import deepspec
    from deepspec.config import DataConfig, RunConfig, TrainConfig
    from deepspec.strategy import Strategy

    source = folder / "text.jsonl"
    write_jsonl(source, megabytes, chat=False)
    chosen = RunConfig(
        strategy=Strategy.named("dspark"),
        data=DataConfig(paths=(str(source),), sequence_length=ROW),
        train=TrainConfig(num_steps=2),
        device="cpu",
    )
    deepspec.train(chosen.strategy, config=chosen, out=folder / "run")
    tokens = next((folder / "home" / "tokens").iterdir())
    return {"token_file_mb": round(tokens.stat().st_size / 1e6)}


def tokens(millions: int, folder: Path) -> dict[str, Any]:
    import torch

    from deepspec.data import BatchSampler, cache, split_held_out
    from deepspec.data.mapped import write_pieces

    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 1000, (1 << 16,), generator=drawn, dtype=torch.int32)
    flags = torch.ones(ROW, dtype=torch.bool)

    def pieces() -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
        made, number = 0, 0
        while made < millions * 1_000_000:
            size = ROW if number % 2 else 100  # a document of 356 tokens, cut into two
            start = number * 97 % (len(ids) - ROW)
            yield ids[start : start + size], flags[:size], number // 2
            made, number = made + size, number + 1

    path = folder / "tokens.safetensors"
    write_pieces(path, pieces())
    corpus = cache.read(path)
    assert corpus is not None
    kept, _ = split_held_out(corpus, 0.02, seed=0)
    kept.label_counts(1000)
    sampler = BatchSampler(kept, sequences=8, sequence_length=ROW, seed=0)
    for step in range(200):
        sampler.batch(step)
    return {"pieces": corpus.num_pieces, "token_file_mb": round(path.stat().st_size / 1e6)}


WAYS = {"prepare": prepare, "train": train, "tokens": tokens}
#: Of disk, in MB for each unit of size.
DISK = {"prepare": 2, "train": 2.5, "tokens": 7}


def measure_here(way: str, size: int, folder: Path) -> None:
    """Go through one size and print this process's peak and the seconds it took, as JSON."""
    started = time.perf_counter()
    found = WAYS[way](size, folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = time.perf_counter() - started
    print(json.dumps({"peak_mb": round(peak), "seconds": round(seconds), **found}))


def measure(way: str, size: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        free = shutil.disk_usage(folder).free / 1e6
        if free < 1.2 * DISK[way] * size:
            raise SystemExit(f"--{way} {size} takes {DISK[way] * size:,.0f} MB of disk; {free:,.0f} are free")
        command = [sys.executable, __file__, "--one", way, str(size), folder]
        environment = {**os.environ, "DEEPSPEC_HOME": f"{folder}/home"}
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    print(way, size, ran.stdout.strip(), flush=True)
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prepare", type=int, nargs="*", default=[50, 500], help="MB of JSONL")
    parser.add_argument("--train", type=int, nargs="*", default=[50, 500], help="MB of JSONL")
    parser.add_argument("--tokens", type=int, nargs="*", default=[200, 2000], help="millions")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        way, size, folder = given.one
        return measure_here(way, int(size), Path(folder))
    sizes = {"prepare": given.prepare, "train": given.train, "tokens": given.tokens}
    found = {way: {str(size): measure(way, size) for size in sizes[way]} for way in WAYS}
    kinds = {"data-memory": ("prepare",), "training-memory": ("train", "tokens")}
    for kind, ways in kinds.items():
        result = {way: found[way] for way in ways if found[way]}
        if result:
            for line in records.write(kind, result, seed=0, warm_up="none", repeats="one each"):
                print(line)
    return None


if __name__ == "__main__":
    main()
