"""A strategy is a frozen value: a name, one configuration for each of the five parts, and an objective.

It has no behaviour of its own; :meth:`Strategy.build` looks the parts up in the plugins and assembles
them for one target. Nothing here imports torch before ``build``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema

from deepspec.errors import ConfigError, nearest
from deepspec.validation import validate

if TYPE_CHECKING:
    import pluggy
    from torch import nn

    from deepspec.interfaces import (
        BuildContext,
        Calibrator,
        Drafter,
        LengthPolicy,
        PartConfig,
        Proposer,
        SequentialHead,
        TargetInfo,
        Verifier,
    )

#: The five parts, in the order of the data.
PART_KINDS = ("drafter", "head", "calibrator", "policy", "verifier")


class PartSpec(BaseModel):
    """Which part, and its options; the bare name ``s`` means ``{"type": s}``."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str = Field(description="the part's registered name; its options are the other keys")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler.resolve_ref_schema(handler(schema))]}

    @property
    def options(self) -> dict[str, Any]:
        """The part's own settings, not yet validated by its ``Config``."""
        return dict(self.model_extra or {})


class Objective(BaseModel):
    """What training minimises: a weighted sum of loss terms."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    terms: dict[str, float] = Field(default={"ce": 1.0}, description="weight of each loss term, by its name")
    position_weights: Literal["decay", "survival"] = Field(
        default="decay",
        description="survival: position k weighs what the drafter's own survival makes of it (D-PACE)",
    )
    position_decay: float | None = Field(
        default=4.0,
        gt=0,
        description="for position_weights=decay: position k weighs exp(-(k-1)/decay); null weighs all alike",
    )

    @field_validator("terms")
    @classmethod
    def _some_term(cls, terms: dict[str, float]) -> dict[str, float]:
        if not any(weight > 0 for weight in terms.values()) or any(weight < 0 for weight in terms.values()):
            raise ValueError("needs at least one term with a positive weight, and none with a negative one")
        return terms


def _or_name(schema: dict[str, Any]) -> None:
    """Let the schema of a field take a name, too."""
    schema["anyOf"] = [{"type": "string"}, {"$ref": schema.pop("$ref")}]


class Strategy(BaseModel):
    """A composition of the five parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="what runs made with it are called")
    draft_length: int = Field(default=7, ge=1, description="G, tokens drafted after the anchor")
    drafter: PartSpec = Field(description="what hidden state predicts position k")
    head: PartSpec = Field(
        default=PartSpec(type="none"), description="how a drafted token changes the next logits"
    )
    calibrator: PartSpec = Field(
        default=PartSpec(type="identity"), description="what a confidence means as a probability"
    )
    policy: PartSpec = Field(default=PartSpec(type="fixed"), description="how much to draft and to verify")
    verifier: PartSpec = Field(
        default=PartSpec(type="block"), description="which prefix is kept and what token closes the round"
    )
    objectives: dict[str, Objective] = Field(
        default={}, description="alternatives that `objective` may name, as in --set objective=paper"
    )
    objective: Objective = Field(
        default=Objective(), description="what training minimises", json_schema_extra=_or_name
    )

    @field_validator("objective", mode="before")
    @classmethod
    def _by_name(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str):
            return value
        known = info.data.get("objectives", {})
        if value not in known:
            raise ValueError(f"no objective of {info.data.get('name')!r}; {nearest(value, known)}")
        return known[value]

    @classmethod
    def named(cls, name: str, manager: pluggy.PluginManager | None = None) -> Strategy:
        """The composition that a plugin registered as ``name``; raises ConfigError with the nearest name."""
        from deepspec.plugins import create_plugin_manager, find_strategy

        return find_strategy(manager or create_plugin_manager(), name)

    def replace(self, **changes: Any) -> Strategy:
        """A changed copy.

        A part given by a bare name or with ``type`` is replaced; options without ``type`` join those it has.
        ``objective`` takes the fields to change, or the name of one of ``objectives``. Raises ConfigError.
        """
        values = self.model_dump()
        for key, change in changes.items():
            merges = (
                isinstance(change, Mapping) and isinstance(values.get(key), dict) and "type" not in change
            )
            values[key] = {**values[key], **change} if merges else change
        return validate(Strategy, values, "strategy")

    def check(self, manager: pluggy.PluginManager | None = None) -> dict[str, tuple[Any, PartConfig]]:
        """Class and validated configuration of each part, by kind; raises ConfigError in one clear line."""
        from deepspec.plugins import create_plugin_manager, resolve_part

        manager = manager or create_plugin_manager()
        found = {}
        for kind in PART_KINDS:
            spec: PartSpec = getattr(self, kind)
            cls = resolve_part(manager, kind, spec.type)
            found[kind] = (cls, validate(cls.Config, spec.options, f"{kind} {spec.type!r}"))
        return found

    def build(self, target: TargetInfo, *, manager: pluggy.PluginManager | None = None) -> Parts:
        """Assemble the five parts for ``target``: the drafter first, then the parts that read its sizes."""
        from deepspec.interfaces import BuildContext, Proposer

        found = self.check(manager)
        context = BuildContext(target=target, draft_length=self.draft_length)
        cls, config = found.pop("drafter")
        drafter: Drafter[Any] | Proposer = cls(config, context)
        if isinstance(drafter, Proposer):
            context = replace(context, draft_vocab_size=target.vocab_size)
        else:
            rows = drafter.readout().weight.shape[0]
            context = replace(context, hidden_size=drafter.hidden_size, draft_vocab_size=rows)
        others = {kind: _built(drafter, cls, config, context) for kind, (cls, config) in found.items()}
        strategy = self.replace(drafter={"type": self.drafter.type, **drafter.saved_options})
        parts = Parts(strategy=strategy, drafter=drafter, **others)
        check_fit(parts)
        return parts


