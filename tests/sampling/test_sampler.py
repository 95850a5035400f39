"""The sampler records the very q that it sampled."""

from __future__ import annotations

import torch

from deepspec.sampling import SamplingParams, batch_sampling, draw_draft


def test_the_recorded_q_is_that_of_the_tempered_row() -> None:
    stored = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    temperatures = [0.5, 1.0, 2.0]
    params = [SamplingParams(temperature=t) for t in temperatures]
    uniforms = torch.tensor([[0.1, 0.9], [0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)
    drawn = draw_draft(stored, batch_sampling(params, 7, torch.device("cpu")), uniforms)
    rows = stored.float() / torch.tensor(temperatures)[:, None]
    torch.testing.assert_close(drawn.log_sum_exp, rows.logsumexp(-1))
    torch.testing.assert_close(drawn.log_q, rows.log_softmax(-1)[range(3), drawn.tokens])
