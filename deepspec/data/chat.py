"""Turns conversations and prompts into text by the tokenizer's own chat template.

Supervised are the assistant's tokens. A template with ``{% generation %}`` marks them itself. For any
other, each assistant turn is what the rendering up to it adds to the rendering of what came before with
the generation prompt; a template that rewrites earlier turns (dropping their reasoning, say) then gives
one document a turn, each being what the target would really have seen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deepspec.data.examples import ChatExample, Message
from deepspec.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Rendered:
    """A document as text.

    Attributes:
        source: ``file:line``.
        text: all of it.
        spans: half-open character ranges that are supervised, in order.
        is_templated: whether a chat template wrote it; it then holds all its special tokens already.
        is_complete: whether it ends here, rather than having been cut off.
    """

    source: str
    text: str
    spans: tuple[tuple[int, int], ...]
    is_templated: bool
    is_complete: bool = True


def require_template(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Raise DataError when the tokenizer has no chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f'{source}: "messages" need a chat template and the target\'s tokenizer has none; '
            'give {"prompt", "response"} or {"text"} instead'
        )


def marks_assistant(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template marks the assistant's tokens itself."""
    template = tokenizer.chat_template
    return isinstance(template, str) and _GENERATION_TAG.search(template) is not None


def marked_tokens(example: ChatExample, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """Tokens and supervised mask of a conversation under a template that marks the assistant's tokens."""
    encoded = _apply(
        tokenizer,
        example.messages,
        example.source,
        tools=example.tools,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return list(encoded["input_ids"]), [bool(flag) for flag in encoded["assistant_masks"]]


def render_chat(example: ChatExample, tokenizer: PreTrainedTokenizerBase) -> list[Rendered]:
    """The documents of a conversation under a template without marks, usually one."""
    documents: list[Rendered] = []
    text = ""
    spans: tuple[tuple[int, int], ...] = ()
    for index, message in enumerate(example.messages):
        if not message.is_reply:
            continue
        before = prompt_text(example, index, tokenizer)
        after = render(example.messages[: index + 1], tokenizer, example.source, tools=example.tools)
        if not after.startswith(before):
            raise DataError(
                f"{example.source}: message {index + 1}: the chat template does not continue its own "
                "generation prompt, so the assistant's tokens cannot be told apart; "
                'give {"prompt", "response"} instead'
            )
        if spans and not before.startswith(text):
            documents.append(Rendered(example.source, text, spans, is_templated=True))
            spans = ()
        if example.is_complete or index + 1 < len(example.messages):
            text, end = after, _turn_end(after, len(before), message.content)
        else:
            text = _cut_off(before, after, message, f"{example.source}: message {index + 1}")
            end = len(text)
        spans = (*spans, (len(before), end))
    documents.append(Rendered(example.source, text, spans, is_templated=True))
    return documents


def prompt_text(example: ChatExample, index: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the target sees when it is to write message ``index`` (from 0)."""
    return render(
        example.messages[:index], tokenizer, example.source, tools=example.tools, add_generation_prompt=True
    )


def _cut_off(before: str, after: str, message: Message, where: str) -> str:
    """The text up to the end of a reply that was cut off.

    Verbatim after the generation prompt, as the target wrote it, unless its reasoning is kept apart.
    """
    if not message.extra.get("reasoning_content"):
        return before + message.content
    found = after.rfind(message.content, len(before))
    if found < 0:
        raise DataError(f"{where}: the chat template changes the words of a reply that was cut off")
    return after[: found + len(message.content)]


def _turn_end(text: str, start: int, content: str) -> int:
    # What a template writes after its end-of-turn token (a line break) is never generated.
    found = text.rfind(content, start) if content else -1
    return max(len(text.rstrip()), found + len(content) if found >= 0 else 0)


def render(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    add_generation_prompt: bool = False,
) -> str:
    """The chat template's text; raises DataError with the template's own complaint."""
    require_template(tokenizer, source)
    options = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
    return str(_apply(tokenizer, messages, source, tools=tools, **options))


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[int, ...]:
    """Tokens of a raw prompt: with the tokenizer's begin token where it has one, never with its end token."""
    ids = list(tokenizer(prompt)["input_ids"])
    if ids and not prompt.endswith(str(tokenizer.eos_token)) and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return tuple(ids)


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    source: str = "prompt",
    tools: Sequence[Mapping[str, Any]] = (),
) -> tuple[int, ...]:
    """Tokens of a conversation that the assistant is to continue."""
    text = render(messages, tokenizer, source, tools=tools, add_generation_prompt=True)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    source: str,
    *,
    tools: Sequence[Mapping[str, Any]],
    **options: bool,
) -> Any:
    from jinja2 import TemplateError

    conversation = [message.as_dict() for message in messages]
    try:
        return tokenizer.apply_chat_template(conversation, tools=list(tools) or None, **options)
    except (TemplateError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{source}: the chat template refuses the messages: {reason}") from error
