"""What the block rule gains on the token rule: the shipped drafter over the same prompts and seeds."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from records import write
from rich.console import Console

import deepspec
from deepspec.cli.results import interval
from deepspec.config import EvalConfig
from deepspec.evaluate.acceptance import compare_lengths, measure_acceptance, prompt_lengths
from deepspec.evaluate.decoding import decode_rounds
from deepspec.evaluate.report import VerifierGain, as_json
from deepspec.evaluate.tasks import collect_prompts
from deepspec.redecoding import redecoded
from deepspec.runs import Run

SEED = 0
RULES = ("block", "token")
TEMPERATURES = (1.0, 0.7)


def measure(run: Run, temperature: float, num_prompts: int) -> dict[str, Any]:
    """Accepted length under both rules, and the difference prompt by prompt."""
    config = EvalConfig(temperature=temperature, num_prompts=num_prompts, seed=SEED)
    prompts = [one for found in collect_prompts(config.tasks, run.target, config).values() for one in found]
    contenders = [redecoded(run.parts, verifier=rule) for rule in RULES]
    rounds = [decode_rounds(run.target, parts, prompts, config) for parts in contenders]
    lengths = [prompt_lengths(found) for found in rounds]
    length = run.parts.strategy.draft_length
    found = {
        rule: as_json(measure_acceptance(one, draft_length=length).accepted_length)
        for rule, one in zip(RULES, rounds, strict=True)
    }
    gain = VerifierGain("token", compare_lengths(*lengths, seed=SEED)).to_json()
    return {"temperature": temperature, "num_prompts": len(prompts), "accepted_length": found, "gain": gain}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-prompts", type=int, default=128, help="of each shipped task")
    options = parser.parse_args()
    run = deepspec.load("demo")
    result = [measure(run, temperature, options.num_prompts) for temperature in TEMPERATURES]
    lines = write(
        "verifiers",
        {"setting": "the shipped demo target and drafter, code and prose", "rules": result},
        seed=SEED,
        warm_up="none, nothing is timed",
        repeats="each prompt once under each rule",
    )
    console = Console()
    for one in result:
        console.print(
            f"temperature {one['temperature']:g}: block less token {interval(one['gain']['difference'])}"
        )
    console.print("\n".join(lines), soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
