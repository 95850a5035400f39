"""Writes the demo target's own continuations of text that it was not trained on.

``python -m deepspec.data.build_continuations FILE`` is how ``assets/demo-text/continuations.jsonl`` was made:
random cuts of the held-out packages' sources, continued at temperature 1 by plain decoding. Drafters for
the demo target train on it, because that is the text they will draft.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.config import TargetConfig
from deepspec.data.chat import encode_prompt
from deepspec.data.local_text import HELD_OUT_PACKAGES, package_files
from deepspec.engine import Completion, Engine, SamplingParams
from deepspec.generate import REPLACEMENT
from deepspec.target import load_target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_PROMPTS = 2_304
ROW_TOKENS = 255  # with an end token, one training row
_PROMPT_TOKENS = (8, 24, 48, 64)
_PROMPT_CHARACTERS = 400
_FEWEST_CHARACTERS = 600


def cut_prompts(tokenizer: PreTrainedTokenizerBase, count: int, seed: int = 0) -> list[list[int]]:
    """Token prompts of 8 to 64 tokens, each from the start of a random line of a random file."""
    texts = [file.text() for file in package_files(HELD_OUT_PACKAGES)]
    generator = random.Random(seed)
    prompts: list[list[int]] = []
    while len(prompts) < count:
        text = generator.choice(texts)
        if len(text) < _FEWEST_CHARACTERS:
            continue
        start = text.find("\n", generator.randrange(0, len(text) - 500)) + 1
        tokens = list(encode_prompt(tokenizer, text[start : start + _PROMPT_CHARACTERS]))
        tokens = tokens[: generator.choice(_PROMPT_TOKENS)]
        if len(tokens) >= min(_PROMPT_TOKENS):
            prompts.append(tokens)
    return prompts


def as_line(done: Completion, tokenizer: PreTrainedTokenizerBase) -> str:
    """One JSONL line of prompt and response, or "" when their bytes are no text or spell out a special token.

    A response that reached the maximum is not complete; half a character at its end is left out.
    """
    prompt, response = (
        tokenizer.decode(part, skip_special_tokens=True) for part in (done.prompt, done.tokens)
    )
    was_cut = done.finish_reason == "length"
    if was_cut:
        response = response.rstrip(REPLACEMENT)
    unwanted = (REPLACEMENT, *tokenizer.all_special_tokens)
    if not response or any(part in prompt + response for part in unwanted):
        return ""
    line = {"prompt": prompt, "response": response}
    return json.dumps({**line, "complete": False} if was_cut else line) + "\n"


def main() -> None:
    """Write the continuations to the file that is named on the command line."""
    """Write the continuations to the file that is named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m deepspec.data.build_continuations", description=__doc__)
    parser.add_argument("file", type=Path)
    file: Path = parser.parse_args().file
    target = load_target(TargetConfig())
    assert target.tokenizer is not None, "the demo target has a tokenizer"
    prompts = cut_prompts(target.tokenizer, NUM_PROMPTS)
    engine = Engine(target, None, max_batch=64, max_positions=256, seed=7)
    done = engine.run(prompts, [SamplingParams(max_tokens=ROW_TOKENS - len(prompt)) for prompt in prompts])
    file.write_text("".join(as_line(completion, target.tokenizer) for completion in done))


if __name__ == "__main__":
    main()
