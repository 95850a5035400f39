"""By a server that misbehaves: what passes is tried again, what does not is one line, nothing is lost."""

from __future__ import annotations

import json
import random
import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from deepspec.data.rows import read_examples
from deepspec.errors import ConfigError, ServerError
from deepspec.regenerate import Server, ServerWriter
from deepspec.regenerate import client as client_module
from deepspec.regenerate.samples import Sample
from tests.regenerate import misbehaving
from tests.regenerate.asking import PARAMS, ask, left_out, patience, plan, rows
from tests.regenerate.conftest import save_source


def test_each_turn_is_asked_for_given_those_written_before_and_text_is_continued(server, source, tmp_path):
    out = tmp_path / "out.jsonl"
    report = ask(server, source, out, limit=4)
    assert (report.num_written, report.num_failed, report.num_tokens) == (4, 0, 25)
    one, two, prompt, text = rows(out)
    seeds = [[turn["seed"] for turn in row["provenance"]["turns"]] for row in (one, two, prompt, text)]
    assert one["messages"] == [
        {"role": "user", "content": "question 0"},
        {"role": "assistant", "content": f"1: question 0 ({seeds[0][0]})"},
    ]
    assert [message["content"] for message in two["messages"]] == [
        "short",
        "question 1",
        f"2: question 1 ({seeds[1][0]})",
        "question 1",
        f"4: question 1 ({seeds[1][1]})",
    ]
    assert [turn["message"] for turn in two["provenance"]["turns"]] == [2, 4]
    assert (prompt["prompt"], prompt["response"]) == ("prompt 2", f"…8 ({seeds[2][0]})")
    assert text["prompt"] == "text 3 text 3 text 3 text 3"
    asked = [
        [m["content"] for m in body["messages"]]
        for body in server.bodies
        if len(body.get("messages", ())) > 2
    ]
    assert asked == [["short", "question 1", f"2: question 1 ({seeds[1][0]})", "question 1"]]
    assert len({seed for found in seeds for seed in found}) == 5
    assert len(read_examples(out)) == 4


def test_what_a_sample_was_made_with_stands_beside_it(server, source, tmp_path):
    out = tmp_path / "out.jsonl"
    server.reply = lambda body: {**misbehaving.answer(body), "finish_reason": "stop", "token_ids": [5, 6]}
    ask(server, source, out, limit=1, extra={"return_token_ids": True})
    [row] = rows(out)
    made = row["provenance"]
    [turn] = made.pop("turns")
    assert made == {
        "number": 1,
        "source": f"{source}:1",
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "max_tokens": 16,
        "seed": 3,
        "server": server.url,
        "model": "tiny",
        "version": "0.9",
        "finish_reason": "stop",
        "num_tokens": 5,
    }
    [body] = server.bodies
    assert turn == {
        "message": 1,
        "seed": body["seed"],
        "finish_reason": "stop",
        "num_tokens": 5,
        "tokens": [5, 6],
    }
    assert body["return_token_ids"] is True
    assert not {"top_k", "min_p"} & body.keys()


@pytest.mark.parametrize("fault", misbehaving.PASSING)
def test_what_may_pass_is_tried_again(server, source, tmp_path, fault):
    server.fault = lambda body, before: fault if before < 2 else None
    waiting = patience(timeout_s=0.15 if fault in ("hang", "drip") else 5.0)
    report = ask(server, source, tmp_path / "out.jsonl", limit=4, patient=waiting)
    assert (report.num_written, report.num_failed) == (4, 0)
    assert len(server.bodies) == 3 * 5
    assert len(waiting.sleep) == 2 * 5
    assert all(pause >= 7 for pause in waiting.sleep) is (fault == "429")


def test_what_lasts_fails_is_noted_and_only_that_is_tried_again(server, source, tmp_path):
    out = tmp_path / "out.jsonl"
    server.fault = lambda body, before: "500" if body.get("prompt") == "prompt 2" else None
    report = ask(server, source, out)
    assert (report.num_written, report.num_failed) == (39, 1)
    [line] = left_out(out)
    assert (line["number"], line["source"], line["kind"]) == (3, f"{source}:3", "failed")
    assert line["reason"] == f"{server.url}/completions: 500: out of luck, 4 times tried"
    before = len(server.bodies)
    report = ask(server, source, out)
    assert (report.num_before, report.num_written, report.num_failed) == (39, 0, 1)
    assert len(server.bodies) == before + 4
    assert len(left_out(out)) == 1
    server.fault = lambda body, before: None
    assert ask(server, source, out).num_failed == 0
    assert len(rows(out)) == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out.jsonl",
        "out.jsonl.settings.json",
        "source.jsonl",
    ]


