"""Parts made for these tests: given drafts and confidences, the block rule, and policies that cheat."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from deepspec.exact.toy import ToyTarget
from deepspec.hookspecs import hookimpl
from deepspec.interfaces import (
    Drafter,
    HeadStep,
    LengthPolicy,
    Part,
    Proposer,
    Readout,
    RoundUniforms,
    SequentialHead,
)
from deepspec.nn import SlotStore
from deepspec.plugins import create_plugin_manager, register
from deepspec.strategy import Parts, Strategy
from deepspec.types import (
    AnchorBlocks,
    Anchors,
    Draft,
    Extension,
    Features,
    Load,
    Proposal,
    TargetRows,
    TokenBatch,
    Verdict,
)
from deepspec.verifiers.block import BlockVerifier


class Still(Drafter[Tensor]):
    """The same hidden state everywhere: its last unit, the one that holds the target's bias, is ``bias``."""

    name = "still"
    bias: ClassVar[float] = 0.0
    target_layers = ()

    @property
    def hidden_size(self) -> int:
        return self.context.target.hidden_size

    def readout(self) -> Readout:
        return Readout(self.context.target.lm_head)

    def allocate(self, num_slots: int, max_positions: int, dtype: torch.dtype, device: torch.device) -> None:
        pass

    def extend(self, extension: Extension) -> None:
        pass

    def begin(self, anchors: Anchors) -> Tensor:
        return self._hidden(len(anchors.tokens))

    def step(self, state: Tensor, k: int, previous: Tensor) -> Tensor:
        return state

    def block(self, batch: TokenBatch, features: Features, anchors: AnchorBlocks) -> Tensor:
        return self._hidden(*anchors.labels.shape)

    def release(self, slot: int) -> None:
        pass

    def _hidden(self, *shape: int) -> Tensor:
        hidden = torch.zeros((*shape, self.hidden_size), dtype=torch.float64)
        hidden[..., -1] = self.bias
        return hidden


class Certain(Still):
    """Drafts from the target's own law, where that is one and the same everywhere."""

    name = "certain"
    bias = 1.0


class Echo(Proposer):
    """Proposes what followed the last time that the anchor's token came up, up to the anchor itself."""

    name = "echo"

    def allocate(self, num_slots: int, max_positions: int, dtype: torch.dtype, device: torch.device) -> None:
        self.text = SlotStore(num_slots, max_positions, (), dtype=torch.int64, device=device)

    def extend(self, extension: Extension) -> None:
        self.text.write(extension.rows, extension.positions, extension.tokens)

    def propose(self, anchors: Anchors) -> Proposal:
        self.text.write(anchors.slots, anchors.positions, anchors.tokens)
        text, at = self.text.read(anchors.slots, anchors.max_position + 1), anchors.positions[:, None]
        places = torch.arange(text.shape[1], device=text.device)
        last = torch.where((text == anchors.tokens[:, None]) & (places < at), places, -1).amax(dim=1)
        index = last[:, None] + torch.arange(1, anchors.num_draft + 1, device=text.device)
        tokens = text.gather(1, index.clamp(max=text.shape[1] - 1))
        lengths = (anchors.positions - last).clamp(max=anchors.num_draft)
        return self.said(Proposal(tokens, torch.where(last < 0, 0, lengths)), anchors)

    def said(self, proposal: Proposal, anchors: Anchors) -> Proposal:
        """What controls change."""
        return proposal

    def release(self, slot: int) -> None:
        pass


class Told(SequentialHead[int]):
    """Confidences as given: ``first``, then ``second[x]`` after token x, then one half."""

    name = "told"
    first: ClassVar[float] = 0.8
    second: ClassVar[tuple[float, ...]] = (0.9, 1e-9)
    output_weight = None
    confidence = "linear"

    def begin(self, hidden: Tensor) -> int:
        return 0

    def step(self, previous: Tensor, hidden: Tensor, state: int) -> tuple[HeadStep, int]:
        return HeadStep(None, self._at(state, previous).logit()), state + 1

    def block(self, previous: Tensor, hidden: Tensor) -> HeadStep:
        columns = [self._at(k, column) for k, column in enumerate(previous.unbind(1))]
        return HeadStep(None, torch.stack(columns, dim=1).logit())

    def _at(self, k: int, previous: Tensor) -> Tensor:
        if k == 1:
            return torch.tensor(self.second, dtype=torch.float64)[previous]
        return torch.full(previous.shape, self.first if k == 0 else 0.5, dtype=torch.float64)


