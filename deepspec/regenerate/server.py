"""The target writes behind a server that speaks OpenAI's protocol, such as vLLM or SGLang.

Conversations go to ``/chat/completions``, text to ``/completions``; some at once, each by its own requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import httpx2

from deepspec.data.examples import Message
from deepspec.data.prompts import TextPrompt
from deepspec.errors import ConfigError, ServerError, nearest
from deepspec.regenerate.client import Client, MalformedError, Patience, UnansweredError
from deepspec.regenerate.conversation import Conversation
from deepspec.regenerate.samples import FinishReason, LeftOut, Outcome, Reply, Sample
from deepspec.sampling import SamplingParams

#: Servers differ in how large a seed may be; all take this much.
_SEED_BITS = 31
_FINISHED: Mapping[str, FinishReason] = {"stop": "stop", "length": "length", "tool_calls": "tool_calls"}
_LONGEST_QUESTION_S = 30.0
#: Who tells its version where: vLLM, SGLang.
_VERSION_PATHS = ("/version", "/server_info", "/get_server_info")


@dataclass(frozen=True)
class Server:
    """A server that has been asked what it serves.

    Attributes:
        url: everything before ``/models``. model: what it calls the target.
        version: None where it does not say.
        extra: more for the body of every request, such as ``{"chat_template_kwargs": {...}}``.
    """

    url: str
    model: str
    version: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    patience: Patience = field(default_factory=Patience)

    @classmethod
    def at(
        cls,
        address: str,
        model: str | None = None,
        *,
        extra: Mapping[str, Any] | None = None,
        patience: Patience | None = None,
    ) -> Server:
        """The server at an address, with or without ``/v1``; ``model`` may be left out where it has one.

        Raises:
            ConfigError: no such address or model, or the server refuses the key.
            ServerError: it cannot be reached, or does not answer.
        """
        url, patience = _base_url(address), patience or Patience()
        names, version = asyncio.run(_ask_what_it_is(url, patience))
        if model is None and len(names) != 1:
            raise ConfigError(f"{url} serves {', '.join(names) or 'no model'}; name one with --model")
        chosen = names[0] if model is None else model
        if chosen not in names:
            raise ConfigError(f"{url} serves no model {chosen!r}; {nearest(chosen, names)}")
        return cls(url, chosen, version, extra or {}, patience)


class ServerWriter:
    """Writes by a server; ``params.seed`` is the root of all seeds."""

    def __init__(self, server: Server, params: SamplingParams, *, concurrency: int = 32) -> None:
        self._server, self.params, self.concurrency = server, params, concurrency

    def identity(self) -> dict[str, Any]:
        """The model's name and what every request says beside; the server may have moved."""
        return {"model": self._server.model, "body": dict(self._server.extra)}

    def details(self) -> dict[str, Any]:
        """Where it is served and by what."""
        return {"server": self._server.url, "model": self._server.model, "version": self._server.version}

    def write(self, samples: Iterator[Sample]) -> Generator[Outcome]:
        """See :class:`deepspec.regenerate.samples.Writer`; must run on a thread without an event loop."""
        with asyncio.Runner() as runner:
            client = Client(self._server.url, self._server.patience, connections=self.concurrency)
            running: set[asyncio.Task[Outcome]] = set()
            try:
                while True:
                    for sample in islice(samples, self.concurrency - len(running)):
                        running.add(runner.get_loop().create_task(self._write(client, sample)))
                    if not running:
                        return
                    done, running = runner.run(_first_of(running))
                    failed = [task for task in done if task.exception() is not None]
                    yield from (task.result() for task in done if task not in failed)
                    for task in failed:
                        task.result()
            finally:
                runner.run(_stop(running, client))

    async def _write(self, client: Client, sample: Sample) -> Outcome:
        conversation = Conversation(sample, self.params)
        while True:
            path, body, parse = self._request(conversation)
            try:
                outcome = conversation.take(await client.ask(path, body, parse))
            except UnansweredError as error:
                return LeftOut(sample, "failed", str(error))
            if outcome is not None:
                return outcome

    def _request(self, conversation: Conversation) -> tuple[str, dict[str, Any], Callable[[Any], Reply]]:
        """Where to ask for the next turn, with what, and how to read the answer."""
        params, seed = self.params, conversation.seed % 2**_SEED_BITS
        body: dict[str, Any] = {
            "model": self._server.model,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "max_tokens": params.max_tokens,
            "seed": seed,
            "stream": False,
        }
        # Not of the protocol, though vLLM and SGLang know them.
        body |= {name: value for name in ("top_k", "min_p") if (value := getattr(params, name))}
        prompt = conversation.sample.prompt
        if isinstance(prompt, TextPrompt):
            body |= {"prompt": prompt.text, **self._server.extra}
            return "/completions", body, lambda found: _text_reply(found, seed)
        body["messages"] = [_as_sent(message) for message in conversation.messages]
        if prompt.tools:
            body["tools"] = list(prompt.tools)
        return "/chat/completions", {**body, **self._server.extra}, lambda found: _chat_reply(found, seed)


