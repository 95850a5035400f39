"""Tables of tensor names: one table reads a layout and writes it, so that the two are inverse."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Rule:
    """A name of the layout and ours; both end in a dot where they are beginnings of names.

    Attributes:
        to_ours, to_foreign: what becomes of the tensor, inverse to each other.
    """

    foreign: str
    ours: str
    to_ours: Callable[[Tensor], Tensor] = _as_it_is
    to_foreign: Callable[[Tensor], Tensor] = _as_it_is


@dataclass(frozen=True)
class NameTable:
    """Rules, of which the first that fits a name counts."""

    rules: tuple[Rule, ...]

    def knows(self, foreign: str) -> bool:
        """Whether a tensor of the layout has a name of ours."""
        return any(_fits(foreign, rule.foreign) for rule in self.rules)

    def our_name(self, foreign: str) -> str | None:
        """Our name of a tensor of the layout, None where no rule fits."""
        found = _first(rule for rule in self.rules if _fits(foreign, rule.foreign))
        return found[0].ours + foreign.removeprefix(found[0].foreign) if found else None

    def to_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by our names; those that no rule fits are left out."""
        return {
            rule.ours + name.removeprefix(rule.foreign): rule.to_ours(tensor)
            for name, tensor in tensors.items()
            for rule in _first(rule for rule in self.rules if _fits(name, rule.foreign))
        }

    def to_foreign(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by the layout's names; those that no rule fits are left out."""
        return {
            rule.foreign + name.removeprefix(rule.ours): rule.to_foreign(tensor)
            for name, tensor in tensors.items()
            for rule in _first(rule for rule in self.rules if _fits(name, rule.ours))
        }


def _fits(name: str, given: str) -> bool:
    return name.startswith(given) if given.endswith(".") else name == given


def _first(rules: Iterable[Rule]) -> list[Rule]:
    return [rule for rule, _ in zip(rules, range(1), strict=False)]
