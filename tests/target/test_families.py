"""Every family of targets by what a target is used for; README's table says which passes what.

A family that fails something is named in ``FAILS`` with the reason, and its test then wants the failure.
``UPDATE_SNAPSHOTS=1`` writes the table.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from deepspec.config import RunConfig, TargetConfig
from deepspec.engine import Engine, SamplingParams
from deepspec.plugins import create_plugin_manager, register
from deepspec.strategy import Parts, Strategy
from deepspec.target import Target, load_target
from deepspec.target.head import load_head
from deepspec.train.trainer import Trainer, make_objective
from deepspec.types import Span, TokenBatch
from tests.exact_statistics.compositions import build
from tests.families import FAMILIES, VOCAB, plain, save, target
from tests.target.knowing import Knowing

CPU = torch.device("cpu")
DRAFT_LENGTH, NUM_TOKENS = 4, 14
PROMPTS = [[5, 17, 3], [(7 * i) % VOCAB for i in range(1, 38)], [40, 41, 42, 43, 44, 45, 46, 47], [9]]
#: Of the largest number; float32, whose rounding layers and logits of about 2 amplify.
TOLERANCE = 1e-5
README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
#: ``(family, property): reason``.
FAILS: dict[tuple[str, str], str] = {}
#: What a family that is made in memory alone cannot be asked.
WITHOUT_FILES = {("Gemma 3, 8-bit weights", "stored features")}


def _close(ours: Tensor, theirs: Tensor) -> None:
    scale = float(theirs.abs().max())
    torch.testing.assert_close(ours / scale, theirs / scale, atol=TOLERANCE, rtol=0)


def _plain_logits(family: str, text: Tensor) -> Tensor:
    return plain(family)(input_ids=text[None], use_cache=False).logits[0]


def _texts(*lengths: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCAB, (length,), generator=generator) for length in lengths]


def features(family: str) -> None:
    """Of training text, two documents in a row and padding: the layers' outputs of each document alone."""
    made = target(family)
    documents = _texts(24, 9, 11)
    tokens = torch.stack([documents[0], torch.cat([*documents[1:], torch.zeros(4, dtype=torch.int64)])])
    segments = torch.tensor([[0] * 24, [0] * 9 + [1] * 11 + [-1] * 4])
    positions = torch.tensor([[*range(24)], [*range(9), *range(11), *[0] * 4]])
    found = made.features(TokenBatch(tokens, segments, positions, segments >= 0), (0, 2))
    places = [(0, slice(0, 24)), (1, slice(0, 9)), (1, slice(9, 20))]
    for document, (row, columns) in zip(documents, places, strict=True):
        output = plain(family)(input_ids=document[None], use_cache=False, output_hidden_states=True)
        states = output.hidden_states
        _close(found.tapped[row, columns], torch.cat([states[1][0], states[3][0]], dim=-1))
        _close(found.last_hidden[row, columns], states[-1][0])
    assert found.last_hidden[1, 20:].abs().sum() == 0


def packed_forward(family: str) -> None:
    """Prompts whole and in chunks, packed with others' single tokens, and without slots."""
    made, texts = target(family), _texts(5, 40, 11, 40)
    wanted = [_plain_logits(family, text) for text in texts]
    bare = made.forward(torch.cat(texts), [Span(0, 0, len(text)) for text in texts], None, ())
    for ours, theirs in zip(made.logits(bare.last_hidden).split([5, 40, 11, 40]), wanted, strict=True):
        _close(ours, theirs)
    slots, done = (3, 0, 1, 5), [0, 0, 0, 0]
    cache = made.new_slots(6, 64)
    for step in ((5, 33, 1, 33), (0, 1, 9, 6), (0, 6, 1, 1)):
        spans = [Span(slot, at, n) for slot, at, n in zip(slots, done, step, strict=True) if n]
        rows = [text[at : at + n] for text, at, n in zip(texts, done, step, strict=True)]
        logits = made.logits(made.forward(torch.cat(rows), spans, cache, ()).last_hidden).split(list(step))
        for i, n in enumerate(step):
            if n:
                _close(logits[i], wanted[i][done[i] : done[i] + n])
            done[i] += n
    assert done == [5, 40, 11, 40]


def rollback(family: str) -> None:
    """Blocks of random lengths, of which random numbers of tokens are kept, nothing to everything."""
    made, texts = target(family), _texts(5, 40, 11, 7)
    slots, cache = [3, 0, 1, 5], made.new_slots(6, 128)
    made.forward(torch.cat(texts), [Span(s, 0, len(t)) for s, t in zip(slots, texts, strict=True)], cache, ())
    generator = torch.Generator().manual_seed(2)
    for step in range(6):
        active = [i for i in range(4) if i != step % 4]
        lengths = torch.randint(1, 9, (3,), generator=generator).tolist()
        blocks = _texts(*lengths, seed=step)
        spans = [Span(slots[i], len(texts[i]), n) for i, n in zip(active, lengths, strict=True)]
        logits = made.logits(made.forward(torch.cat(blocks), spans, cache, ()).last_hidden).split(lengths)
        for i, block, ours in zip(active, blocks, logits, strict=True):
            whole = torch.cat([texts[i], block])
            _close(ours, _plain_logits(family, whole)[-len(block) :])
            kept = int(torch.randint(0, len(block) + 1, (1,), generator=generator))
            texts[i] = whole[: len(texts[i]) + kept]


