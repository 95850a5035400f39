"""The draft vocabulary: all of the target's tokens, or the frequent ones alone, for a smaller LM head."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from deepspec.context import Readout, TargetInfo
from deepspec.errors import ConfigError


class DraftVocabulary(nn.Module):
    """The target's frozen LM head, or some of its rows, cut out once and not in every round.

    Which rows is kept in checkpoints as ``target_ids``, int64 ``[Vd]`` in rising order. Until :meth:`choose`
    these are the first ones.

    Args:
        size: Vd, None for the whole vocabulary.
        own_head: whether the drafter has a LM head of its own, ``lm_head [Vd, D]``, that starts as the
            target's rows and is trained.
    """

    target_ids: Tensor | None
    rows: Tensor | None
    lm_head: nn.Parameter | None

    def __init__(self, info: TargetInfo, size: int | None, *, own_head: bool = False) -> None:
        super().__init__()
        if size is not None and not 1 <= size <= info.vocab_size:
            raise ConfigError(
                f"drafter.draft_vocab_size is {size}; allowed are 1..{info.vocab_size}, as the target has"
            )
        self.info = info  # not the weight itself, which would become a parameter
        self.register_buffer("target_ids", None if size is None else torch.arange(size))
        first = info.lm_head[:size]
        self.register_parameter("lm_head", nn.Parameter(first.clone()) if own_head else None)
        is_whole = own_head or size is None
        self.register_buffer("rows", None if is_whole else first.clone(), persistent=False)
        self.register_load_state_dict_post_hook(type(self).cut_rows)  # type: ignore[no-untyped-call]

    @property
    def weight(self) -> Tensor:
        """``[Vd, D]``, the LM head's rows."""
        if self.lm_head is not None:
            return self.lm_head
        return self.info.lm_head if self.rows is None else self.rows

    def readout(self) -> Readout:
        """The logits' weights as the engine and the loss read them."""
        trained = self.lm_head is not None
        return Readout(self.weight, self.info.final_softcap, target_ids=self.target_ids, trained=trained)

    @torch.no_grad()
    def choose(self, counts: Tensor, required: Iterable[int]) -> float | None:
        """Take the tokens that occur most often, int64 ``counts [V]``, ``required`` ids among them.

        Returns:
            The share of all occurrences that the draft vocabulary covers, None when it is the whole one.

        Raises:
            ConfigError: there is no room for the required ones.
        """
        if self.target_ids is None:
            return None
        ids, size = sorted(set(required)), len(self.target_ids)
        if len(ids) > size:
            raise ConfigError(
                f"drafter.draft_vocab_size is {size}; the target has {len(ids)} special tokens, give more"
            )
        ranked = counts.clone()
        ranked[ids] = counts.max() + 1
        kept = ranked.argsort(descending=True, stable=True)[:size].sort().values
        self.target_ids.copy_(kept)
        self.cut_rows()
        if self.lm_head is not None:
            self.lm_head.copy_(self.info.lm_head[kept])
        return float(counts[kept].sum() / counts.sum())

    @torch.no_grad()
    def cut_rows(self, *_: object) -> None:
        """Bring the cut rows up to date, also after a checkpoint was loaded."""
        if self.target_ids is not None and self.rows is not None:
            self.rows.copy_(self.info.lm_head[self.target_ids])
