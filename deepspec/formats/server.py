"""What a running vLLM or SGLang says of the rounds that one prompt took; one prompt at a time.

vLLM counts drafts and accepted tokens at ``/metrics``, of all its requests: the difference around a prompt is
that prompt's, as long as nobody else uses the server. SGLang tells them with the response of ``/generate``.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, ClassVar
from urllib.parse import urlsplit

from deepspec.config import EvalConfig
from deepspec.errors import ConfigError, ResourceError
from deepspec.evaluate.acceptance import PromptLength

_SECONDS = 600
_COUNTER = re.compile(
    r"^vllm:spec_decode_num_(drafts|draft_tokens|accepted_tokens)(?:_total)?(?:\{[^}]*\})? (\S+)$"
)


class Server(ABC):
    """A server that decodes speculatively.

    Attributes:
        engine: what it is. num_draft: tokens that it drafts each round; None until it is known.
    """

    engine: ClassVar[str]
    num_draft: int | None = None

    def __init__(self, url: str) -> None:
        self.url = url

    @abstractmethod
    def decode(self, prompt: Sequence[int], config: EvalConfig) -> PromptLength:
        """Let it continue a prompt of token ids: tokens gained in rounds, bonus tokens too, and rounds."""


class VllmServer(Server):
    """By the counters at ``/metrics``."""

    engine = "vllm"

    def decode(self, prompt: Sequence[int], config: EvalConfig) -> PromptLength:
        if not hasattr(self, "_model"):
            self._model = _json(self.url, "/v1/models")["data"][0]["id"]
        before = counters(_get(self.url, "/metrics") or "")
        body = {
            "model": self._model,
            "prompt": list(prompt),
            "max_tokens": config.max_tokens,
            **_sampling(config),
        }
        _json(self.url, "/v1/completions", body)
        after = counters(_get(self.url, "/metrics") or "")
        drafts, drafted, accepted = (int(after[name] - before[name]) for name in before)
        if drafts:
            self.num_draft = max(self.num_draft or 0, round(drafted / drafts))
        return PromptLength(accepted + drafts, drafts)


class SglangServer(Server):
    """By what ``/generate`` says of each request."""

    engine = "sglang"

    def decode(self, prompt: Sequence[int], config: EvalConfig) -> PromptLength:
        sampling = {"max_new_tokens": config.max_tokens, **_sampling(config)}
        found = _json(self.url, "/generate", {"input_ids": list(prompt), "sampling_params": sampling})
        said = found["meta_info"]
        if "spec_verify_ct" not in said:
            raise ConfigError(f"{self.url}: SGLang does not decode speculatively; start it with a drafter")
        rounds = int(said["spec_verify_ct"])
        if rounds and (drafted := said.get("spec_draft_token_num")):
            self.num_draft = max(self.num_draft or 0, round(drafted / rounds))
        accepted = said.get("spec_accept_token_num")
        # The first token is the prompt's own, no round's.
        gained = int(said["completion_tokens"]) - 1 if accepted is None else int(accepted) + rounds
        return PromptLength(gained, rounds)


def find_server(url: str) -> Server:
    """The server at an address.

    Raises ConfigError when it is neither of the two or does not speculate, ResourceError without an answer.
    """
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ConfigError(f"{url}: give the server's address, as in http://localhost:8000")
    url = url.rstrip("/").removesuffix("/v1")
    text = _get(url, "/metrics", may_lack=True) or ""
    if any(line.startswith("vllm:") for line in text.splitlines()):
        if not any(counters(text, may_lack=True)):
            raise ConfigError(
                f"{url}: vLLM does not decode speculatively; start it with --speculative-config"
            )
        return VllmServer(url)
    if any(_get(url, path, may_lack=True) for path in ("/server_info", "/get_server_info")):
        return SglangServer(url)
    raise ConfigError(
        f"{url}: neither vLLM (no vllm: counters at /metrics) nor SGLang (no /server_info) answers"
    )


def counters(text: str, *, may_lack: bool = False) -> dict[str, float]:
    """vLLM's counts of drafts, draft tokens and accepted tokens, of all its engines; raises ConfigError."""
    found = dict.fromkeys(("drafts", "draft_tokens", "accepted_tokens"), 0.0)
    seen = set()
    for line in text.splitlines():
        if match := _COUNTER.match(line):
            found[match[1]] += float(match[2])
            seen.add(match[1])
    if seen != found.keys():
        if may_lack:
            return {}
        raise ConfigError(
            f"/metrics lacks vllm:spec_decode_num_{min(found.keys() - seen)}; it does not speculate"
        )
    return found


def _sampling(config: EvalConfig) -> dict[str, Any]:
    found: dict[str, Any] = {"temperature": config.temperature, "top_p": config.top_p}
    if config.top_k:
        found["top_k"] = config.top_k
    if config.min_p:
        found["min_p"] = config.min_p
    return found


def _json(url: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    text = _get(url, path, body)
    try:
        return json.loads(text or "")
    except ValueError as error:
        raise ResourceError(f"{url}{path} does not answer in JSON: {error}") from error


def _get(url: str, path: str, body: Mapping[str, Any] | None = None, *, may_lack: bool = False) -> str | None:
    """What is at a path, after a POST where there is a body; None where there is nothing and that may be."""
    place = urlsplit(url)
    kind = HTTPSConnection if place.scheme == "https" else HTTPConnection
    connection = kind(place.hostname or "", place.port, timeout=_SECONDS)
    try:
        data = None if body is None else json.dumps(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        connection.request("GET" if body is None else "POST", f"{place.path}{path}", data, headers)
        answer = connection.getresponse()
        text = answer.read().decode("utf-8", errors="replace")
    except (OSError, HTTPException) as error:
        raise ResourceError(f"{url} does not answer: {error}; is the server up?") from error
    finally:
        connection.close()
    if answer.status == 200:
        return text
    if may_lack and answer.status in (404, 405):
        return None
    raise ResourceError(
        f"{url}{path} answers {answer.status} {answer.reason}: {' '.join(text.split())[:200]}"
    )
