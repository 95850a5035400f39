"""One engine step on device: draft, choose lengths, one packed target forward, verify, extend the drafter.

The host learns the verdict in one copy (``to_host``); rows, spans and noise it knows beforehand. On a CPU
verify rows are packed to the chosen lengths; on other devices every request gets 1 + G rows, so that
nobody waits for the lengths.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepspec.engine.chances import acceptance_chances
from deepspec.engine.draft import check_lengths
from deepspec.engine.halves import Halves
from deepspec.engine.history import RoundHistory
from deepspec.engine.noise import round_noise
from deepspec.engine.queue import StepPlan
from deepspec.engine.request import Request
from deepspec.engine.transfer import as_floats, as_words, to_host
from deepspec.interfaces import OnlineCalibrator, RoundUniforms, SeenRounds
from deepspec.sampling import SamplingParams, batch_sampling
from deepspec.strategy import Parts
from deepspec.target import DecodingTarget
from deepspec.target.packed import span_rows
from deepspec.types import Anchors, Draft, Extension, Features, Load, Sampling, Span, TargetRows, Verdict


@dataclass(frozen=True)
class StepOutcome:
    """What the host learns of a step.

    Attributes:
        requests: those with a verdict: the decoding ones, then those whose prompt ended, in plan order.
        accepted, bonus, verified, drafted: R numbers each. drafts: R rows of G tokens.
        signals: float32 ``[R, n, G]`` of the decoding requests, n = 2 where the step is traced, else 0:
            confidence logits and acceptance chances, NaN where there is none.
        spans: what went through the target, decoding requests first, then chunks.
        features: target features of the spans' rows.
        draft_ms, verify_ms: wall time up to the end of each half.
    """

    requests: tuple[Request, ...]
    accepted: list[int]
    bonus: list[int]
    verified: list[int]
    drafted: list[int]
    drafts: list[list[int]]
    signals: NDArray[np.float32]
    spans: tuple[Span, ...]
    features: Features
    draft_ms: float
    verify_ms: float


@dataclass(frozen=True)
class _Round:
    """The decoding requests' drafts.

    Attributes:
        counts, lengths: int64 ``[R]`` on device, how many tokens were drafted and are verified.
        confidence: logits ``[R, G]`` on the drafter's device, None where the head gives none.
        classes: int64 ``[R]`` there, the requests' traffic classes.
        rows: how many drafted tokens of each request go through the target (host side).
    """

    draft: Draft
    counts: Tensor
    lengths: Tensor
    confidence: Tensor | None
    classes: Tensor
    anchors: Tensor
    rows: list[int]
    noise: RoundUniforms
    sampling: Sampling


class Loop:
    """Drives one target and one set of parts over one set of KV slots."""

    def __init__(
        self,
        target: DecodingTarget,
        parts: Parts,
        cache: Any,
        steps_per_second: Tensor | None,
        *,
        traced: bool = False,
    ) -> None:
        self.target, self.parts, self.cache, self.traced = target, parts, cache, traced
        self._steps_per_second = steps_per_second
        self._history = RoundHistory(parts.drafter.context.draft_length)
        self._layers = parts.drafter.target_layers
        self._draft_device = parts.drafter.context.target.embedding.device
        self.packs_rows = target.device.type == "cpu"  # elsewhere nobody waits for the lengths
        self._last_sampling: tuple[tuple[SamplingParams, ...], Sampling] | None = None
        self.halves = Halves(target, parts)
        target.check_layers(self._layers)

    def run(self, plan: StepPlan) -> StepOutcome:
        """Draft, forward and verify; :meth:`extend` follows once the host has committed the outcome."""
        started = time.perf_counter()
        prefill_tokens = sum(chunk.count for chunk in plan.chunks)
        load = self._load(len(plan.decoding), prefill_tokens)
        num_draft = self.parts.policy.draft_length(load) if plan.decoding else 0
        begun = self._draft(plan.decoding, num_draft, load) if plan.decoding else None
        drafted = time.perf_counter()
        spans, features, hidden = self._forward(plan, begun)
        # Only a step without prompts, and untraced, reads its logits inside the verdict.
        logits = self.target.logits(hidden) if plan.chunks or self.traced else None
        columns: list[list[Tensor]] = []
        signals: list[Tensor] = []
        if begun is not None:
            verdict, signals = self._verify(plan, begun, hidden, logits)
            words = [as_words(signal) for signal in signals]
            columns.append(
                [verdict.accepted, verdict.bonus, begun.lengths, begun.counts, begun.draft.tokens, *words]
            )
        closing = tuple(chunk.request for chunk in plan.chunks if chunk.is_last)
        if closing and logits is not None:
            verdict = self._close_prompts(closing, logits[len(logits) - len(closing) :])
            none = torch.zeros_like(verdict.bonus)
            empty = none.new_zeros((len(closing), num_draft * (1 + len(signals))))
            columns.append([verdict.accepted, verdict.bonus, none, none, empty])
        table = to_host(columns)
        check_lengths(self.parts, table[:, 3].tolist())
        decoded = table[: len(plan.decoding)]
        self._history.observe(decoded[:, 0], decoded[:, 2], num_draft)
        verified = time.perf_counter()
        return StepOutcome(
            requests=plan.decoding + closing,
            accepted=table[:, 0].tolist(),
            bonus=table[:, 1].tolist(),
            verified=table[:, 2].tolist(),
            drafted=table[:, 3].tolist(),
            drafts=table[:, 4 : 4 + num_draft].tolist(),
            signals=as_floats(table[: len(plan.decoding), 4 + num_draft :], len(signals)),
            spans=tuple(spans),
            features=features,
            draft_ms=1e3 * (drafted - started),
            verify_ms=1e3 * (verified - drafted),
        )

    def extend(self, outcome: StepOutcome, requests: Sequence[Request], kept: Sequence[int]) -> None:
        """Give the drafter the committed rows: the first ``kept[i]`` of span i, none where it is 0."""
        if not any(kept):
            return
        entries = [(s, r, n) for s, r, n in zip(outcome.spans, requests, kept, strict=True) if n > 0]
        spans = tuple(Span(s.slot, s.start, n) for s, _, n in entries)
        slots, positions = span_rows(spans)
        offsets = np.cumsum([0] + [s.length for s in outcome.spans])
        index = [np.arange(o, o + n) for o, n in zip(offsets, kept, strict=False) if n > 0]
        tokens = [t for s, r, n in entries for t in r.tokens[s.start : s.start + n]]
        following = [t for s, r, n in entries for t in r.tokens[s.start + 1 : s.start + n + 1]]
        self.parts.drafter.extend(
            Extension(
                slots=self._ids([span.slot for span in spans], draft=True),
                spans=spans,
                rows=self._ids(slots, draft=True),
                positions=self._ids(positions, draft=True),
                tokens=self._ids(tokens, draft=True),
                next_tokens=self._ids(following, draft=True),
                features=self._kept_features(outcome.features, np.concatenate(index)),
            )
        )

    def _verify(
        self, plan: StepPlan, begun: _Round, hidden: Tensor, logits: Tensor | None
    ) -> tuple[Verdict, list[Tensor]]:
        """The decoding requests' verdict, from which an online calibrator learns, and what is traced."""
        rows = np.cumsum([0, *(1 + n for n in begun.rows)])
        starts, draft, lengths = self._ids(rows[:-1]), begun.draft, begun.lengths
        if logits is None:
            verdict = self.halves.verify(hidden, starts, begun.sampling, draft, lengths, begun.noise)
        else:
            target = TargetRows(logits[: rows[-1]], starts, begun.sampling)
            verdict = self.parts.verifier.verify(target, draft, lengths, begun.noise)
        calibrator, confidence = self.parts.calibrator, begun.confidence
        if isinstance(calibrator, OnlineCalibrator) and confidence is not None:
            place = confidence.device
            seen = SeenRounds(confidence, lengths.to(place), verdict.accepted.to(place), begun.classes)
            calibrator.observe(seen)
        if not self.traced or logits is None or not draft.tokens.shape[1]:
            return verdict, []
        if confidence is None:
            confidence = torch.full(draft.tokens.shape, float("nan"))
        chances = acceptance_chances(target, draft, lengths)
        return verdict, [confidence.to(chances.device), chances]

    def _load(self, num_requests: int, prefill_tokens: int) -> Load:
        past = self._history.load(num_requests, prefill_tokens)
        return replace(
            past, steps_per_second=self._steps_per_second, earlier_survival=self.halves.earlier_survival
        )

    def _draft(self, decoding: Sequence[Request], num_draft: int, load: Load) -> _Round:
        positions = [len(r.tokens) - 1 for r in decoding]
        sampling = self._sampling(decoding)
        noise, verdict_noise = round_noise(
            [r.seed for r in decoding], positions, num_draft, self.parts.verifier.streams, self.target.device
        )
        anchors = self._ids([r.tokens[-1] for r in decoding])
        classes = self._ids([r.traffic_class for r in decoding], draft=True)
        counts = lengths = torch.zeros_like(anchors)
        draft, confidence = _empty_draft(anchors, noise), None
        if num_draft > 0:
            start = Anchors(
                slots=self._ids([r.slot for r in decoding], draft=True),
                tokens=anchors.to(self._draft_device),
                positions=self._ids(positions, draft=True),
                spans=tuple(Span(r.slot, len(r.tokens) - 1, 1) for r in decoding),
                num_draft=num_draft,
            )
            drafted, lengths = self.halves.draft(
                start,
                _sampling_on(sampling, self._draft_device),
                noise.to(self._draft_device),
                load,
                classes,
            )
            draft, confidence = _draft_on(drafted.draft, self.target.device), drafted.confidence
            counts = drafted.lengths.to(self.target.device)
        rows = lengths.tolist() if self.packs_rows else [num_draft] * len(decoding)
        return _Round(draft, counts, lengths, confidence, classes, anchors, rows, verdict_noise, sampling)

    def _forward(self, plan: StepPlan, begun: _Round | None) -> tuple[list[Span], Features, Tensor]:
        """One target forward; last hidden states of the verify rows, then of each prompt's last token."""
        spans, parts, wanted = [], [], []
        if begun is not None:
            block = torch.cat([begun.anchors[:, None], begun.draft.tokens], dim=1)
            width = block.shape[1]
            spans += [
                Span(r.slot, len(r.tokens) - 1, 1 + n) for r, n in zip(plan.decoding, begun.rows, strict=True)
            ]
            flat = block.flatten()
            if any(1 + n < width for n in begun.rows):
                flat = flat[
                    self._ids(
                        np.concatenate(
                            [np.arange(i * width, i * width + 1 + n) for i, n in enumerate(begun.rows)]
                        )
                    )
                ]
            parts.append(flat)
        num_verify = sum(span.length for span in spans)
        total = num_verify
        for chunk in plan.chunks:
            spans.append(Span(chunk.request.slot, chunk.start, chunk.count))
            parts.append(self._ids(chunk.request.tokens[chunk.start : chunk.start + chunk.count]))
            total += chunk.count
            if chunk.is_last:
                wanted.append(total - 1)
        features = self.target.forward(torch.cat(parts), spans, self.cache, self._layers)
        hidden = features.last_hidden
        if plan.chunks:
            hidden = hidden[self._ids([*range(num_verify), *wanted])]
        return spans, features, hidden

    def _close_prompts(self, requests: Sequence[Request], logits: Tensor) -> Verdict:
        """The first token of requests whose prompt is in: a round of length 0."""
        positions = [r.prompt_length - 1 for r in requests]
        reads = self.parts.verifier.streams
        noise, uniforms = round_noise([r.seed for r in requests], positions, 0, reads, self.target.device)
        rows = torch.arange(len(requests), device=self.target.device)
        target = TargetRows(logits, rows, self._sampling(requests))
        return self.parts.verifier.verify(target, _empty_draft(rows, noise), torch.zeros_like(rows), uniforms)

    def _sampling(self, requests: Sequence[Request]) -> Sampling:
        params = tuple(r.params for r in requests)
        if self._last_sampling is None or self._last_sampling[0] != params:
            self._last_sampling = (
                params,
                batch_sampling(params, self.target.info.vocab_size, self.target.device),
            )
        return self._last_sampling[1]

    def _ids(self, values: Sequence[int] | NDArray[np.int64], *, draft: bool = False) -> Tensor:
        device = self._draft_device if draft else self.target.device
        return torch.from_numpy(np.asarray(values, dtype=np.int64)).to(device, non_blocking=True)

    def _kept_features(self, features: Features, index: NDArray[np.int64]) -> Features:
        if len(index) < len(features.last_hidden):
            rows = self._ids(index)
            features = Features(features.tapped[rows], features.last_hidden[rows])
        device = self._draft_device
        return Features(features.tapped.to(device), features.last_hidden.to(device))


def _empty_draft(like: Tensor, noise: Tensor) -> Draft:
    tokens = like.new_zeros((len(like), 0))
    none = noise.new_zeros((len(like), 0))
    return Draft(tokens=tokens, logits=None, log_sum_exp=none, log_q=none)


def _draft_on(draft: Draft, device: torch.device) -> Draft:
    logits = None if draft.logits is None else draft.logits.to(device)
    return Draft(draft.tokens.to(device), logits, draft.log_sum_exp.to(device), draft.log_q.to(device))


def _sampling_on(sampling: Sampling, device: torch.device) -> Sampling:
    return replace(sampling, temperature=sampling.temperature.to(device))