def test_a_request_that_the_server_refuses_is_not_repeated(server, source, tmp_path):
    out = tmp_path / "out.jsonl"
    server.fault = lambda body, before: "400" if body.get("prompt") == "prompt 2" else None
    assert ask(server, source, out).num_failed == 1
    assert [body.get("prompt") for body in server.bodies].count("prompt 2") == 1
    assert "answers 400: max_tokens is too large" in left_out(out)[0]["reason"]


@pytest.mark.parametrize(
    ("fault", "key", "words"),
    [
        ("401", None, "who are you?; the API key is read from OPENAI_API_KEY, which is not set"),
        ("401", "abc", "OPENAI_API_KEY, which is set, to a key it refuses"),
        ("404", None, "answers 404: Not Found; --server is the base address"),
    ],
)
def test_what_no_request_would_pass_ends_it_at_once(server, source, tmp_path, monkeypatch, fault, key, words):
    if key is not None:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    server.models_fault = fault
    with pytest.raises(ConfigError) as raised:
        Server.at(server.url, patience=patience())
    assert words in str(raised.value)
    server.models_fault = None
    server.fault = lambda body, before: fault if "messages" in body else None
    with pytest.raises(ConfigError) as raised:
        ask(server, source, tmp_path / "out.jsonl")
    assert words in str(raised.value)
    assert not list(tmp_path.glob("out*")) or rows(tmp_path / "out.jsonl")


def test_the_key_is_sent_when_there_is_one(server, monkeypatch):
    Server.at(server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "abc")
    Server.at(server.url)
    assert server.keys == [None, None, "Bearer abc", "Bearer abc"]


def test_the_model_is_one_that_the_server_lists(server):
    assert Server.at(server.url).model == "tiny"
    with pytest.raises(ConfigError, match=r"serves no model 'tyni'; known: tiny; did you mean 'tiny'\?"):
        Server.at(server.url, "tyni")
    server.models = ["a", "b"]
    with pytest.raises(ConfigError, match="serves a, b; name one with --model"):
        Server.at(server.url)
    assert Server.at(server.url.removesuffix("/v1") + "/", "b").url == server.url


def test_a_version_need_not_be_told(server):
    server.version = None
    assert Server.at(server.url).version is None


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://a", "http://", "http://a:b", "nonsense"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ConfigError, match="--server '.*' ?(is no|:).*"):
        Server.at(address)


