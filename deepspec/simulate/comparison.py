"""Several policies over several loads, with the same requests and seeds, as one JSON document."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from deepspec.curves import SpsCurve
from deepspec.errors import ConfigError
from deepspec.interfaces import BuildContext, LengthPolicy, Rope, TargetInfo
from deepspec.plugins import create_plugin_manager, resolve_part
from deepspec.simulate.acceptance import PUBLISHED_LENGTHS, AcceptanceModel, FittedAcceptance
from deepspec.simulate.recorded import RecordedAcceptance, RecordedRounds
from deepspec.simulate.serving import Served, serve
from deepspec.simulate.workload import Workload, arrival_times, closed_loop, open_loop
from deepspec.validation import validate

if TYPE_CHECKING:
    import pluggy


def build_policy(given: str, draft_length: int, manager: pluggy.PluginManager | None = None) -> LengthPolicy:
    """A registered policy by its name, with options as in ``fixed:length=1``; raises ConfigError."""
    name, _, options = given.partition(":")
    pairs = [pair.partition("=") for pair in options.split(",") if pair]
    cls = resolve_part(manager or create_plugin_manager(), "policy", name)
    config = validate(cls.Config, {key: value for key, _, value in pairs}, f"policy {name!r}")
    policy: LengthPolicy = cls(config, context(draft_length))
    return policy


def context(draft_length: int) -> BuildContext:
    """What a policy is built for where there is no target: it may read the draft length."""
    if draft_length < 1:
        raise ConfigError(f"draft length is {draft_length}; allowed is an integer >= 1")
    nothing = torch.zeros((1, 1))
    info = TargetInfo(
        hidden_size=1,
        vocab_size=1,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=1,
        intermediate_size=1,
        rms_norm_eps=1e-6,
        rope=Rope.plain(1e4, 2),
        max_positions=1,
        mask_token_id=None,
        embedding=nothing,
        embedding_scale=1.0,
        lm_head=nothing,
        final_softcap=None,
    )
    return BuildContext(info, draft_length)


def serve_point(
    policy: LengthPolicy,
    curve: SpsCurve,
    workload: Workload,
    *,
    concurrency: int,
    num_steps: int,
    num_tokens: float = math.inf,
    arrivals: str = "closed",
    recorded: RecordedRounds | None = None,
    seed: int = 0,
    foresees: bool = False,
) -> Served:
    """One policy at one load of a workload; the same requests for the same seed.

    Acceptance is that of ``recorded`` rounds of the policy's draft length, or the fitted model's when None.
    """
    num = max(1024, 64 * concurrency)
    times = arrival_times(arrivals, num, seed)
    requests = closed_loop(workload, num, seed) if times is None else open_loop(workload, times, seed)
    acceptance: AcceptanceModel
    if recorded is None:
        lengths = [PUBLISHED_LENGTHS[name] for name in workload.classes]
        acceptance = FittedAcceptance(lengths, concurrency, policy.context.draft_length, seed)
    else:
        acceptance = RecordedAcceptance(recorded, concurrency, seed)
    return serve(
        policy,
        curve,
        acceptance,
        requests,
        num_slots=concurrency,
        num_steps=num_steps,
        num_tokens=num_tokens,
        foresees=foresees,
    )


def compare_policies(
    policies: Sequence[str],
    curve_at: Callable[[int], SpsCurve],
    workload: Workload,
    *,
    concurrencies: Sequence[int],
    draft_length: int,
    num_steps: int,
    arrivals: str = "closed",
    recorded: RecordedRounds | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """For each policy its points: concurrency, and what :class:`Served` says under the same names.

    ``curve_at`` gives the curve for a number of concurrent requests; ``recorded`` is as in
    :func:`serve_point`. Raises ConfigError for policies that are
    none, before anything runs, and for numbers out of range.
    """
    manager = create_plugin_manager()
    for value in concurrencies:
        if value < 1:
            raise ConfigError(f"concurrency is {value}; allowed are integers >= 1")
    if num_steps < 10:
        raise ConfigError(f"{num_steps} steps; allowed is an integer >= 10")
    for name in policies:
        build_policy(name, draft_length, manager)
    found = []
    for name in policies:
        points = []
        for concurrency in concurrencies:
            served = serve_point(
                build_policy(name, draft_length, manager),
                curve_at(concurrency),
                workload,
                concurrency=concurrency,
                num_steps=num_steps,
                arrivals=arrivals,
                recorded=recorded,
                seed=seed,
            )
            points.append(
                {
                    "concurrency": concurrency,
                    "tokens_per_s": served.tokens_per_s,
                    "tokens_per_s_per_user": served.tokens_per_s_per_user,
                    "verify_budget": served.verify_budget,
                    "tbt_ms_p50": served.tbt_ms_p50,
                    "tbt_ms_p99": served.tbt_ms_p99,
                }
            )
        found.append({"policy": name, "points": points})
    return found