class OneNoise(BlockVerifier):
    """Control 7: the token that closes a round is drawn with the noise that decided acceptance."""

    name = "one-noise"

    def verify(self, target: TargetRows, draft: Draft, lengths: Tensor, uniforms: RoundUniforms) -> Verdict:
        if draft.tokens.shape[1] > 0:
            shared = uniforms.accept[:, :1].expand(-1, 2)
            uniforms = replace(uniforms, residual=shared)
        return super().verify(target, draft, lengths, uniforms)


class Search(LengthPolicy):
    """Control 1: the best length of all by live confidences, with no stop at the first that does not pay."""

    name = "search"
    curve: ClassVar[tuple[float, ...]] = (1.0, 0.5, 0.45)

    def lengths(self, survival: Tensor, drafted: Tensor, load: Load) -> Tensor:
        expected = 1 + torch.nn.functional.pad(survival.cumsum(dim=1), (1, 0))
        speed = torch.tensor((*self.curve, 0.0, 0.0), dtype=survival.dtype)[: expected.shape[1]]
        return (expected * speed).argmax(dim=1).minimum(drafted)


class DeepestFirst(LengthPolicy):
    """Control 2: room for one more; of equal survival the deeper position goes first."""

    name = "deepest-first"

    def lengths(self, survival: Tensor, drafted: Tensor, load: Load) -> Tensor:
        rows, columns = torch.meshgrid(*(torch.arange(n) for n in survival.shape), indexing="ij")
        entries = zip(
            survival.flatten().tolist(), columns.flatten().tolist(), rows.flatten().tolist(), strict=True
        )
        _, depth, request = max(entries)
        lengths = torch.zeros_like(drafted)
        lengths[request] = depth + 1
        return lengths.minimum(drafted)


class ScaledSurvival(LengthPolicy):
    """Control 3: survival is calibrated by a factor for each position after the product was taken."""

    name = "scaled-survival"
    factors: ClassVar[tuple[float, ...]] = (0.5, 1.0, 1.5)

    def lengths(self, survival: Tensor, drafted: Tensor, load: Load) -> Tensor:
        factors = torch.tensor(self.factors, dtype=survival.dtype)[: survival.shape[1]]
        steps = torch.arange(1, survival.shape[1] + 1)
        return ((survival * factors >= 0.5) * steps).amax(dim=1).minimum(drafted)


class Gates(LengthPolicy):
    """Control 5: each request is verified when the other's second confidence is good; alone it always is."""

    name = "gates"

    def lengths(self, survival: Tensor, drafted: Tensor, load: Load) -> Tensor:
        if len(drafted) != 2:
            return drafted
        conditional = survival[:, 1] / survival[:, 0]
        return torch.where(conditional.flip(0) >= 0.5, drafted, 0)


class Peeks(LengthPolicy):
    """Verifies all when the whole block looks good, nothing when it does not."""

    name = "peeks"

    def lengths(self, survival: Tensor, drafted: Tensor, load: Load) -> Tensor:
        return torch.where(survival[:, -1] > 0.1, drafted, 0)


class _Plugin:
    def __init__(self, parts: tuple[type[Part], ...]) -> None:
        self.parts = parts

    @hookimpl
    def deepspec_parts(self) -> list[type]:
        return list(self.parts)


def built(target: ToyTarget, draft_length: int, *parts: type[Part], **names: object) -> Parts:
    """A composition of these parts, the rest by name."""
    manager = create_plugin_manager()
    register(manager, _Plugin(parts), name="made")
    chosen = {"drafter": "still", **{part.kind: part.name for part in parts}, **names}
    parts_ = Strategy(name="made", draft_length=draft_length, **chosen).build(target.info, manager=manager)
    parts_.modules().double()
    return parts_


def constant_target(*law: float) -> ToyTarget:
    """A target that gives every token this law, whatever came before."""
    target = ToyTarget(len(law))
    target.info.lm_head.zero_()
    target.info.lm_head[:, -1] = torch.tensor(law, dtype=torch.float64).log()
    return target
