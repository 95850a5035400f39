"""What we load gives the logits of the layout's own description, in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from deepspec.target import Target
from tests.formats import foreign as f
from tests.formats import forwards
from tests.formats.foreign import GEMMA, MASK, SHAPE, H
from tests.formats.forwards import Shape, Weights
from tests.formats.ours import CONTEXT, G, drafted, loaded, text

#: Of logits around 1, over two layers in float32.
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@dataclass(frozen=True)
class Block:
    """A case of the DFlash family: how it is written, its head, whether slot 0 drafts."""

    write: Callable[[Path, Target], Path]
    kind: str | None
    from_anchor: bool = True
    shape: Shape = SHAPE


BLOCKS = {
    "deepspec-vanilla": Block(f.deepspec_dspark, "vanilla"),
    "deepspec-gated": Block(lambda p, t: f.deepspec_dspark(p, t, "gated"), "gated"),
    "deepspec-rnn": Block(lambda p, t: f.deepspec_dspark(p, t, "rnn"), "rnn"),
    "deepspec-none": Block(lambda p, t: f.deepspec_dspark(p, t, None), None),
    "deepspec-gemma": Block(lambda p, t: f.deepspec_dspark(p, t, is_gemma=True), "vanilla", shape=GEMMA),
    "zlab": Block(f.sglang_dflash, None, from_anchor=False),
    "sglang-vanilla": Block(lambda p, t: f.sglang_dflash(p, t, "vanilla"), "vanilla"),
    "sglang-rnn": Block(lambda p, t: f.sglang_dflash(p, t, "rnn"), "rnn"),
    "modelopt-gated": Block(lambda p, t: f.sglang_dflash(p, t, "gated", flat=True), "gated"),
    "speculators-dflash": Block(f.speculators_dflash, None, from_anchor=False),
    "speculators-reduced": Block(lambda p, t: f.speculators_dflash(p, t, vocab=40), None, from_anchor=False),
    "speculators-dspark": Block(lambda p, t: f.speculators_dflash(p, t, "vanilla", vocab=40), "vanilla"),
    "speculators-gated": Block(lambda p, t: f.speculators_dflash(p, t, "gated"), "gated"),
}


@pytest.fixture(scope="module")
def targets() -> dict[bool, Target]:
    """By whether it is Gemma's."""
    return {False: f.tiny_target(), True: f.tiny_target("gemma3")}


def embedded(tokens: Tensor, target: Target, shape: Shape) -> Tensor:
    return target.info.embedding[tokens] * (H**0.5 if shape.is_gemma else 1.0)


def weights(folder: Path) -> Weights:
    found = load_file(folder / "model.safetensors")
    return {
        name.replace("confidence_proj.", "confidence_head.proj."): tensor for name, tensor in found.items()
    }


def described(
    w: Weights, case: Block, target: Target, tokens: Tensor, features: Tensor
) -> tuple[Tensor, Tensor | None]:
    width = G if case.from_anchor else G + 1
    block = torch.tensor([int(tokens[CONTEXT])] + [MASK] * (width - 1))
    read = embedded(block, target, case.shape)
    hidden = forwards.dflash_hidden(w, case.shape, features, read, 2)[width - G :]
    logits = forwards.capped(hidden @ w.get("lm_head.weight", target.info.lm_head).T, case.shape)
    if case.kind is None:
        return logits, None
    previous = tokens[CONTEXT : CONTEXT + G]
    head = forwards.below(w, "markov_head.") or w
    logits = logits + forwards.head_bias(head, case.kind, hidden, previous)
    known = torch.cat([hidden, head["markov_w1.weight"][previous]], -1)
    weight, bias = w["confidence_head.proj.weight"], w["confidence_head.proj.bias"]
    return logits, (known[:, : weight.shape[1]] @ weight.T + bias)[:, 0]


@pytest.mark.parametrize("name", BLOCKS)
def test_block_drafters_are_as_described(name, targets, tmp_path):
    case = BLOCKS[name]
    target = targets[case.shape.is_gemma]
    torch.manual_seed(1)
    folder = case.write(tmp_path, target)
    tokens, features = text()
    found, confidence = drafted(loaded(folder, target), tokens, features)
    wanted, rated = described(weights(folder), case, target, tokens, features)
    torch.testing.assert_close(found, wanted, **CLOSE)
    assert (confidence is None) == (case.kind is None)
    if case.kind is not None:
        torch.testing.assert_close(confidence, rated, **CLOSE)


def joint(w: Weights, features: Tensor) -> Tensor:
    return forwards.norm(features, w["input_norm.weight"], SHAPE.eps)


def each(w: Weights, features: Tensor) -> Tensor:
    chunks = features.split(H, dim=-1)
    normed = [forwards.norm(chunk, w[f"fc_norm.{tap}.weight"], SHAPE.eps) for tap, chunk in enumerate(chunks)]
    return torch.cat(normed, dim=-1)


@dataclass(frozen=True)
class Chain:
    """A case of Eagle 3: how it is written, and what of it is unusual."""

    write: Callable[[Path, Target], Path]
    first: str = "layers.0."
    taps: int = 2
    shape: Shape = SHAPE
    residual_normed: bool = False
    feeds_normed: bool = False
    prepare: Callable[[Weights, Tensor], Tensor] = lambda w, features: features


CHAINS = {
    "deepspec": Chain(f.deepspec_eagle3),
    "deepspec-gemma": Chain(lambda p, t: f.deepspec_eagle3(p, t, is_gemma=True), shape=GEMMA),
    "speculators": Chain(f.speculators_eagle3),
    "speculators-llama": Chain(lambda p, t: f.speculators_eagle3(p, t, model_type="llama", vocab=40)),
    "speculators-residual": Chain(
        lambda p, t: f.speculators_eagle3(p, t, norm_before_residual=True), residual_normed=True
    ),
    "speculators-output": Chain(lambda p, t: f.speculators_eagle3(p, t, norm_output=True), feeds_normed=True),
    "speculators-joint": Chain(lambda p, t: f.speculators_eagle3(p, t, norm_before_fc=True), prepare=joint),
    "speculators-each": Chain(lambda p, t: f.speculators_eagle3(p, t, fc_norm=True), prepare=each),
    "sglang": Chain(f.sglang_eagle3, "midlayer.", taps=3),
    "sglang-whole": Chain(lambda p, t: f.sglang_eagle3(p, t, vocab=None), "midlayer.", taps=3),
}


@pytest.mark.parametrize("name", CHAINS)
def test_eagle3_drafters_are_as_described(name, targets, tmp_path):
    case = CHAINS[name]
    target = targets[case.shape.is_gemma]
    torch.manual_seed(1)
    folder = case.write(tmp_path, target)
    tokens, features = text(case.taps)
    found, _ = drafted(loaded(folder, target), tokens, features)
    w = weights(folder)
    wanted = forwards.eagle3_logits(
        w,
        case.shape,
        case.prepare(w, features),
        embedded(tokens[1 : CONTEXT + G], target, case.shape),
        first=case.first,
        residual_normed=case.residual_normed,
        feeds_normed=case.feeds_normed,
    )
    torch.testing.assert_close(found, wanted, **CLOSE)