def test_no_server_is_said_at_once(source, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    waiting = patience()
    with pytest.raises(ServerError, match=r"/v1/models: .*connect.*; is a server running there\?"):
        Server.at(f"http://127.0.0.1:{port}", patience=waiting)
    assert waiting.sleep == []


def test_a_server_that_dies_ends_it_and_what_is_written_is_kept(server, tmp_path):
    source, out = save_source(tmp_path / "source.jsonl", 200), tmp_path / "out.jsonl"
    server.fault = lambda body, before: None if len(server.bodies) <= 50 else "closed"
    with pytest.raises(ServerError, match=r"16 samples failed one after the other.*the same command goes on"):
        ask(server, source, out, patient=patience(retries=1))
    written = len(rows(out))
    assert 20 < written < 60
    server.fault = lambda body, before: None
    report = ask(server, source, out)
    assert (report.num_before, report.num_before + report.num_written) == (written, 200)


def test_requests_at_once_are_as_many_as_were_asked_for(server, source, tmp_path):
    server.fault = lambda body, before: (server.wait_for(3), None)[1]
    ask(server, source, tmp_path / "out.jsonl", concurrency=3)
    assert server.most_at_once == 3


def test_a_server_that_fails_in_every_way_by_chance_gives_what_a_good_one_does(server, tmp_path):
    source = save_source(tmp_path / "source.jsonl", 80)
    ask(server, source, tmp_path / "good.jsonl")
    chance, names = random.Random(5), [name for name in misbehaving.PASSING if name not in ("hang", "drip")]
    server.fault = lambda body, before: chance.choice(names) if before < 4 and chance.random() < 0.5 else None
    report = ask(server, source, tmp_path / "bad.jsonl", patient=patience(retries=5))
    assert (report.num_written, report.num_failed) == (80, 0)
    assert rows(tmp_path / "bad.jsonl") == rows(tmp_path / "good.jsonl")


def test_the_conversation_ends_with_a_turn_that_was_cut_off_or_calls_a_tool(server, source, tmp_path):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    replies = {
        "cut": {"message": {"content": "no en"}, "finish_reason": "length"},
        "called": {"message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"},
    }
    for name, reply in replies.items():
        server.reply = lambda body, reply=reply: reply if "messages" in body else misbehaving.answer(body)
        report = ask(server, source, tmp_path / f"{name}.jsonl", limit=2)
        assert report.num_cut == (2 if name == "cut" else 0)
    cut, called = rows(tmp_path / "cut.jsonl")[1], rows(tmp_path / "called.jsonl")[1]
    assert (cut["complete"], cut["provenance"]["finish_reason"], len(cut["messages"])) == (False, "length", 3)
    assert called["messages"][2] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert "complete" not in called
    assert len(read_examples([tmp_path / "cut.jsonl", tmp_path / "called.jsonl"])) == 4


def test_what_is_cut_off_can_be_left_out_and_is_not_asked_for_again(server, source, tmp_path):
    out = tmp_path / "out.jsonl"
    server.reply = lambda body: {"message": {"content": "no en"}, "text": "no en", "finish_reason": "length"}
    for _ in range(2):
        report = ask(server, source, out, drop_cut=True)
        assert len(server.bodies) == 40
    assert (report.num_before, report.num_written) == (40, 0)
    assert {line["kind"] for line in left_out(out)} == {"cut"}
    assert out.read_bytes() == b""


def test_what_is_no_text_is_left_out(server, source, tmp_path):
    said = iter(
        [("", {}), ("a\ufffdb", {}), ("", {"reasoning_content": "hm"}), ("fine", {"reasoning": "hm"})]
    )

    def reply(body):
        text, extra = next(said)
        return {"message": {"content": text, **extra}, "text": text, "finish_reason": "stop"}

    server.reply = reply
    lines = [{"messages": [{"role": "user", "content": str(n)}]} for n in range(4)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = ask(server, source, tmp_path / "out.jsonl", concurrency=1)
    assert report.left_out == {"empty": 2, "unusable": 1}
    [row] = rows(tmp_path / "out.jsonl")
    assert row["messages"][1] == {"role": "assistant", "content": "fine", "reasoning_content": "hm"}


def test_calls_that_the_source_answers_stay_and_are_sent_as_the_protocol_has_them(server, tmp_path):
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "of the source"},
    ]
    tools = [{"type": "function", "function": {"name": "add"}}]
    source, out = tmp_path / "source.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"messages": messages, "tools": tools}) + "\n")
    assert ask(server, source, out).num_written == 1
    [row], [body] = rows(out), server.bodies
    assert row["messages"][:4] == messages[:4]
    assert row["messages"][4]["content"] == f"4: 2 ({body['seed']})"
    assert (row["tools"], body["tools"]) == (tools, tools)
    assert body["messages"][2]["tool_calls"] == [
        {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    ]


def test_pauses_double_up_to_a_limit_vary_and_honour_the_server():
    waiting = patience(first_s=1.0, longest_s=10.0)
    assert [waiting.pause(n, 0, 0.999) for n in (1, 2, 3, 4, 5, 500)] == pytest.approx(
        [1, 2, 4, 8, 10, 10], rel=1e-3
    )
    assert [waiting.pause(n, 0, 0) for n in (1, 2, 5)] == [0.5, 1, 5]
    assert waiting.pause(1, 33, 0) == 33
    assert waiting.pause(1, 1e9, 0) == client_module._LONGEST_WAIT_S


@pytest.mark.parametrize(
    ("given", "seconds"), [("3", 3), ("", 0), ("soon", 0), ("-4", 0), (None, 60), ("Mon, 32 Foo 2026", 0)]
)
def test_retry_after_is_seconds_or_a_date(given, seconds):
    if given is None:
        given = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    response = client_module.httpx2.Response(429, headers={"Retry-After": given})
    assert client_module._retry_after(response) == pytest.approx(seconds, abs=2)


def test_a_source_is_read_no_further_than_is_asked_for(server, source, tmp_path):
    """What is in memory does not grow with the data."""
    writer = ServerWriter(Server.at(server.url), PARAMS, concurrency=2)
    taken: list[int] = []

    def samples():
        session = plan(source, tmp_path / "out.jsonl")
        for number, line in enumerate(source.read_text().splitlines(), start=1):
            taken.append(number)
            prompt = session.columns.prompt(json.loads(line), "f", text_characters=9)
            yield Sample(number, prompt)

    for count, _ in enumerate(writer.write(samples()), start=1):
        assert len(taken) <= count + 2