def _base_url(address: str) -> str:
    try:
        url = httpx2.URL(address)
    except httpx2.InvalidURL as error:
        raise ConfigError(f"--server {address!r} is no address: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"--server {address!r}: give an address such as http://localhost:8000/v1")
    return address.rstrip("/") + ("/v1" if url.path in ("", "/") else "")


async def _ask_what_it_is(url: str, patience: Patience) -> tuple[list[str], str | None]:
    """The models that a server lists, and its version."""
    patience = replace(patience, timeout_s=min(patience.timeout_s, _LONGEST_QUESTION_S), retries=0)
    async with Client(url, patience) as client:
        try:
            names = await client.ask("/models", None, _model_names)
        except UnansweredError as error:
            raise ServerError(f"{error}; is a server running there?") from error
    async with Client(str(httpx2.URL(url).join("/")).rstrip("/"), patience) as client:
        for path in _VERSION_PATHS:
            with contextlib.suppress(UnansweredError, ConfigError):
                return names, await client.ask(path, None, _version)
    return names, None


async def _first_of(
    tasks: set[asyncio.Task[Outcome]],
) -> tuple[set[asyncio.Task[Outcome]], set[asyncio.Task[Outcome]]]:
    return await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


async def _stop(tasks: set[asyncio.Task[Outcome]], client: Client) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()


def _as_sent(message: Message) -> dict[str, Any]:
    """As the protocol has it: what a call is given is JSON text."""
    sent = message.as_dict()
    if "tool_calls" in sent:
        sent["tool_calls"] = [_call_as_sent(call) for call in sent["tool_calls"]]
    return sent


def _call_as_sent(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or isinstance(function.get("arguments"), str):
        return dict(call)
    arguments = json.dumps(function.get("arguments", {}), ensure_ascii=False)
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}


def _model_names(found: Any) -> list[str]:
    items = found.get("data") if isinstance(found, dict) else None
    if not isinstance(items, list):
        raise MalformedError("the answer lists no models")
    return [item["id"] for item in items if isinstance(item, dict) and isinstance(item.get("id"), str)]


def _version(found: Any) -> str:
    version = found.get("version") if isinstance(found, dict) else None
    if not isinstance(version, str):
        raise MalformedError("the answer has no version")
    return version


def _chat_reply(found: Any, seed: int) -> Reply:
    choice = _choice(found)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise MalformedError("the answer's choice has no message")
    extra: dict[str, Any] = {}
    if reasoning := message.get("reasoning_content") or message.get("reasoning"):
        extra["reasoning_content"] = _text(reasoning)
    if calls := message.get("tool_calls"):
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise MalformedError("the answer's tool_calls are no list of calls")
        extra["tool_calls"] = calls
    return _reply(found, choice, _text(message.get("content") or ""), seed, extra)


def _text_reply(found: Any, seed: int) -> Reply:
    choice = _choice(found)
    return _reply(found, choice, _text(choice.get("text")), seed, {})


def _choice(found: Any) -> dict[str, Any]:
    choices = found.get("choices") if isinstance(found, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise MalformedError("the answer has no choices")
    return choices[0]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise MalformedError(f"the answer has {type(value).__name__} where text should be")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise MalformedError("the answer's text holds half of a surrogate pair") from None
    return value


def _reply(
    found: dict[str, Any], choice: dict[str, Any], text: str, seed: int, extra: dict[str, Any]
) -> Reply:
    given = choice.get("finish_reason")
    reason = _FINISHED.get(given) if isinstance(given, str) else None
    if reason is None:
        raise MalformedError(f"the answer's finish_reason is {given!r}")
    usage, tokens = found.get("usage"), choice.get("token_ids")
    if isinstance(tokens, list) and not all(isinstance(token, int) for token in tokens):
        raise MalformedError("the answer's token_ids are no numbers")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return Reply(
        text=text,
        finish_reason="tool_calls" if extra.get("tool_calls") and reason == "stop" else reason,
        seed=seed,
        num_tokens=count if isinstance(count, int) else None,
        tokens=tuple(tokens) if isinstance(tokens, list) else None,
        extra=extra,
    )
