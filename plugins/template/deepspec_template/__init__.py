"""The plugin: a strategy and the head in it. Importing this imports no torch, so that listing is fast."""

from deepspec import Strategy, hookimpl
from deepspec.strategy import Objective

#: The version of DeepSpec's hooks and contracts that this was written for.
DEEPSPEC_HOOK_API = 1


@hookimpl
def deepspec_strategies() -> list[Strategy]:
    """What ``--strategy template`` means; parts that are not named here are the defaults."""
    objective = Objective(terms={"ce": 0.1, "l1": 0.9})
    return [Strategy(name="template", drafter="dflash", head="template", objective=objective)]


@hookimpl
def deepspec_parts() -> list[str]:
    """The head, imported when it is built."""
    return ["template=deepspec_template.head:TemplateHead"]
