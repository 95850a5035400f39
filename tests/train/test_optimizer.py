"""Which optimiser updates what, the learning-rate schedule, and state that survives a file."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from deepspec.config import TrainConfig
from deepspec.errors import CheckpointError
from deepspec.train.optimizer import DraftOptimizer, is_hidden_matrix, peak_learning_rate, schedule


def make_parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "hidden": (6, 4),
        "embedding": (50, 4),
        "output": (30, 4),
        "norm": (4,),
        "row": (1, 4),
        "frozen": (6, 4),
    }
    parameters = {
        name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()
    }
    parameters["frozen"].requires_grad_(False)
    return parameters


def set_gradients(parameters: dict[str, nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def make_optimizer(parameters: dict[str, nn.Parameter], **changes: object) -> DraftOptimizer:
    return DraftOptimizer(
        parameters, TrainConfig(num_steps=10, **changes), hidden_size=4, vocab_sizes={50, 30}
    )


def test_muon_takes_hidden_matrices_and_nothing_with_a_row_per_token():
    parameters = make_parameters()
    names = {name for name, p in parameters.items() if is_hidden_matrix(p, {50, 30})}
    assert names == {"hidden", "frozen"}
    moments = {
        "muon": {"hidden/momentum_buffer"},
        "adamw": {"hidden/exp_avg", "hidden/exp_avg_sq", "hidden/step"},
    }
    for optimizer, expected in moments.items():
        made = make_optimizer(parameters, optimizer=optimizer)
        set_gradients(parameters, 0)
        made.step(0)
        state = made.state_tensors()
        assert {key for key in state if key.startswith("hidden/")} == expected
        assert {"embedding/exp_avg", "output/exp_avg", "norm/exp_avg", "row/exp_avg"} <= set(state)


def test_frozen_parameters_stay_and_have_no_state():
    parameters = make_parameters()
    before = parameters["frozen"].clone()
    optimizer = make_optimizer(parameters)
    set_gradients(parameters, 0)
    optimizer.step(0)
    assert parameters["frozen"].equal(before)
    assert not any(key.startswith("frozen/") for key in optimizer.state_tensors())


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_restored_optimiser_goes_on_bit_for_bit(kind):
    straight, stopped = make_parameters(), make_parameters()
    optimizer, first = make_optimizer(straight, optimizer=kind), make_optimizer(stopped, optimizer=kind)
    for step in range(4):
        set_gradients(straight, step)
        optimizer.step(step)
    for step in range(2):
        set_gradients(stopped, step)
        first.step(step)
    second = make_optimizer(stopped, optimizer=kind)
    second.load_state_tensors({key: value.clone() for key, value in first.state_tensors().items()})
    for step in range(2, 4):
        set_gradients(stopped, step)
        second.step(step)
    for name in straight:
        assert straight[name].equal(stopped[name]), name


def test_state_of_another_model_is_refused():
    with pytest.raises(CheckpointError, match="stranger"):
        make_optimizer(make_parameters()).load_state_tensors({"stranger/exp_avg": torch.zeros(1)})


def test_a_gradient_that_is_not_a_number_changes_nothing():
    parameters = make_parameters()
    optimizer = make_optimizer(parameters)
    set_gradients(parameters, 0)
    parameters["norm"].grad[0] = float("nan")
    before = {name: p.detach().clone() for name, p in parameters.items()}
    norm, _ = optimizer.step(0)
    assert bool(norm.isnan())
    assert all(p.detach().equal(before[name]) for name, p in parameters.items())


def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_returned():
    parameters = {"norm": nn.Parameter(torch.zeros(4))}
    optimizer = make_optimizer(parameters, optimizer="adamw", clip_norm=0.5)
    parameters["norm"].grad = torch.full((4,), 10.0)
    norm, _ = optimizer.step(0)
    assert float(norm) == pytest.approx(20.0)
    moment = optimizer.state_tensors()["norm/exp_avg"]  # (1 - beta) times the clipped gradient
    assert float(moment.norm()) == pytest.approx(0.1 * 0.5, rel=1e-4)


def test_the_rate_warms_up_then_falls_like_a_cosine():
    factors = [schedule(step, num_steps=100, warmup_fraction=0.1) for step in range(100)]
    assert factors[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert all(a > b > 0 for a, b in pairwise(factors[10:]))


def test_the_default_peak_falls_with_width_as_each_optimiser_needs_and_a_given_one_stays():
    def peak(hidden_size: int, **changes: object) -> float:
        return peak_learning_rate(TrainConfig(**changes), hidden_size)

    assert peak(1024) == pytest.approx(peak(256) / 2)
    assert peak(1024, optimizer="adamw") == pytest.approx(peak(256, optimizer="adamw") / 4)
    assert peak(1024, learning_rate=0.5) == peak(256, learning_rate=0.5) == 0.5