def training_step(family: str) -> None:
    """A step of each built-in drafter that reads features: a finite loss moves every weight."""
    made = target(family)
    (tokens,) = _texts(2 * 32)
    tokens, positions = tokens.view(2, 32), torch.arange(32).expand(2, 32)
    batch = TokenBatch(tokens, torch.zeros_like(tokens), positions, torch.ones_like(tokens, dtype=torch.bool))
    for name in ("dspark", "eagle3", "mtp"):
        parts = build(made.info, name, DRAFT_LENGTH, torch.float32)
        settings = {"anchors_per_sequence": 4, "num_steps": 3}
        trainer = Trainer(
            parts,
            made,
            objective=make_objective(parts, made, create_plugin_manager()),
            sampler=SimpleNamespace(batch=lambda number: batch),
            config=RunConfig.model_validate({"strategy": parts.strategy, "train": settings}),
            device=CPU,
        )
        before = {key: weight.clone() for key, weight in parts.modules().named_parameters()}
        result = trainer.step(1, measure=True)
        assert 0 < result.gradient_norm < float("inf")
        still = [key for key, weight in parts.modules().named_parameters() if weight.equal(before[key])]
        assert [key for key in still if "confidence" not in key] == []


def _knowing(made: Target, texts: list[list[int]], **parts: object) -> Parts:
    """Parts whose drafter knows most of what the target will say."""
    manager = create_plugin_manager()
    register(manager, Knowing.plugin(texts), name="knowing")
    strategy = Strategy(name="knowing", draft_length=DRAFT_LENGTH, drafter="knowing", **parts)
    return strategy.build(made.info, manager=manager)


def _outputs(made: Target, parts: Parts | None, params: list[SamplingParams]) -> list[list[int]]:
    engine = Engine(made, parts, max_batch=len(PROMPTS), max_positions=96, prefill_chunk=16)
    return [list(done.tokens) for done in engine.run(PROMPTS, params)]


def greedy_decoding(family: str) -> None:
    """Tokens as transformers' model gives them one by one, whatever is drafted and refused."""
    made = target(family)
    params = [SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_stop=True)] * len(PROMPTS)
    outputs = _outputs(made, None, params)
    known = [prompt + output for prompt, output in zip(PROMPTS, outputs, strict=True)]
    for prompt, text in zip(PROMPTS, known, strict=True):
        best = _plain_logits(family, torch.tensor(text)).argmax(dim=-1)
        assert best[len(prompt) - 1 : -1].tolist() == text[len(prompt) :]
    assert _outputs(made, _knowing(made, known), params) == outputs
    assert _outputs(made, build(made.info, "dspark", DRAFT_LENGTH, torch.float32), params) == outputs


def sampled_decoding(family: str) -> None:
    """Under the delta rule the tokens of plain decoding with the same seeds, and so its law."""
    made = target(family)
    params = [
        SamplingParams(temperature=0.9, max_tokens=NUM_TOKENS, ignore_stop=True, seed=seed)
        for seed in range(len(PROMPTS))
    ]
    outputs = _outputs(made, None, params)
    known = [prompt + output for prompt, output in zip(PROMPTS, outputs, strict=True)]
    assert _outputs(made, _knowing(made, known, verifier="delta"), params) == outputs


def without_layers(family: str) -> None:
    """Loaded from files without its layers, as training on stored features reads it: all else is the same."""
    with TemporaryDirectory() as folder:
        save(family, folder)
        config = TargetConfig(name=folder)
        whole, head = load_target(config, device="cpu"), load_head(config, device="cpu", fingerprint="")
    for name, value in vars(whole.info).items():
        same = value.equal if isinstance(value, Tensor) else value.__eq__
        assert name == "vocabulary" or same(getattr(head.info, name)), name
    hidden = torch.randn(3, whole.info.hidden_size)
    assert head.logits(hidden).equal(whole.logits(hidden))
    (text,) = _texts(20)
    loaded = whole.forward(text, [Span(0, 0, 20)], None, ())
    _close(whole.logits(loaded.last_hidden), _plain_logits(family, text))


PROPERTIES: dict[str, Callable[[str], None]] = {
    "features": features,
    "packed forward": packed_forward,
    "rollback": rollback,
    "training step": training_step,
    "greedy decoding": greedy_decoding,
    "sampled decoding": sampled_decoding,
    "stored features": without_layers,
}


CELLS = [(family, name) for family in FAMILIES for name in PROPERTIES if (family, name) not in WITHOUT_FILES]


@pytest.mark.parametrize(("family", "name"), CELLS)
def test_a_family_does_what_a_target_is_used_for(family: str, name: str) -> None:
    torch.manual_seed(3)
    with torch.set_grad_enabled(name == "training step"):
        if reason := FAILS.get((family, name)):
            with pytest.raises(Exception, match=reason):
                PROPERTIES[name](family)
        else:
            PROPERTIES[name](family)


def _table() -> str:
    lines = [f"| target | {' | '.join(PROPERTIES)} |", "|---" * (1 + len(PROPERTIES)) + "|"]
    for family in FAMILIES:
        cells = [
            FAILS.get((family, name), "passes") if (family, name) in CELLS else "-" for name in PROPERTIES
        ]
        lines.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_readme_says_which_family_passes_what() -> None:
    text = README.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    wanted = f"{head}{BEGIN}\n{_table()}\n{END}{rest.split(END)[1]}"
    if os.environ.get("UPDATE_SNAPSHOTS") == "1":
        README.write_text(wanted, encoding="utf-8")
    assert README.read_text(encoding="utf-8") == wanted, "UPDATE_SNAPSHOTS=1 writes the table anew"
