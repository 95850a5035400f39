"""How long rounds of the real engine take, by requests, tokens drafted and verified, and prompt tokens.

Requests hold a context of random tokens and write with stop tokens ignored; which tokens they are does not
matter to time. A profile needs rounds of any shape, so the policy here gives the lengths it is told.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deepspec.calibrators.identity import IdentityCalibrator
from deepspec.engine import Engine, SamplingParams
from deepspec.heads.none import NoHead, NoHeadConfig
from deepspec.interfaces import BuildContext, LengthPolicy, PartConfig, Proposer, TargetInfo
from deepspec.strategy import Parts, Strategy
from deepspec.target import DecodingTarget
from deepspec.types import Anchors, Extension, Load, Proposal, RoundRecord
from deepspec.verifiers.block import BlockVerifier

WARM_UP = 2
_SEED = 0


@dataclass(frozen=True)
class RoundShape:
    """What a round is made of.

    Attributes:
        num_requests: R. num_draft: tokens drafted for each of them.
        verified: drafted tokens that are verified, of all requests together. prompt_tokens: beside them.
    """

    num_requests: int
    num_draft: int
    verified: int
    prompt_tokens: int = 0

    @classmethod
    def of_tokens(cls, tokens: int, num_requests: int, draft_length: int) -> RoundShape:
        """B ``tokens`` spread evenly over at most R requests, the rest of them prompt tokens."""
        num = min(tokens, num_requests)
        most = num * (1 + draft_length)
        verified = min(tokens, most) - num
        return cls(num, -(-verified // num), verified, max(0, tokens - most))


@dataclass(frozen=True)
class RoundTime:
    """A round as it was timed: B, its tokens in the target step, and seconds of the whole round."""

    tokens: int
    seconds: float


class RoundTimer:
    """Times rounds of one target and one set of parts.

    Args:
        target: the frozen target. parts: what drafts and verifies; the policy is replaced.
        num_requests: R at most. context_length: positions that every request holds at the start.
        prompt_tokens: at most, of a step, in prompts of ``context_length``.
        repeats: rounds that are timed of a shape at a time.
    """

    def __init__(
        self,
        target: DecodingTarget,
        parts: Parts,
        *,
        num_requests: int,
        context_length: int,
        prompt_tokens: int,
        repeats: int,
    ) -> None:
        self._context_length, self._repeats = context_length, repeats
        self._policy = _GivenLengths(PartConfig(), parts.policy.context)
        draft_length = parts.drafter.context.draft_length
        self._room = (1 + draft_length) * (2 + WARM_UP + repeats)
        self._rounds: list[RoundRecord] = []
        self._engine = Engine(
            target,
            replace(parts, policy=self._policy),
            max_batch=num_requests + -(-prompt_tokens // context_length),
            max_positions=context_length + self._room,
            prefill_chunk=max(1, prompt_tokens, num_requests * context_length),
            observers=[self._rounds.append],
        )
        self._vocab_size = target.info.vocab_size

    def time(self, shape: RoundShape) -> list[RoundTime]:
        """``repeats`` rounds of a shape, after some that warm up."""
        self._policy.num_draft, self._policy.verified = shape.num_draft, shape.verified
        running = [self._submit(self._context_length, self._room) for _ in range(shape.num_requests)]
        self._engine.step()  # takes in the prompts
        self._rounds.clear()
        prompts = []
        while len(self._rounds) < WARM_UP + self._repeats:
            for start in range(0, shape.prompt_tokens, self._context_length):
                prompts.append(self._submit(min(self._context_length, shape.prompt_tokens - start), 1))
            self._engine.step()
        for number in (*running, *prompts):
            self._engine.cancel(number)
            self._engine.completions.pop(number)
        return [
            RoundTime(record.verify_tokens, (record.draft_ms + record.verify_ms + record.other_ms) / 1e3)
            for record in self._rounds[WARM_UP:]
        ]

    def _submit(self, num_tokens: int, max_tokens: int) -> int:
        generator = torch.Generator().manual_seed(_SEED)
        prompt = torch.randint(0, self._vocab_size, (num_tokens,), generator=generator).tolist()
        return self._engine.submit(prompt, SamplingParams(max_tokens=max_tokens, ignore_stop=True))


class _GivenLengths(LengthPolicy):
    """Drafts and verifies as much as it is told, spread evenly over the requests."""

    name = "given"
    needs_confidence = False
    num_draft = 0
    verified = 0

    def draft_length(self, load: Load) -> int:
        return self.num_draft

    def lengths(self, survival: Tensor, drafted: Tensor, load: Load) -> Tensor:
        each, more = divmod(self.verified, len(drafted))
        return each + (torch.arange(len(drafted), device=drafted.device) < more).long()


class _NoEffort(Proposer):
    """Proposes token 0, which costs nothing, so that what remains of a round is the target's step."""

    name = "no-effort"

    def allocate(self, num_slots: int, max_positions: int, dtype: torch.dtype, device: torch.device) -> None:
        """Keeps nothing."""

    def extend(self, extension: Extension) -> None:
        """Keeps nothing."""

    def propose(self, anchors: Anchors) -> Proposal:
        tokens = anchors.tokens.new_zeros((len(anchors.tokens), anchors.num_draft))
        return Proposal(tokens, torch.full_like(anchors.tokens, anchors.num_draft))

    def release(self, slot: int) -> None:
        """Keeps nothing."""


def step_parts(target: TargetInfo, draft_length: int) -> Parts:
    """Parts whose rounds take what the target's step takes, verifying included, and no drafting."""
    context = BuildContext(target=target, draft_length=draft_length, hidden_size=target.hidden_size)
    config = PartConfig()
    return Parts(
        strategy=Strategy(name="profile", drafter="none", verifier="block"),
        drafter=_NoEffort(config, context),
        head=NoHead(NoHeadConfig(), context),
        calibrator=IdentityCalibrator(config, context),
        policy=_GivenLengths(config, context),
        verifier=BlockVerifier(config, context),
    )
