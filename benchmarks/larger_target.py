"""A larger target than the demo's, made where a GPU is, and text that it wrote itself to train drafters on.

One command does what is not yet done and ends soon after ``--minutes``; the same command goes on from there:
it packs the sources of the standard library and of all installed packages into tokens, once; it trains a
deep and thin Qwen3 of 23 million parameters on them for 131 million tokens (``--set`` changes the recipe);
and it lets the model continue cuts of held-out packages, block by block. Held-out modules of the standard
library, which the shipped prompts are from, and exact copies of them are not trained on. FOLDER gets
``larger-target``, which is a target with its ``build-log.json`` (the curve of held-out perplexity), and
``continuations``, which is training text. Nothing is fetched.

From a checkout that is installed, on a machine with a GPU, without a network, in this order, each command
ending within ten minutes and repeated until it has nothing left to do; none of it was measured on a GPU:

    python benchmarks/larger_target.py ../larger --compile --minutes 8
    python benchmarks/strategies.py --target ../larger/larger-target --data ../larger/continuations \\
        --runs ../larger/runs --steps 4500 --minutes 7
    python benchmarks/strategies.py --target ../larger/larger-target --data ../larger/continuations \\
        --runs ../larger/runs --steps 4500 --minutes 7 --draft-lengths 15

Leave ``--compile`` away where there is no C compiler. The minutes of ``strategies.py`` bound the training: a
cell that is trained by then is measured after them. Its record lies under ``benchmarks/results``. Where the
machine does not stay, keep that, ``continuations`` and ``larger-target`` (45 MB); with them this command goes
on without ``tokens.safetensors`` and ``training.safetensors``, which only training needs.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer

from deepspec.config import TargetConfig
from deepspec.data.build_continuations import ROW_TOKENS, as_line, cut_prompts
from deepspec.data.local_text import SourceFile, installed_packages, package_files, stdlib_files
from deepspec.engine import Engine, SamplingParams
from deepspec.paths import written_whole
from deepspec.target import load_target
from deepspec.target.demo import corpus_files, corpus_record, token_rows, train_tokenizer, write_build_log
from deepspec.target.load import resolve_device
from deepspec.target.pretrain import Pretraining, Recipe, fit, save_model

RECIPE = Recipe(
    vocab_size=8_192,
    num_layers=28,
    hidden_size=256,
    intermediate_size=704,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    context=512,
    sequences_per_step=64,
    num_steps=4_000,
    stop_step=4_000,
    warmup_steps=100,
    learning_rate=3.5e-3,  # the demo's, with the spectral norm of an update kept: times sqrt(192 / 256)
    stdlib_repeats=2,
    package_byte_limit=50_000_000,
    seed=0,
)
LOG_EVERY = 250
BLOCK = 512  # continuations of a file, decoded together

IsOver = Callable[[], bool]


def changed(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with ``key=value`` settings; training takes all of the schedule's steps."""
    kinds = {field.name: type(getattr(recipe, field.name)) for field in dataclasses.fields(recipe)}
    del kinds["stop_step"]
    values: dict[str, Any] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        try:
            values[key] = kinds[key](value)
        except (KeyError, ValueError):
            allowed = ", ".join(f"{name}={kind.__name__}" for name, kind in kinds.items())
            raise SystemExit(f"--set {setting}: allowed are {allowed}") from None
    made = dataclasses.replace(recipe, **values)
    return dataclasses.replace(made, stop_step=made.num_steps)


def without_copies(files: Sequence[SourceFile], held_out: Sequence[SourceFile]) -> list[SourceFile]:
    """The files whose bytes are neither those of a held-out file nor of another before them."""
    owners: dict[bytes, Path] = {}
    for file in held_out:
        owners.setdefault(hashlib.sha256(file.path.read_bytes()).digest(), file.path)
    held = {file.path for file in held_out}
    kept = []
    for file in files:
        owner = owners.setdefault(hashlib.sha256(file.path.read_bytes()).digest(), file.path)
        if owner == file.path and owner not in held:
            kept.append(file)
    return kept


def pack(folder: Path, recipe: Recipe) -> None:
    """Make the tokenizer and write ``tokens.safetensors``: rows, and in its header what they are of."""
    started = time.monotonic()
    held_out = stdlib_files(held_out=True)
    packages = [name for name in installed_packages() if package_files([name])]
    files = without_copies(corpus_files(recipe, packages), held_out)
    tokenizer = train_tokenizer(files, recipe.vocab_size)
    tokenizer.save_pretrained(folder / "larger-target")
    rows = {
        name: token_rows(tokenizer, of, recipe.context)
        for name, of in (("train", files), ("held_out", held_out))
    }
    corpus = corpus_record(files, rows["train"].numel(), packages)
    made = {"recipe": dataclasses.asdict(recipe), "corpus": corpus}
    header = {"made": json.dumps(made)}  # one key: safetensors writes several in any order
    with written_whole(folder / "tokens.safetensors") as partial:
        save_file(rows, partial, metadata=header)
    print(
        f"packed {rows['train'].numel():,} tokens of {len(files):,} files of the standard library and "
        f"{len(packages)} packages, {rows['held_out'].numel():,} held out, "
        f"in {time.monotonic() - started:.0f} s",
        flush=True,
    )


