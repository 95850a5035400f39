"""N-gram lookup: what followed the last time that the text ended as it does now (prompt lookup decoding).

The longest suffix of a request's own text that occurred before is found, of ``max_ngram`` to ``min_ngram``
tokens; of several occurrences the most recent counts. Source: Apoorv Saxena, "Prompt Lookup Decoding", 2023,
https://github.com/apoorvumang/prompt-lookup-decoding.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor

from deepspec.interfaces import PartConfig, Proposer
from deepspec.nn import SlotStore
from deepspec.types import Anchors, Extension, Proposal


class NgramConfig(PartConfig):
    """Options of n-gram lookup."""

    max_ngram: int = Field(default=4, ge=1, description="longest suffix that is looked for")
    min_ngram: int = Field(default=1, ge=1, description="shortest suffix that is looked for")

    @model_validator(mode="after")
    def _in_order(self) -> NgramConfig:
        if self.min_ngram > self.max_ngram:
            raise ValueError(f"min_ngram is {self.min_ngram}; allowed are 1..{self.max_ngram} (max_ngram)")
        return self


class NgramProposer(Proposer):
    """Proposes from the request's own text, prompt and output alike; no weights, no training."""

    name = "ngram"
    Config = NgramConfig
    config: NgramConfig

    def allocate(self, num_slots: int, max_positions: int, dtype: torch.dtype, device: torch.device) -> None:
        self.text = SlotStore(num_slots, max_positions, (), dtype=torch.int64, device=device)

    def extend(self, extension: Extension) -> None:
        self.text.write(extension.rows, extension.positions, extension.tokens)

    def release(self, slot: int) -> None:
        """Nothing to do: a slot's next request overwrites it, and nobody reads past a request's own text."""

    def propose(self, anchors: Anchors) -> Proposal:
        self.text.write(anchors.slots, anchors.positions, anchors.tokens)
        where = anchors.slots if anchors.slot_range is None else anchors.slot_range
        text = self.text.read(where, anchors.max_position + 1)
        end, found = self._last_match(text, anchors.positions)
        steps = torch.arange(1, anchors.num_draft + 1, device=text.device)
        followed = text.gather(1, (end[:, None] + steps).clamp(max=text.shape[1] - 1))
        lengths = (anchors.positions - end).clamp(max=anchors.num_draft)
        return Proposal(followed, torch.where(found, lengths, 0))

    def _last_match(self, text: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Where the suffix of ``text [R, L]`` up to positions ``last [R]`` occurred before.

        Returns:
            The position int64 ``[R]`` of the occurrence's last token, and bool ``[R]`` whether there is one.
        """
        places = torch.arange(text.shape[1], device=text.device)
        alike = places < last[:, None]
        matched = torch.zeros_like(text)
        for back in range(min(self.config.max_ngram, text.shape[1])):
            token = text.gather(1, (last - back).clamp(min=0)[:, None])
            earlier = text[:, : text.shape[1] - back]
            # The tokens that many places back; before the text's first one nothing matches.
            same = torch.nn.functional.pad(earlier == token, (back, 0))
            alike = alike & same
            matched = matched + alike
        best, end = (matched * text.shape[1] + places).max(dim=1)
        return end, best >= self.config.min_ngram * text.shape[1]
