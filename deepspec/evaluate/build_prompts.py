"""Makes the shipped prompts: ``python -m deepspec.evaluate.build_prompts --out FOLDER``.

Both files come from the standard-library modules of the running CPython that no model of this repository
is trained on (``local_text.stdlib_files(held_out=True)``). ``stdlib.jsonl`` holds code from the start of a
top-level statement to the end of a line; ``prose.jsonl`` docstrings and comments broken off after a word.
Prompts of which a piece occurs in the training text of the demo target or drafter are left out. Users
never need to run this.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import logging
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deepspec.data.default import default_examples
from deepspec.data.examples import TextExample
from deepspec.data.local_text import TARGET_PACKAGES, SourceFile, stdlib_files
from deepspec.target import demo

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Sizes are in characters; what follows a prompt in its source must leave something to write."""

    num_prompts: int = 160
    per_module: int = 10
    code: tuple[int, int] = (400, 700)
    code_left: int = 120
    prose: tuple[int, int] = (90, 360)
    prose_left: int = 60
    probe: int = 60
    seed: int = 0


@dataclass(frozen=True)
class Prompt:
    """One prompt and the module it was cut from."""

    prompt: str
    source: str


def code_prompts(file: SourceFile, recipe: Recipe, rng: random.Random) -> Iterator[Prompt]:
    """Cuts that begin at top-level statements and do not overlap."""
    text = file.text()
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    taken = 0
    for node in ast.parse(text).body:
        decorators = getattr(node, "decorator_list", [])
        start = starts[min([node.lineno, *(d.lineno for d in decorators)]) - 1]
        if start < taken:
            continue
        low, high = recipe.code
        last = min(start + high, len(text) - recipe.code_left)
        ends = [end for end in starts if start + low <= end <= last]
        if ends:
            taken = rng.choice(ends)
            yield Prompt(text[start:taken], file.name)


def prose_prompts(file: SourceFile, recipe: Recipe, rng: random.Random) -> Iterator[Prompt]:
    """The beginnings of docstrings and of blocks of comments, broken off after a word."""
    low, high = recipe.prose
    for passage in [*docstrings(file.text()), *comment_blocks(file.text())]:
        if "copyright" in passage.lower():
            continue
        words = [match.end() for match in re.finditer(r"\S+", passage)]
        ends = [end for end in words if low <= end <= min(high, len(passage) - recipe.prose_left)]
        if ends:
            yield Prompt(passage[: rng.choice(ends)], file.name)


def docstrings(text: str) -> Iterator[str]:
    """Docstrings of a module, its classes and functions, dedented, in the order of the file."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(text)):
        found = ast.get_docstring(node) if isinstance(node, kinds) else None
        if found:
            yield found


def comment_blocks(text: str) -> Iterator[str]:
    """Runs of whole-line comments without their marks; those that look like code or rulers are left out."""
    block: list[str] = []
    for line in [*text.splitlines(), ""]:
        stripped = line.strip()
        if stripped.startswith("#"):
            block.append(stripped.lstrip("#").removeprefix(" ").rstrip())
        elif block:
            passage = inspect.cleandoc("\n".join(block))
            letters = sum(character.isalpha() or character.isspace() for character in passage)
            if passage and letters > 0.9 * len(passage) and not passage.startswith("!"):
                yield passage
            block = []


def squeeze(text: str) -> str:
    """The text with comment marks dropped and each run of white space made one space, to compare by."""
    return " ".join(text.replace("#", " ").split())


def training_text() -> str:
    """Everything that the demo target and drafter may be trained on, squeezed."""
    texts = [file.text() for file in dict.fromkeys(demo.corpus_files(demo.RECIPE, TARGET_PACKAGES))]
    texts += [e.text for e in default_examples([], byte_limit=2**62) if isinstance(e, TextExample)]
    return "\n".join(squeeze(text) for text in texts)


def is_known(prompt: str, corpus: str, probe: int) -> bool:
    """Whether the beginning, middle or end of a prompt occurs in ``corpus`` (squeezed)."""
    text = squeeze(prompt)
    places = (0, max(0, (len(text) - probe) // 2), max(0, len(text) - probe))
    return any(text[place : place + probe] in corpus for place in places)


def choose(candidates: Iterable[Prompt], corpus: str, recipe: Recipe, rng: random.Random) -> list[Prompt]:
    """At most ``num_prompts``, no two that begin alike, ``per_module`` of each module before any has more."""
    by_beginning = {squeeze(c.prompt)[: recipe.probe]: c for c in candidates}
    fresh = [c for c in by_beginning.values() if not is_known(c.prompt, corpus, recipe.probe)]
    log.info("%d distinct candidates, %d in no training text", len(by_beginning), len(fresh))
    rng.shuffle(fresh)
    counts: dict[str, int] = {}
    preferred: list[Prompt] = []
    rest: list[Prompt] = []
    for candidate in fresh:
        counts[candidate.source] = counts.get(candidate.source, 0) + 1
        (preferred if counts[candidate.source] <= recipe.per_module else rest).append(candidate)
    chosen = [*preferred, *rest][: recipe.num_prompts]
    return sorted(chosen, key=lambda c: (c.source, c.prompt))


def build(out: Path, recipe: Recipe) -> None:
    """Write both files into ``out``."""
    files = stdlib_files(held_out=True)
    corpus = training_text()
    for name, cut in (("stdlib", code_prompts), ("prose", prose_prompts)):
        rng = random.Random(recipe.seed)
        candidates = [prompt for file in files for prompt in cut(file, recipe, rng)]
        chosen = choose(candidates, corpus, recipe, rng)
        lines = [json.dumps({"prompt": c.prompt, "source": c.source}, ensure_ascii=False) for c in chosen]
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        log.info("%s: %d prompts from %d modules", name, len(chosen), len({c.source for c in chosen}))


def main() -> None:
    """Write the prompt files to ``--out``."""
    """Write the prompt files to ``--out``."""
    parser = argparse.ArgumentParser(prog="python -m deepspec.evaluate.build_prompts", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build(arguments.out, Recipe())


if __name__ == "__main__":
    main()
