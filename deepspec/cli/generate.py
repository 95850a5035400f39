"""``deepspec generate``: stream text, optionally showing what each round accepted and rejected."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepspec.cli.console import (
    DeviceFlag,
    JsonFlag,
    QuietFlag,
    TargetDeviceFlag,
    TrustFlag,
    VerboseFlag,
    print_json,
    set_up_logging,
    stderr,
    stdout,
)
from deepspec.cli.subject import (
    DraftFlag,
    OptionFlag,
    RunArgument,
    TargetFlag,
    UntrainedFlag,
    open_subject,
)
from deepspec.paths import DEMO

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deepspec.engine import TokenEvent


def generate(
    run: RunArgument = None,
    *,
    strategy: UntrainedFlag = None,
    draft: DraftFlag = None,
    target: TargetFlag = None,
    set_: OptionFlag = None,
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="What to continue.")] = None,
    file: Annotated[
        str | None, typer.Option("--file", metavar="FILE", help="A file to continue; - is standard input.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Decode with the target alone.")] = False,
    show_rounds: Annotated[
        bool,
        typer.Option("--show-rounds", help="Mark accepted, rejected and bonus tokens; print τ and tokens/s."),
    ] = False,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="0 is off.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", min=0.0, max=1.0, help="1 is off.")] = 1.0,
    min_p: Annotated[float, typer.Option("--min-p", min=0.0, max=1.0, help="0 is off.")] = 0.0,
    seed: Annotated[int | None, typer.Option("--seed", help="The same seed gives the same text.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="New tokens at most.")] = 128,
    device: DeviceFlag = None,
    target_device: TargetDeviceFlag = None,
    trust_remote_code: TrustFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = 0,
) -> None:
    """Continue a text with the demo drafter, a run's, or one that needs no training.

    The prompt comes from --prompt, --file or stdin.
    """
    set_up_logging(quiet=quiet, verbose=verbose)
    text = _prompt(prompt, file)
    from deepspec.engine import SamplingParams
    from deepspec.generate import token_events

    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, max_tokens=max_tokens
    )
    loaded = open_subject(
        DEMO if run is None and strategy is None and draft is None else run,
        strategy,
        draft=draft,
        target=target,
        sets=set_,
        device=device,
        target_device=target_device,
        trust_remote_code=trust_remote_code,
    )
    recording = _Recording(token_events(loaded, text, params=params, plain=plain))
    tokenizer = loaded.target.tokenizer
    if json:
        completion = "".join(_pieces(recording, tokenizer))
        return print_json({"schema": 1, "prompt": text, "text": completion, **recording.summary()})
    if show_rounds:
        _show_rounds(recording, tokenizer)
        return stdout().print(recording.line(), markup=False)
    for piece in _pieces(recording, tokenizer):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    if not quiet and sys.stdout.isatty():
        stderr().print(recording.line(), style="dim", markup=False)
    return None


def _prompt(prompt: str | None, file: str | None) -> str:
    from pathlib import Path

    from deepspec.errors import ConfigError

    if prompt is not None and file is not None:
        raise ConfigError("--prompt and --file were both given; give one")
    if prompt is None and file is None and sys.stdin.isatty():
        raise ConfigError("no prompt; give --prompt TEXT, --file FILE, or text on standard input")
    try:
        text = prompt if prompt is not None else None
        if text is None:
            raw = sys.stdin.buffer.read() if file in (None, "-") else Path(file or "").read_bytes()
            text = raw.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"--file {file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the prompt is not UTF-8 text (byte {error.start})") from error
    if not text:
        raise ConfigError("the prompt is empty; give some text to continue")
    return text


class _Recording:
    """Passes events on and keeps the counts that the summary needs."""

    def __init__(self, events: Iterable[TokenEvent]) -> None:
        self._events = events
        self._first_seconds = self._last_seconds = 0.0
        self._tokens = self._first_tokens = 0
        self._gained = self._num_rounds = 0
        self._finish_reason: str | None = None

    def __iter__(self) -> Any:
        from deepspec.evaluate.acceptance import tokens_gained

        for event in self._events:
            self._tokens += len(event.tokens)
            if event.round is not None:
                self._num_rounds += 1
                self._gained += tokens_gained(event.round)
            self._finish_reason = event.finish_reason or self._finish_reason
            self._last_seconds = time.perf_counter()
            if not self._first_seconds:  # speed is that of decoding: the prompt and warm-up do not count
                self._first_seconds, self._first_tokens = self._last_seconds, self._tokens
            yield event

    def summary(self) -> dict[str, Any]:
        """Counts and speed as plain values."""
        seconds = self._last_seconds - self._first_seconds
        return {
            "num_tokens": self._tokens,
            "num_rounds": self._num_rounds,
            "accepted_length": self._gained / self._num_rounds if self._num_rounds else None,
            "tokens_per_s": (self._tokens - self._first_tokens) / seconds if seconds else None,
            "finish_reason": self._finish_reason,
        }

    def line(self) -> str:
        """The same in words."""
        found = self.summary()
        tau = "" if found["accepted_length"] is None else f"τ {found['accepted_length']:.2f}, "
        rate = "" if found["tokens_per_s"] is None else f", {found['tokens_per_s']:.0f} tokens/s"
        return f"{tau}{found['num_tokens']} tokens in {found['num_rounds']} rounds{rate}"


def _pieces(events: Iterable[TokenEvent], tokenizer: Any) -> Iterable[str]:
    from deepspec.generate import TextStream

    stream = TextStream(tokenizer)
    for event in events:
        for token in event.tokens:
            yield stream.push(token)
    yield stream.finish()


def _show_rounds(events: Iterable[TokenEvent], tokenizer: Any) -> None:
    """Colours where there are any, else marks: accepted as it is, ~rejected~, [bonus]."""
    from rich.text import Text

    from deepspec.generate import TextStream

    console = stdout()
    coloured = console.is_terminal and not console.no_color
    styles = {"accepted": "green", "rejected": "red strike", "bonus": "bold yellow", "first": ""}
    marks = {"accepted": "{}", "rejected": "~{}~", "bonus": "[{}]", "first": "{}"}
    legend = {
        name: name if coloured else marks[name].format(name) for name in ("accepted", "rejected", "bonus")
    }
    console.print(
        Text(" ").join(Text(word, styles[name] if coloured else "") for name, word in legend.items())
    )
    stream = TextStream(tokenizer)
    for event in events:
        for kind, piece in _marked(event, stream, tokenizer):
            shown = Text(piece, styles[kind]) if coloured else Text(marks[kind].format(piece))
            console.print(shown, end="", soft_wrap=True)
    console.print(Text(stream.finish()))


def _marked(event: TokenEvent, stream: Any, tokenizer: Any) -> Iterable[tuple[str, str]]:
    """The event's text, token by token, with what became of each: first, accepted, rejected or bonus."""
    accepted = event.round.accepted if event.round is not None else 0
    rejected = event.round.rejected if event.round is not None else None
    for index, token in enumerate(event.tokens):
        if index == accepted and rejected is not None:
            yield "rejected", tokenizer.decode([rejected]).replace("\n", "⏎")
        kind = "first" if event.round is None else "accepted" if index < accepted else "bonus"
        if piece := stream.push(token):
            yield kind, piece
