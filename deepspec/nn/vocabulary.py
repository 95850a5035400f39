"""The draft vocabulary: all of the target's tokens, or the frequent ones alone, for a smaller LM head."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from deepspec.context import TargetInfo
from deepspec.errors import ConfigError


class DraftVocabulary(nn.Module):
    """The target's frozen LM head, or some of its rows, cut out once and not in every round.

    Which rows is kept in checkpoints as ``target_ids``, int64 ``[Vd]`` in rising order. Until :meth:`choose`
    these are the first ones.

    Args:
        size: Vd, None for the whole vocabulary.
    """

    target_ids: Tensor | None
    rows: Tensor

    def __init__(self, info: TargetInfo, size: int | None) -> None:
        super().__init__()
        if size is not None and not 1 <= size <= info.vocab_size:
            raise ConfigError(
                f"drafter.draft_vocab_size is {size}; allowed are 1..{info.vocab_size}, as the target has"
            )
        self.info = info  # not the weight itself, which would become a parameter
        self.register_buffer("target_ids", None if size is None else torch.arange(size))
        self.register_buffer("rows", None if size is None else info.lm_head[:size].clone(), persistent=False)
        self.register_load_state_dict_post_hook(type(self).cut_rows)  # type: ignore[no-untyped-call]

    @property
    def weight(self) -> Tensor:
        """``[Vd, D]``, the LM head's rows."""
        return self.info.lm_head if self.target_ids is None else self.rows

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
        return float(counts[kept].sum() / counts.sum())

    @torch.no_grad()
    def cut_rows(self, *_: object) -> None:
        """Bring the cut rows up to date, also after a checkpoint was loaded."""
        if self.target_ids is not None:
            self.rows.copy_(self.info.lm_head[self.target_ids])
