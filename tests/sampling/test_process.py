"""Temperature, top-k, top-p and min-p, in that order, with ties kept."""

from __future__ import annotations

import pytest
import torch

from deepspec.errors import ConfigError
from deepspec.sampling import SamplingParams, batch_sampling, process_rows

CPU = torch.device("cpu")


def _kept(logits: list[float], **params: float) -> list[int]:
    rows = process_rows(torch.tensor([logits]), batch_sampling([SamplingParams(**params)], len(logits), CPU))
    return torch.isfinite(rows[0]).nonzero()[:, 0].tolist()


def test_top_k_keeps_every_token_tied_with_the_cut() -> None:
    assert _kept([3.0, 1.0, 2.0, 1.0, 0.0], top_k=3) == [0, 1, 2, 3]


def test_top_p_keeps_the_smallest_set_and_its_ties() -> None:
    logits = torch.tensor([0.4, 0.3, 0.15, 0.15]).log().tolist()
    assert _kept(logits, top_p=0.4) == [0]
    assert _kept(logits, top_p=0.69) == [0, 1]
    assert _kept(logits, top_p=0.75) == [0, 1, 2, 3]


def test_min_p_is_relative_to_the_largest() -> None:
    assert _kept(torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist(), min_p=0.25) == [0, 1, 2]


def test_top_p_is_taken_after_top_k() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().tolist()
    # Within the top two, 0.4/0.7 = 0.571 already reaches 0.57.
    assert _kept(logits, top_k=2, top_p=0.57) == [0]


def test_greedy_keeps_the_first_largest_token_only() -> None:
    assert _kept([1.0, 2.0, 2.0], temperature=0.0) == [1]


def test_requests_of_one_batch_keep_their_own_parameters() -> None:
    params = [SamplingParams(temperature=0.5), SamplingParams(temperature=0.0), SamplingParams(top_k=1)]
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([0, 0, 1, 2, 2])
    mixed = process_rows(logits, batch_sampling(params, 6, CPU), rows)
    for i, request in enumerate(rows.tolist()):
        alone = process_rows(logits[i : i + 1], batch_sampling([params[request]], 6, CPU))
        torch.testing.assert_close(mixed[i : i + 1].log_softmax(-1), alone.log_softmax(-1))


def test_a_neighbours_top_p_cuts_nothing_from_a_request_without_one() -> None:
    logits = 3 * torch.randn(8, 20_000, generator=torch.Generator().manual_seed(0))
    params = [SamplingParams()] * 7 + [SamplingParams(top_p=0.9)]
    rows = process_rows(logits, batch_sampling(params, 20_000, CPU))
    assert torch.isfinite(rows[:7]).all()
    assert torch.isfinite(rows[7]).sum() < 20_000


def test_stored_bf16_rows_are_upcast_before_temperature() -> None:
    stored = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    sampling = batch_sampling([SamplingParams(temperature=0.7)] * 3, 8, CPU)
    got = process_rows(stored, sampling)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, stored.float() / torch.tensor(0.7))


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1.0), ("temperature", float("nan")), ("top_p", 0.0), ("min_p", 1.5), ("max_tokens", 0)],
)
def test_impossible_parameters_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        SamplingParams(**{name: value})
