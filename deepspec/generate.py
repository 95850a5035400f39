"""Text in, text out: streams what a run's drafter and target decode together.

Tokens become text as soon as they are whole characters: a UTF-8 character that spans tokens waits for its
last byte. For many prompts at once, drive :class:`deepspec.engine.Engine` directly.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.errors import ConfigError
from deepspec.resources import memory

if TYPE_CHECKING:
    from deepspec.composed import Composed
    from deepspec.engine import SamplingParams, TokenEvent
    from deepspec.runs import Run
    from deepspec.strategy import Strategy

#: What a decoder puts in the place of bytes that are no character (yet).
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Turns tokens into text piece by piece; the pieces joined are the whole text.

    Decoding starts a few tokens back, because some tokenizers write a token differently at the start of a
    text than inside it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._context = 0  # where decoding starts
        self._told = 0  # tokens whose text has been given

    def push(self, token: int) -> str:
        """The text that became certain with ``token``; empty in the middle of a character."""
        self._tokens.append(token)
        piece = self._pending()
        if not piece or piece.endswith(REPLACEMENT):
            return ""
        self._context, self._told = self._told, len(self._tokens)
        return piece

    def finish(self) -> str:
        """What is left at the end: bytes that never became a character, as replacement characters."""
        piece = self._pending()
        self._context = self._told = len(self._tokens)
        return piece

    def _pending(self) -> str:
        told = self._decode(self._tokens[self._context : self._told])
        return self._decode(self._tokens[self._context :])[len(told) :]

    def _decode(self, tokens: list[int]) -> str:
        if not tokens:
            return ""
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def generate(
    run: Run | Composed | Strategy | str | Path,
    prompt: str,
    *,
    target: str | None = None,
    params: SamplingParams | None = None,
    plain: bool = False,
    device: str | None = None,
) -> Iterator[str]:
    """Yield pieces of the continuation of ``prompt`` as they are decoded.

    Args:
        run: a loaded run, a run folder, ``demo``, or a strategy that needs no training.
        target: the model that a strategy drafts for, the demo target when None; a run has its own.
        prompt: text, taken as it is (no chat template), in tokens as evaluation's raw prompts are.
        params: sampling; temperature 1 and 128 tokens when None.
        plain: decode with the target alone.
        device: where to load ``run`` unless it is loaded.

    Raises:
        ConfigError: an empty prompt, a strategy that needs training.
        CheckpointError, TargetError: a run or target that cannot be loaded.
        ResourceError: memory ran out.
    """
    from deepspec.composed import opened

    loaded = opened(run, target=target, device=device)
    stream = TextStream(loaded.target.tokenizer)
    for event in token_events(loaded, prompt, params=params, plain=plain):
        for token in event.tokens:
            if piece := stream.push(token):
                yield piece
    if rest := stream.finish():
        yield rest


def token_events(
    run: Run | Composed, prompt: str, *, params: SamplingParams | None = None, plain: bool = False
) -> Iterator[TokenEvent]:
    """The engine's events for one prompt; raises what :func:`generate` does."""
    from deepspec.data import encode_prompt
    from deepspec.engine import Engine, SamplingParams
    from deepspec.plugins import create_plugin_manager, round_observer
    from deepspec.train.assemble import for_decoding

    tokenizer = run.target.tokenizer
    assert tokenizer is not None, "a run's target always has its tokenizer"
    tokens = encode_prompt(tokenizer, prompt)
    if not tokens:
        raise ConfigError("the prompt is empty; give some text to continue")
    chosen = params or SamplingParams()
    with memory(lambda: _needs_memory(len(tokens), chosen.max_tokens)):
        engine = Engine(
            run.target,
            None if plain else for_decoding(run.parts, run.target),
            max_batch=1,
            max_positions=min(len(tokens) + chosen.max_tokens, run.target.info.max_positions),
            observers=[round_observer(create_plugin_manager())],
        )
        yield from engine.stream([tokens], chosen)


def _needs_memory(prompt_length: int, max_tokens: int) -> str:
    return (
        f"memory ran out while generating; lower --max-tokens (now {max_tokens}), shorten the prompt of "
        f"{prompt_length} tokens, or place the target elsewhere (--target-device)"
    )
