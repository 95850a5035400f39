"""Memory does not grow with the text: tokens are written as they are made and read where they lie."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Peaks of one process over a text and over one ten times as long; a peak is set back by the 5.
CODE = """
import json, sys
from pathlib import Path
import torch
from deepspec.data import BatchSampler, TextExample, split_held_out, tokenize_once
from tests.tiny_tokenizer import tokenizer

WORDS = "the cat sat on " * 130

class Many:
    def __init__(self, count): self.count = count
    def __iter__(self): return (TextExample(f"f:{n}", f"{n} {WORDS}") for n in range(self.count))

def peak(count):
    Path("/proc/self/clear_refs").write_text("5")
    corpus = tokenize_once(Many(count), made, sequence_length=256)
    kept, _ = split_held_out(corpus, 0.02, seed=0)
    kept.label_counts(300)
    sampler = BatchSampler(kept, sequences=8, sequence_length=256, seed=0)
    for step in range(sampler.num_rows // 8):
        sampler.batch(step)
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024, corpus.num_tokens

made = tokenizer()
peak(100)
print(json.dumps([peak(count) for count in (100, 1000)]))
"""


def test_an_epoch_over_ten_times_the_text_takes_no_more_memory(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    (small, few), (large, many) = json.loads(ran.stdout)
    assert many > 9 * few > 1_500_000
    # In memory, 5 bytes a token and as much again while pieces are put together: 28 MB more, measured.
    assert large - small < 1.5 * 5 * (many - few) / 2**20
