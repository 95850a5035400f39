"""The peak of ``deepspec train`` at real sizes from stored features, no decoder layer of the target loaded.

A random target of V = 151,936 and hidden 2,560 (Qwen3-4B's shapes, six layers) is made and its features are
stored once; then DSpark with five draft layers of those shapes takes two steps. Each command is a process of
its own, whose largest resident set the kernel reports.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_memory import WORDS

from deepspec.paths import asset

SHAPE = {
    "vocab_size": 151_936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 6,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
DRAFTER = {"num_layers": 5, "target_layers": [0, 1, 2, 3, 4]}
TEXT = {"sequence_length": 256, "held_out_fraction": 0.2}
#: AdamW keeps two numbers of every weight, more than Muon.
TRAIN = {"num_steps": 2, "sequences_per_step": 2, "anchors_per_sequence": 48, "optimizer": "adamw"}


def save_target(folder: Path, shape: dict[str, Any]) -> None:
    """Random weights in bfloat16, laid out as the hub does, with the demo target's tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    Qwen3ForCausalLM(Qwen3Config(**shape, dtype="bfloat16")).save_pretrained(folder)
    AutoTokenizer.from_pretrained(asset("demo-target")).save_pretrained(folder)


def save_text(path: Path, documents: int = 6, words: int = 200) -> None:
    drawn = random.Random(0)
    lines = [json.dumps({"text": " ".join(drawn.choices(WORDS, k=words))}) for _ in range(documents)]
    path.write_text("\n".join(lines) + "\n")


def peak(command: Sequence[str]) -> tuple[float, float]:
    """Run it; GiB of its largest resident set, never less than this process's own, and seconds."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=sys.stderr)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return round(used.ru_maxrss / 2**20, 2), round(time.monotonic() - began, 1)


def sets(section: str, values: dict[str, Any]) -> list[str]:
    """As ``--set`` takes them."""
    given = [f"{section}.{key}={json.dumps(value)}" for key, value in values.items()]
    return [word for one in given for word in ("--set", one)]


def measure_cached(shape: dict[str, Any] = SHAPE) -> dict[str, Any]:
    """Peaks of storing features and of training on them."""
    command = [sys.executable, "-c", "from deepspec.cli import main; main()"]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        target, text = folder / "target", folder / "text.jsonl"
        subprocess.run([sys.executable, __file__, str(target), json.dumps(shape)], check=True)
        save_text(text)
        shared = ["--strategy", "dspark", "--target", str(target), "--data", str(text), "--device", "cpu"]
        shared += ["--set", "target.dtype=bfloat16", *sets("drafter", DRAFTER), *sets("data", TEXT)]
        stored = peak([*command, "features", *shared, "--folder", str(folder / "stored")])
        cached = {"source": "cached", "folder": str(folder / "stored")}
        words = [*sets("features", cached), *sets("train", TRAIN), "--out", str(folder / "run"), "--no-eval"]
        trained = peak([*command, "train", *shared, *words])
        log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    steps = [line for line in log if line["kind"] == "step"]
    return {
        "target": shape,
        "drafter": DRAFTER,
        "text": TEXT,
        "train": TRAIN,
        "storing": {"peak_gib": stored[0], "seconds": stored[1]},
        "training": {"peak_gib": trained[0], "seconds": trained[1]},
        "losses": [line["loss"] for line in steps],
    }


if __name__ == "__main__":
    save_target(Path(sys.argv[1]), json.loads(sys.argv[2]))
