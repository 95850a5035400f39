"""``serve-check`` against servers on this machine that answer as vLLM and SGLang do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from deepspec.config import EvalConfig
from deepspec.errors import ConfigError, ResourceError
from deepspec.evaluate.acceptance import prompt_lengths
from deepspec.evaluate.decoding import decode_rounds
from deepspec.formats.serve_check import serve_check
from deepspec.formats.server import counters, find_server
from tests.tiny_runs import save_prompts, untrained_run

METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="tiny"}} 0.0
# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{{engine="0",model_name="tiny"}} {drafts}
# TYPE vllm:spec_decode_num_drafts_created gauge
vllm:spec_decode_num_drafts_created{{engine="0",model_name="tiny"}} 1.7e+09
# HELP vllm:spec_decode_num_draft_tokens_total Number of draft tokens.
vllm:spec_decode_num_draft_tokens_total{{engine="0",model_name="tiny"}} {drafted}
vllm:spec_decode_num_accepted_tokens_total{{engine="0",model_name="tiny"}} {accepted}
vllm:spec_decode_num_accepted_tokens_total{{engine="1",model_name="tiny"}} 0.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",model_name="tiny",position="0"}} 3.0
"""


class Fake(ThreadingHTTPServer):
    """Decodes each prompt in the rounds of ``lengths``, next to earlier traffic."""

    engine = "vllm"
    num_draft = 3

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.lengths: dict[tuple[int, ...], tuple[int, int]] = {}
        self.drafts, self.accepted = 1e3, 2e3
        self.asked: list[dict[str, object]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Silent."""

    def reply(self, text: str, status: int = 200) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        fake = self.server
        if fake.engine == "vllm" and self.path == "/metrics":
            drafted = fake.drafts * fake.num_draft
            return self.reply(METRICS.format(drafts=fake.drafts, drafted=drafted, accepted=fake.accepted))
        if fake.engine == "plain" and self.path == "/metrics":
            return self.reply('vllm:num_requests_running{engine="0"} 0.0\n')
        if fake.engine == "vllm" and self.path == "/v1/models":
            return self.reply(json.dumps({"data": [{"id": "tiny"}]}))
        if fake.engine == "sglang" and self.path == "/server_info":
            return self.reply(json.dumps({"internal_states": [{"avg_spec_accept_length": 2.5}]}))
        return self.reply("not found", 404)

    def do_POST(self) -> None:
        fake = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fake.asked.append(body)
        gained, rounds = fake.lengths[tuple(body.get("prompt", body.get("input_ids")))]
        fake.drafts += rounds
        fake.accepted += gained - rounds
        if self.path == "/v1/completions":
            return self.reply(
                json.dumps({"choices": [{"text": "x"}], "usage": {"completion_tokens": gained}})
            )
        said = {
            "completion_tokens": gained + 1,
            "spec_verify_ct": rounds,
            "spec_accept_length": gained / rounds,
        }
        return self.reply(json.dumps({"text": "x", "meta_info": said}))


@pytest.fixture
def fake() -> Iterator[Fake]:
    server = Fake()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def loaded():
    return untrained_run()


CONFIG = EvalConfig(num_prompts=6, max_tokens=12, temperature=0.0, batch=6)


@pytest.fixture
def rounds(loaded, fake, tmp_path) -> str:
    """The fake decodes as we do; the task of the prompts."""
    words = ["the cat", "a dog", "what is", "one two", "hello there", "def f(x)"]
    prompts = [tuple(loaded.target.tokenizer.encode(word)) for word in words]
    found = prompt_lengths(decode_rounds(loaded.target, loaded.parts, prompts, CONFIG))
    fake.lengths = {prompt: tuple(length) for prompt, length in zip(prompts, found, strict=True)}
    return f"mine={save_prompts(tmp_path / 'prompts.jsonl', words)}"


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_server_that_decodes_as_we_do_agrees(engine, loaded, fake, rounds):
    fake.engine = engine
    found = serve_check(fake.url + "/v1/", loaded, task_files=[rounds], config=CONFIG)
    assert found.engine == engine
    assert found.agrees
    assert found.theirs == found.ours
    assert (found.paired.difference.low, found.paired.difference.high) == (0, 0)
    assert found.to_json()["num_prompts"] == 6
    assert found.num_draft == (3 if engine == "vllm" else None)
    given = fake.asked[0] if engine == "vllm" else fake.asked[0]["sampling_params"]
    assert given["temperature"] == 0.0
    assert given["max_tokens" if engine == "vllm" else "max_new_tokens"] == 12


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_server_that_reads_the_drafter_wrong_differs(engine, loaded, fake, rounds):
    fake.engine = engine
    fake.lengths = {prompt: (2 * gained + 3, count) for prompt, (gained, count) in fake.lengths.items()}
    found = serve_check(fake.url, loaded, task_files=[rounds], config=CONFIG)
    assert not found.agrees
    assert found.paired.difference.low > 0
    assert found.paired.ratio.mean > 2


def test_another_number_of_draft_tokens_is_no_comparison(loaded, fake, rounds):
    fake.num_draft = 4
    with pytest.raises(ConfigError, match="drafts 4 tokens a round and this drafter 3; start it with 3"):
        serve_check(fake.url, loaded, task_files=[rounds], config=CONFIG)


def test_what_is_no_such_server_is_said_in_one_line(fake):
    fake.engine = "plain"
    with pytest.raises(
        ConfigError, match="vLLM does not decode speculatively; start it with --speculative-config"
    ):
        find_server(fake.url)
    fake.engine = "none"
    with pytest.raises(ConfigError, match="neither vLLM .* nor SGLang"):
        find_server(fake.url)
    with pytest.raises(ConfigError, match="give the server's address"):
        find_server("localhost:8000")
    with pytest.raises(ResourceError, match="does not answer"):
        find_server("http://127.0.0.1:1")


def test_counters_are_summed_over_engines():
    text = METRICS.format(drafts=10, drafted=30, accepted=12).replace(
        'engine="1",model_name="tiny"}} 0.0', ""
    )
    both = text + text.replace('engine="0"', 'engine="1"')
    assert counters(both) == {"drafts": 20, "draft_tokens": 60, "accepted_tokens": 24}