@dataclass(frozen=True)
class Parts:
    """A strategy assembled for one target; ``strategy`` has the drafter's options that a checkpoint keeps."""

    strategy: Strategy
    drafter: Drafter[Any] | Proposer
    head: SequentialHead[Any]
    calibrator: Calibrator
    policy: LengthPolicy
    verifier: Verifier

    def modules(self) -> nn.ModuleDict:
        """What has weights: ``drafter`` and ``head``."""
        from torch import nn

        return nn.ModuleDict({"drafter": self.drafter, "head": self.head})


def _built(drafter: Drafter[Any] | Proposer, cls: Any, config: PartConfig, context: BuildContext) -> Any:
    """A part that follows the drafter; a head that cannot be built without hidden states is refused."""
    if context.hidden_size or cls.kind != "head":
        return cls(config, context)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch warns of weights that have no element
            return cls(config, context)
    except Exception as error:  # a third party's head may stumble over H = 0 in any way
        raise ConfigError(_no_head(drafter.name, cls.name)) from error


def check_fit(parts: Parts) -> None:
    """Raise ConfigError where the parts cannot work together."""
    from deepspec.interfaces import Proposer

    drafter, head, policy = parts.drafter, parts.head, parts.policy
    if isinstance(drafter, Proposer):
        if head.output_weight is not None or head.confidence != "none":
            raise ConfigError(_no_head(drafter.name, head.name))
        if policy.needs_confidence:
            raise ConfigError(
                f"policy {policy.name!r} reads confidences and drafter {drafter.name!r}, which is "
                "model-free, gives none; use a policy that reads none, such as --set policy.type=fixed"
            )
    if policy.needs_confidence and head.confidence == "none":
        raise ConfigError(
            f"policy {policy.name!r} reads confidences and head {head.name!r} gives none; "
            "set head.confidence to linear or row_max"
        )


def _no_head(drafter: str, head: str) -> str:
    return (
        f"head {head!r} corrects logits or gives confidences and drafter {drafter!r}, which is model-free, "
        "has neither logits nor hidden states; use --set head.type=none, with confidence none"
    )
