"""By our engine: the text of a sample is its own, whatever is beside it, and training reads it as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepspec.data import encode_chat
from deepspec.data.documents import documents
from deepspec.data.rows import read_examples
from deepspec.engine import Engine
from deepspec.errors import DataError
from deepspec.regenerate import EngineWriter, regenerate
from deepspec.sampling import SamplingParams
from deepspec.target import Target
from tests.regenerate.asking import left_out, plan, rows
from tests.regenerate.conftest import save_source
from tests.regenerate.targets import TOP_K, engine_writer, writing_target
from tests.tiny_runs import untrained_run


@pytest.fixture(scope="module")
def target() -> Target:
    return writing_target()


def write(target: Target, source: Path, out: Path, *, concurrency: int = 4, **changes):
    writer = engine_writer(target, concurrency=concurrency)
    return regenerate(plan(source, out, **changes), writer)


def save(path: Path, *found: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def test_a_sample_is_the_same_whatever_is_decoded_beside_it(target, source, tmp_path):
    for concurrency in (1, 7):
        report = write(target, source, tmp_path / f"{concurrency}.jsonl", concurrency=concurrency, limit=16)
        assert report.num_written + sum(report.left_out.values()) == 16
        assert report.num_written > 8
    assert rows(tmp_path / "1.jsonl") == rows(tmp_path / "7.jsonl")
    texts = [json.dumps(row.get("messages", row.get("response"))) for row in rows(tmp_path / "1.jsonl")]
    assert len(set(texts)) == len(texts)


def test_a_turn_is_what_the_engine_writes_given_the_turns_before(target, tmp_path):
    asked = {"role": "user", "content": "hi"}
    talk = [asked, {"role": "assistant", "content": "of the source"}] * 3
    out = tmp_path / "out.jsonl"
    write(target, save(tmp_path / "a.jsonl", *[{"messages": talk}] * 12), out)
    seen = set()
    for row, example in zip(rows(out), sorted(read_examples(out), key=number_of(out)), strict=True):
        for turn in row["provenance"]["turns"]:
            place = turn["message"]
            prompt = encode_chat(target.tokenizer, example.messages[:place])
            params = SamplingParams(seed=turn["seed"], max_tokens=min(12, 128 - len(prompt)), top_k=TOP_K)
            [done] = Engine(target, max_batch=1, max_positions=128).run([prompt], params)
            assert list(done.tokens) == turn["tokens"]
            assert (done.finish_reason, len(done.tokens)) == (turn["finish_reason"], turn["num_tokens"])
            text = target.tokenizer.decode(done.tokens, skip_special_tokens=True)
            assert example.messages[place].content == text
        assert example.messages[-1].role == "assistant"
        assert example.is_complete == (row["provenance"]["finish_reason"] == "stop")
        seen.add((len(row["provenance"]["turns"]), example.is_complete))
    assert {(1, False), (2, False)} <= seen  # ended with the turn that was cut off
    assert any(is_complete and turns == 3 for turns, is_complete in seen)


def test_what_is_trained_on_are_the_tokens_that_the_target_wrote(target, source, tmp_path):
    out = tmp_path / "out.jsonl"
    write(target, source, out)
    for row, example in zip(rows(out), sorted(read_examples(out), key=number_of(out)), strict=True):
        made = list(documents([example], target.tokenizer))
        supervised = [t for one in made for t in one.tokens[one.supervised].tolist()]
        assert supervised == [token for turn in row["provenance"]["turns"] for token in turn["tokens"]]


def number_of(out: Path):
    numbers = [json.loads(line)["provenance"]["number"] for line in out.read_text().splitlines()]
    return lambda example: numbers[int(example.source.rsplit(":", 1)[1]) - 1]


def test_a_drafter_may_help(tmp_path, source):
    run = untrained_run(max_position_embeddings=128)
    letters = writing_target(dtype=run.target.dtype)
    run.target.decoder.model.lm_head.weight.data.copy_(letters.decoder.model.lm_head.weight.data)
    params = SamplingParams(seed=1, max_tokens=12, top_k=TOP_K)
    writer = EngineWriter(run, params, concurrency=4)
    report = regenerate(plan(source, tmp_path / "out.jsonl", limit=8), writer)
    assert report.num_written + sum(report.left_out.values()) == 8
    assert report.num_written > 0
    settings = json.loads((tmp_path / "out.jsonl.settings.json").read_text())
    assert settings["identity"]["writer"]["draft"] == {"run": "nowhere", "step": 0}


def test_what_has_no_room_is_cut_off_ended_before_or_left_out(target, tmp_path):
    long, short = {"role": "user", "content": "a" * 100}, {"role": "user", "content": "b"}
    said = {"role": "assistant", "content": "of the source"}
    chats = [[long], [short, said, long], [{"role": "user", "content": "c" * 300}]]
    out = tmp_path / "out.jsonl"
    source = save(tmp_path / "a.jsonl", *[{"messages": chat} for chat in chats * 6])
    write(target, source, out)
    reasons = [line["reason"] for line in left_out(out) if line["kind"] == "unusable"]
    assert sum("positions are all there are (--max-positions)" in reason for reason in reasons) == 6
    for row in rows(out):
        [turn] = row["provenance"]["turns"]
        assert len(row["messages"]) == 2
        assert turn["num_tokens"] <= 12
        if row["messages"][0] == long:
            assert 100 + turn["num_tokens"] < 128


def test_half_a_character_at_the_end_is_left_out_and_bytes_that_are_no_text_leave_out_the_sample(
    tmp_path, source
):
    run = untrained_run(max_position_embeddings=128)  # writes any bytes
    params = SamplingParams(seed=1, max_tokens=3)
    out = tmp_path / "out.jsonl"
    report = regenerate(plan(source, out), EngineWriter(run.target, params))
    assert report.left_out["unusable"] > 5
    reasons = {line["reason"] for line in left_out(out)}
    assert "the target wrote bytes that are no text" in reasons
    assert all("\ufffd" not in json.dumps(row, ensure_ascii=False) for row in rows(out))


def test_a_special_token_amid_the_text_leaves_the_sample_out(target, tmp_path, monkeypatch):
    monkeypatch.setattr(
        type(target.tokenizer), "all_special_ids", [target.tokenizer.convert_tokens_to_ids("e")]
    )
    out = tmp_path / "out.jsonl"
    report = write(target, save_source(tmp_path / "a.jsonl"), out)
    assert report.left_out["unusable"] > 0
    assert "the target wrote 'e' amid its text" in {line["reason"] for line in left_out(out)}
    assert all("e" not in row.get("response", "") for row in rows(out))


def test_a_target_without_a_chat_template_is_said_at_once(target, source, tmp_path, monkeypatch):
    monkeypatch.setattr(target.tokenizer, "chat_template", None)
    with pytest.raises(DataError, match="need a chat template"):
        write(target, source, tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == [source]


def test_rows_that_ask_nothing_are_counted_and_all_of_them_are_an_error(target, tmp_path):
    odd = [{"prompt": ""}, {"messages": [{"role": "system", "content": "a"}]}, {"id": 3}]
    source = save(tmp_path / "a.jsonl", *odd, {"prompt": "a"})
    report = write(target, source, tmp_path / "out.jsonl")
    assert (report.num_unusable_rows, report.problem) == (3, f'{source}:1: "prompt" is empty')
    with pytest.raises(DataError, match=r'none of 3 rows asks anything; the first: .*"prompt" is empty'):
        write(target, save(tmp_path / "b.jsonl", *odd), tmp_path / "none.jsonl")
    assert not list(tmp_path.glob("none*"))
