"""Streaming text: characters that span tokens, word boundaries, leftovers, and what each round shows."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tokenizers import processors

from deepspec.cli import generate as command
from deepspec.engine import SamplingParams, TokenEvent
from deepspec.generate import TextStream, generate
from deepspec.types import RequestRound
from tests import tiny_tokenizer
from tests.tiny_runs import untrained_run


class Bytes:
    """A byte-level tokenizer: token i is byte i."""

    def decode(self, tokens: list[int], **_: object) -> str:
        return bytes(tokens).decode("utf-8", errors="replace")


class Words:
    """A tokenizer that, like SentencePiece's, drops the space at the start of a text."""

    words = ("the", "cat", "sat")

    def decode(self, tokens: list[int], **_: object) -> str:
        return "".join(" " + self.words[token] for token in tokens)[1:]


def streamed(tokenizer: object, tokens: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.push(token) for token in tokens), stream.finish()]


def test_a_character_that_spans_tokens_waits_for_its_last_byte() -> None:
    assert streamed(Bytes(), list("aé😀b".encode())) == ["a", "", "é", "", "", "", "😀", "b", ""]


@given(st.text())
def test_the_pieces_joined_are_the_text_and_never_half_a_character(text: str) -> None:
    pieces = streamed(Bytes(), list(text.encode()))
    assert "".join(pieces) == text


@given(st.binary(max_size=40))
def test_any_bytes_stream_to_what_decoding_them_at_once_gives(data: bytes) -> None:
    assert "".join(streamed(Bytes(), list(data))) == data.decode("utf-8", errors="replace")


def test_spaces_between_tokens_are_kept() -> None:
    assert streamed(Words(), [0, 1, 2]) == ["the", " cat", " sat", ""]


def test_a_prompt_is_encoded_as_evaluation_encodes_it_without_an_end_token() -> None:
    run = untrained_run()
    closing = tiny_tokenizer.tokenizer()
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {tiny_tokenizer.END}", special_tokens=[(tiny_tokenizer.END, closing.eos_token_id)]
    )
    assert closing("the cat")["input_ids"][-1] == closing.eos_token_id
    other = replace(run, target=replace(run.target, tokenizer=closing))
    greedy = SamplingParams(max_tokens=8, temperature=0.0)
    texts = ["".join(generate(each, "the cat", params=greedy)) for each in (run, other)]
    assert texts[0] == texts[1] != ""


def events() -> Iterator[TokenEvent]:
    """A first token, a round of two accepted and one rejected, and a round that a maximum cut short."""

    def of(text: str, accepted: int, rejected: str | None) -> TokenEvent:
        tokens = tuple(text.encode())
        outcome = RequestRound(
            request_id=0,
            drafted=3,
            verified=3,
            accepted=accepted,
            emitted=len(tokens),
            stopped=False,
            tokens=tokens,
            rejected=ord(rejected) if rejected else None,
        )
        return TokenEvent(request_id=0, tokens=tokens, round=outcome, finish_reason=None)

    yield TokenEvent(request_id=0, tokens=(ord("s"),), round=None, finish_reason=None)
    yield of("abc", 2, "x")
    yield of("de", 3, None)


def show(monkeypatch: pytest.MonkeyPatch, **options: object) -> str:
    console = Console(file=io.StringIO(), highlight=False, width=80, **options)
    monkeypatch.setattr(command, "stdout", lambda: console)
    command._show_rounds(events(), Bytes())
    return console.file.getvalue()


def test_without_colours_rejected_and_bonus_tokens_carry_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert show(monkeypatch).splitlines()[1] == "sab~x~[c]de"


def test_a_terminal_shows_them_in_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    text = show(monkeypatch, force_terminal=True, color_system="standard", no_color=False)
    accepted, rejected, bonus = "\x1b[32ma\x1b[0m", "\x1b[9;31mx\x1b[0m", "\x1b[1;33mc\x1b[0m"
    assert accepted in text
    assert rejected + bonus in text


def test_the_summary_counts_the_bonus_token_and_a_cut_round_in_full() -> None:
    recording = command._Recording(events())
    list(recording)
    found = recording.summary()
    assert (found["num_tokens"], found["num_rounds"]) == (6, 2)
    assert found["accepted_length"] == (3 + 4) / 2
