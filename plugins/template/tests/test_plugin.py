"""What DeepSpec asks of any part and strategy, and what is this head's own."""

import torch
from deepspec_template.head import TemplateHead

from deepspec import Strategy
from deepspec.testing import ToyTarget, check_part, check_strategy


def test_the_head_keeps_its_contract_and_the_output_law() -> None:
    check_part(TemplateHead).raise_if_failed()


def test_the_strategy_as_installed_keeps_the_output_law() -> None:
    check_strategy("template").raise_if_failed()


def test_a_token_changes_the_two_positions_after_it() -> None:
    head = Strategy.named("template").build(ToyTarget(vocab_size=5).info).head
    one, other = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[4, 1, 2, 3]])
    hidden = torch.zeros(1, 4, head.context.hidden_size)
    latent, changed = (head.block(previous, hidden).latent for previous in (one, other))
    assert (latent != changed).any(dim=-1).tolist() == [[True, True, False, False]]
