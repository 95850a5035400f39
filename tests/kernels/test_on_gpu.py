"""What only a GPU can show of the kernels: real sizes, offsets past 2**31, capture in a CUDA graph.

The tests beside this one run on the GPU, too, with compiled kernels, where there is one.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deepspec.kernels import triton_rules
from deepspec.kernels.triton_rules import Workspace
from deepspec.sampling import SamplingParams, batch_sampling, categorical
from deepspec.types import Draft, TargetRows
from tests.kernels.rounds import DEVICE, Round, make_round
from tests.kernels.test_triton import DTYPES, EXACT, Tally, placed

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("rule", EXACT)
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_requests_decide_as_the_reference(rule: str, dtype: torch.dtype) -> None:
    tally = Tally()
    for seed, (num_draft, vocab) in enumerate([(7, 64), (15, 50), (3, 9000)]):
        given = make_round(seed, num_draft=num_draft, vocab=vocab, dtype=dtype, num=128)
        tally.compare(rule, given, categorical.BLOCK)
        given = make_round(
            seed, num_draft=num_draft, vocab=min(vocab, 64), dtype=dtype, num=128, truncate=True
        )
        tally.compare(rule, given, categorical.BLOCK, truncated=True)
    assert tally.excused <= 0.02 * tally.requests, tally  # 9,000 steps lie close


@pytest.mark.parametrize("rule", EXACT)
def test_a_captured_round_replays_with_new_input(rule: str) -> None:
    first, second = (
        placed(make_round(s, num_draft=3, vocab=5000, dtype=torch.bfloat16, num=32)) for s in (1, 2)
    )
    # The same packing, so that the second round's rows can be copied into the first's.
    second = replace(second, lengths=first.lengths, target=replace(second.target, starts=first.target.starts))
    rows = min(len(first.target.logits), len(second.target.logits))
    workspace = Workspace.allocate(32, 3, 5000, DEVICE)

    def run(given: Round, into: Workspace | None) -> tuple[torch.Tensor, torch.Tensor]:
        noise = (given.noise,) if rule == "delta" else (given.accept, given.residual)
        verdict = getattr(triton_rules, f"{rule}_rule")(
            given.target, given.draft, given.lengths, *noise, workspace=into
        )
        return verdict.accepted, verdict.bonus

    run(first, workspace)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        accepted, bonus = run(first, workspace)
    first.target.logits[:rows].copy_(second.target.logits[:rows])
    expected = run(first, None)
    workspace.poison()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(accepted, expected[0])
    assert torch.equal(bonus, expected[1])


def test_offsets_past_two_to_the_thirty_first() -> None:
    vocab = 151_936
    rows = 2**31 // vocab + 2
    logits = torch.zeros(rows, vocab, dtype=torch.bfloat16, device=DEVICE)
    logits[-1, 77] = 40.0
    sampling = batch_sampling([SamplingParams(), SamplingParams()], vocab, DEVICE)
    nothing = torch.zeros(2, 0, device=DEVICE)
    draft = Draft(nothing.long(), None, nothing, nothing)
    target = TargetRows(logits, torch.tensor([0, rows - 1], device=DEVICE), sampling)
    noise = torch.full((2, 1, 2), 0.5, dtype=torch.float64, device=DEVICE)
    verdict = triton_rules.delta_rule(target, draft, torch.zeros(2, dtype=torch.int64, device=DEVICE), noise)
    assert verdict.bonus.tolist()[1] == 77