def check_recipe(folder: Path, begun: dict[str, Any], recipe: Recipe) -> None:
    """Refuse to go on in a folder that was begun with another recipe."""
    wanted = dataclasses.asdict(recipe)
    was = ", ".join(f"{key}={begun[key]}" for key in wanted if begun[key] != wanted[key])
    if was:
        raise SystemExit(f"{folder} was begun with {was}; go on with that (--set), or give another folder")


def is_trained(folder: Path, recipe: Recipe) -> bool:
    """Whether the target's own log says so; its weights are written before that."""
    path = folder / "larger-target" / "build-log.json"
    if not path.exists():
        return False
    log = json.loads(path.read_text())
    check_recipe(folder, log["recipe"], recipe)
    return log["curve"][-1]["step"] == recipe.last_step


def train(folder: Path, recipe: Recipe, *, compiled: bool, is_over: IsOver) -> None:
    """Go on with the training, at least by a step, and save where it is."""
    with safe_open(folder / "tokens.safetensors", framework="pt") as packed:
        header = json.loads(packed.metadata()["made"])
        rows, held_out = packed.get_tensor("train"), packed.get_tensor("held_out")
    check_recipe(folder, header["recipe"], recipe)
    state, out = folder / "training.safetensors", folder / "larger-target"
    end = AutoTokenizer.from_pretrained(out).eos_token_id
    training = Pretraining(recipe, end, device=resolve_device(None), compiled=compiled)
    if state.exists():
        training.load(state)
    started, first = time.monotonic(), training.step

    def record() -> None:
        save_model(training.model, out)
        write_build_log(out, training, header["corpus"], held_out.numel())
        training.save(state)

    fit(training, rows, held_out, log_every=LOG_EVERY, on_point=record, is_over=is_over)
    training.save(state)
    tokens = (training.step - first) * recipe.sequences_per_step * recipe.context
    parameters = sum(p.numel() for p in training.model.parameters())
    print(
        f"trained to step {training.step} of {recipe.last_step}: {parameters / 1e6:.1f} M parameters, "
        f"{tokens / (time.monotonic() - started):,.0f} tokens/s",
        flush=True,
    )


def write_continuations(folder: Path, count: int, is_over: IsOver) -> bool:
    """Write the blocks of continuations that are missing, at least one; returns whether all are there."""
    place = folder / "continuations"
    place.mkdir(exist_ok=True)
    blocks = {number: place / f"{number:04}.jsonl" for number in range(math.ceil(count / BLOCK))}
    missing = [number for number, path in blocks.items() if not path.exists()]
    if not missing:
        return True
    target = load_target(TargetConfig(name=str(folder / "larger-target")))
    assert target.tokenizer is not None, "it was packed with one"
    for number in missing:
        prompts = cut_prompts(target.tokenizer, BLOCK, seed=number)
        engine = Engine(target, None, max_batch=BLOCK, max_positions=ROW_TOKENS + 1, seed=number)
        params = [SamplingParams(max_tokens=ROW_TOKENS - len(prompt)) for prompt in prompts]
        lines = [as_line(done, target.tokenizer) for done in engine.run(prompts, params)]
        with written_whole(blocks[number]) as partial:
            partial.write_text("".join(lines), encoding="utf-8")
        print(f"wrote {blocks[number]}", flush=True)
        if is_over():
            return number == missing[-1]
    return True


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, help="stop soon after; the next run goes on from there")
    parser.add_argument("--compile", action="store_true", help="train through torch.compile")
    parser.add_argument("--continuations", type=int, default=16_384, metavar="N", help=f"in files of {BLOCK}")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    return parser.parse_args(arguments)


def go_on(options: argparse.Namespace, recipe: Recipe, is_over: IsOver) -> bool:
    """Do what is not yet done, at least a step or a block of it; returns whether all is."""
    folder: Path = options.folder
    if not is_trained(folder, recipe):
        if not (folder / "tokens.safetensors").exists():
            pack(folder, recipe)
        train(folder, recipe, compiled=options.compile, is_over=is_over)
        if is_over():
            return False
    return write_continuations(folder, options.continuations, is_over)


def main(arguments: Sequence[str] | None = None) -> int:
    started = time.monotonic()
    options = parse(arguments)
    minutes = math.inf if options.minutes is None else options.minutes
    is_done = go_on(options, changed(RECIPE, options.set), lambda: time.monotonic() >= started + 60 * minutes)
    print("complete" if is_done else "stopped; the same command goes on from here")
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    sys.exit(main())
