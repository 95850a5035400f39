"""What only a GPU can show of the rules: real sizes, offsets past 2**31, capture in a CUDA graph.

The tests beside this one run on the GPU, too, with compiled kernels, where there is one.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deepspec.kernels import triton_rules
from deepspec.kernels.triton_rules import Workspace
from deepspec.sampling import SamplingParams, batch_sampling
from deepspec.types import Draft, TargetRows, Verdict
from tests.kernels.rounds import DEVICE, RULES, Round, Shape, differing, random_round

pytestmark = pytest.mark.gpu
#: With thousands of tokens a uniform lies often within the margin of a step.
EXCUSED = 0.02


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_many_requests_decide_as_the_reference(rule: str, dtype: torch.dtype) -> None:
    for seed, (num_draft, vocab) in enumerate([(7, 64), (15, 50), (3, 9000)]):
        shape = Shape(num=128, num_draft=num_draft, vocab=vocab, dtype=dtype, likeness=0.4)
        different, wrong = differing(rule, random_round(shape, seed), block=4096)
        assert not wrong
        assert len(different) <= EXCUSED * 128


@pytest.mark.parametrize("rule", RULES)
def test_a_captured_round_replays_with_new_rows(rule: str) -> None:
    shape = Shape(num=32, num_draft=3, vocab=5000, dtype=torch.bfloat16, packed=False)
    first, second = random_round(shape, 1), random_round(shape, 2)
    workspace = Workspace.allocate(32, 3, 5000, DEVICE)

    def run(given: Round, into: Workspace | None) -> Verdict:
        decide = getattr(triton_rules, f"{rule}_rule")
        return decide(given.target, given.draft, given.lengths, *given.uniforms(rule), workspace=into)

    run(first, workspace)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        verdict = run(first, workspace)
    wanted = run(replace(first, target=replace(first.target, logits=second.target.logits)), None)
    first.target.logits.copy_(second.target.logits)
    workspace.accepted.fill_(-1)
    workspace.bonus.fill_(-1)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(verdict.accepted, wanted.accepted)
    assert torch.equal(verdict.bonus, wanted.bonus)


def test_offsets_past_two_to_the_thirty_first() -> None:
    vocab = 151_936
    rows = 2**31 // vocab + 2
    logits = torch.zeros(rows, vocab, dtype=torch.bfloat16, device=DEVICE)
    logits[-1, 77] = 40.0
    sampling = batch_sampling([SamplingParams(), SamplingParams()], vocab, DEVICE)
    nothing = torch.zeros(2, 0, device=DEVICE)
    target = TargetRows(logits, torch.tensor([0, rows - 1], device=DEVICE), sampling)
    noise = torch.full((2, 1, 2), 0.5, dtype=torch.float64, device=DEVICE)
    lengths = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    draft = Draft(nothing.long(), None, nothing, nothing)
    verdict = triton_rules.delta_rule(target, draft, lengths, noise)
    assert verdict.bonus.tolist()[1] == 77
