"""``deepspec simulate``: length policies side by side under simulated load."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepspec.cli.console import JsonFlag, print_json, stdout, table

if TYPE_CHECKING:
    from deepspec.curves import SpsCurve
    from deepspec.simulate import Workload

_POLICIES = ["fixed:length=0", "fixed:length=1", "fixed", "prefix", "cliff", "frugal"]
_MODELLED_DRAFT = 7


def simulate(
    *,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="NAME",
            help="A length policy, options as in fixed:length=1 (0 decodes plainly); repeatable.",
        ),
    ] = None,
    concurrency: Annotated[
        str, typer.Option(metavar="N,N,..", help="Requests at once, or slots where requests arrive.")
    ] = "1,8,32,128,512",
    curve: Annotated[
        str | None, typer.Option(metavar="FILE", help="An SPS curve, instead of modelled hardware.")
    ] = None,
    hardware: Annotated[
        str, typer.Option(metavar="NAME", help="Whose roofline is taken: h200, h100.")
    ] = "h200",
    target_class: Annotated[str, typer.Option(metavar="NAME", help="The target's size: 4b, 70b.")] = "4b",
    tile: Annotated[
        int,
        typer.Option(metavar="N", help="Make stairs of the roofline, N tokens each; 1: smooth."),
    ] = 1,
    trace: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Rounds of `eval --trace` to replay, not modelled ones."),
    ] = None,
    draft_length: Annotated[
        int | None,
        typer.Option(metavar="G", help="Tokens that can be drafted; without it 7, or what --trace drafted."),
    ] = None,
    workload: Annotated[
        str, typer.Option(metavar="CLASS=SHARE,..", help="Shares of math, code and chat; a trace has none.")
    ] = "math=1,code=1,chat=1",
    prompt_tokens: Annotated[float, typer.Option(metavar="N", help="Mean length of a prompt.")] = 512,
    output_tokens: Annotated[float, typer.Option(metavar="N", help="Mean length of an answer.")] = 512,
    arrivals: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="closed (a new request for each that ends), poisson:RATE, bursts:RATE:SIZE, or a JSON file "
            "of seconds.",
        ),
    ] = "closed",
    steps: Annotated[int, typer.Option(metavar="N", help="Target steps for each policy and load.")] = 2000,
    seed: Annotated[int, typer.Option(metavar="N", help="Of requests and acceptance.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Serve a workload under length policies, on a curve and without a model."""
    from deepspec.simulate import Workload, compare_policies, read_rounds

    recorded = None if trace is None else read_rounds(trace)
    longest = _MODELLED_DRAFT if recorded is None else recorded.draft_length
    most = longest if draft_length is None else draft_length
    load = Workload(_shares(workload), prompt_tokens, output_tokens)
    concurrencies = _numbers(concurrency)
    described, curve_at = _curves(curve, hardware, target_class, load, most, tile)
    found = compare_policies(
        policy or _POLICIES,
        curve_at,
        load,
        concurrencies=concurrencies,
        draft_length=most,
        num_steps=steps,
        arrivals=arrivals,
        recorded=None if recorded is None else recorded.shortened(most),
        seed=seed,
    )
    if json:
        return print_json({"schema": 1, "curve": described, "policies": found})
    stdout().print(f"{_line(described)}; {steps} steps a point", markup=False)
    columns = ("policy", "at once", "tokens/s", "per user", "budget", "p50 ms", "p99 ms")
    stdout().print(table(columns, [_row(one["policy"], point) for one in found for point in one["points"]]))
    return None


def _row(policy: str, point: dict[str, Any]) -> tuple[str, ...]:
    return (
        policy,
        str(point["concurrency"]),
        f"{point['tokens_per_s']:.0f}",
        f"{point['tokens_per_s_per_user']:.1f}",
        f"{point['verify_budget']:.2f}",
        f"{point['tbt_ms_p50']:.2f}",
        f"{point['tbt_ms_p99']:.2f}",
    )


def _line(described: dict[str, Any]) -> str:
    kind = "modelled" if described["modelled"] else "measured"
    return f"{kind} curve of {described['model'] or 'a target'} on {described['hardware'] or 'some machine'}"


def _curves(
    file: str | None, hardware: str, target_class: str, workload: Workload, draft_length: int, tile: int
) -> tuple[dict[str, Any], Callable[[int], SpsCurve]]:
    """What the curve is, and the curve for each number of requests."""
    from deepspec.curves import SpsCurve
    from deepspec.errors import ConfigError, nearest
    from deepspec.roofline import HARDWARE, TARGETS, roofline_curve, tiled
    from deepspec.simulate.serving import PREFILL_CHUNK

    if file is not None:
        curve = SpsCurve.read(file)
        return curve.model_dump(by_alias=True, exclude_none=True), lambda _: curve
    for kind, name, known in (("hardware", hardware, HARDWARE), ("target class", target_class, TARGETS)):
        if name not in known:
            raise ConfigError(f"unknown {kind} {name!r}; {nearest(name, known)}")

    def at(num_requests: int) -> SpsCurve:
        most = num_requests * (1 + draft_length) + PREFILL_CHUNK
        smooth = roofline_curve(
            HARDWARE[hardware],
            TARGETS[target_class],
            num_requests=num_requests,
            context_length=workload.context_length,
            most_tokens=most,
        )
        return smooth if tile == 1 else tiled(smooth, tile, most)

    described = {"modelled": True, "hardware": HARDWARE[hardware].name, "model": TARGETS[target_class].name}
    return {**described, "tile": tile, "context_length": workload.context_length}, at


def _shares(given: str) -> dict[str, float]:
    from deepspec.errors import ConfigError

    try:
        return {name: float(share) for name, _, share in (part.partition("=") for part in given.split(","))}
    except ValueError as error:
        raise ConfigError(f"--workload {given!r}: give shares as in math=1,chat=2") from error


def _numbers(given: str) -> list[int]:
    from deepspec.errors import ConfigError

    try:
        return [int(part) for part in given.split(",")]
    except ValueError as error:
        raise ConfigError(f"--concurrency {given!r}: give integers as in 1,8,64") from error
