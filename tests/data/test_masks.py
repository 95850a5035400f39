"""Loss masks under templates of four families: token by token what decoding would give and get back."""

from __future__ import annotations

import pytest
import torch

from deepspec.data import ChatExample, Message, tokenize
from deepspec.data.check import mask_problem
from deepspec.data.documents import Document, documents
from deepspec.errors import DataError
from tests import tiny_tokenizer
from tests.data.chat_templates import CHATML, FAMILIES, GEMMA, LLAMA3, QWEN3, Family

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
TOOL = {"type": "function", "function": {"name": "add"}}
PLAIN = (
    Message("system", "Be brief."),
    Message("user", "Hi?"),
    Message("assistant", "Yes."),
    Message("user", "Sure?"),
    Message("assistant", "Æ no"),
)
TOOLS = (
    Message("user", "2+3?"),
    Message("assistant", "", {"tool_calls": [CALL], "reasoning_content": "Add."}),
    Message("tool", "5", {"name": "add"}),
    Message("assistant", "It is 5."),
)


def tokenizer_of(family: Family, **options):
    return tiny_tokenizer.tokenizer(
        chat_template=family.template, specials=family.special_tokens, begin=True, **options
    )


def shown(family: Family, messages, tools=(), **options) -> list[str]:
    """The documents of a conversation as text, supervised runs in «»."""
    tok = tokenizer_of(family, **options)
    example = ChatExample("f:1", messages, tools)
    made = list(documents([example], tok))
    assert mask_problem(example, made, tok) is None
    assert_token_by_token(example, made, tok, family)
    return [marked(tok, document) for document in made]


def marked(tok, document: Document) -> str:
    text, group, was = "", [], False
    for token, now in zip(document.tokens.tolist(), document.supervised.tolist(), strict=True):
        if now != was:
            text += tok.decode(group) + ("«" if now else "»")
            group = []
        group.append(token)
        was = now
    return text + tok.decode(group) + ("»" if was else "")


def assert_token_by_token(example: ChatExample, made, tok, family: Family) -> None:
    """Each reply: transformers' own prompt tokens, then supervised tokens up to the end of the turn."""
    replies = [index for index, message in enumerate(example.messages) if message.role == "assistant"]
    conversation = [message.as_dict() for message in example.messages]
    tools = list(example.tools) or None
    end = tok.convert_tokens_to_ids(family.end_of_turn)
    for document in made:
        tokens, place = document.tokens.tolist(), 0
        while any(document.supervised.tolist()[place:]):
            start = document.supervised.tolist().index(True, place)
            index = replies.pop(0)
            prompt = tok.apply_chat_template(
                conversation[:index], tools=tools, add_generation_prompt=True, return_dict=False
            )
            assert tokens[:start] == prompt
            whole = tok.apply_chat_template(conversation[: index + 1], tools=tools, return_dict=False)
            stop = tokens.index(end, start) + 1
            assert tok.decode(whole).startswith(tok.decode(tokens[:stop]))
            assert document.supervised[start:stop].all()
            assert not document.supervised[stop : stop + 1].any()
            place = stop
    assert replies == []


def test_chatml_supervises_each_turn_with_its_end_and_no_line_after_it():
    assert shown(CHATML, PLAIN) == [
        (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n"
            "<|im_start|>assistant\n«Yes.<|im_end|>»\n<|im_start|>user\nSure?<|im_end|>\n"
            "<|im_start|>assistant\n«Æ no<|im_end|>»\n"
        )
    ]


def test_qwen3_drops_earlier_reasoning_so_each_turn_is_a_document_as_the_target_sees_it():
    head = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
    think = "<think>\n\n</think>\n\n"
    assert shown(QWEN3, PLAIN) == [
        f"{head}«{think}Yes.<|im_end|>»\n",
        (
            f"{head}Yes.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n"
            f"<|im_start|>assistant\n«{think}Æ no<|im_end|>»\n"
        ),
    ]


def test_qwen3_supervises_reasoning_and_calls_and_not_what_tools_answer():
    assert shown(QWEN3, TOOLS, (TOOL,)) == [
        (
            '<|im_start|>system\n<tools>\n{"type": "function", "function": {"name": "add"}}\n</tools>'
            "<|im_end|>\n"
            "<|im_start|>user\n2+3?<|im_end|>\n<|im_start|>assistant\n"
            '«<think>\nAdd.\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n'
            "</tool_call><|im_end|>»\n<|im_start|>user\n<tool_response>\n5\n</tool_response><|im_end|>\n"
            "<|im_start|>assistant\n«<think>\n\n</think>\n\nIt is 5.<|im_end|>»\n"
        )
    ]


def test_llama3_supervises_trimmed_turns_and_calls():
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    system = f"<begin>{header.format('system')}Known until: 2023\n\n"
    spaced = (*PLAIN[:4], Message("assistant", " Æ no \n"))
    assert shown(LLAMA3, spaced) == [
        (
            f"{system}Be brief.<|eot_id|>{header.format('user')}Hi?<|eot_id|>"
            f"{header.format('assistant')}«Yes.<|eot_id|>»{header.format('user')}Sure?<|eot_id|>"
            f"{header.format('assistant')}«Æ no<|eot_id|>»"
        )
    ]
    call = '{"name": "add", "arguments": {"a": 2, "b": 3}}'
    assert shown(LLAMA3, TOOLS, (TOOL,)) == [
        (
            f'{system}{{"type": "function", "function": {{"name": "add"}}}}\n\n<|eot_id|>'
            f"{header.format('user')}2+3?<|eot_id|>{header.format('assistant')}«{call}<|eot_id|>»"
            f'{header.format("ipython")}"5"<|eot_id|>{header.format("assistant")}«It is 5.<|eot_id|>»'
        )
    ]


def test_gemma_calls_the_assistant_model_and_opens_with_the_systems_words():
    assert shown(GEMMA, PLAIN) == [
        (
            "<begin><start_of_turn>user\nBe brief.\n\nHi?<end_of_turn>\n<start_of_turn>model\n"
            "«Yes.<end_of_turn>»\n<start_of_turn>user\nSure?<end_of_turn>\n<start_of_turn>model\n"
            "«Æ no<end_of_turn>»\n"
        )
    ]


def test_gemma_refuses_tools_in_the_templates_own_words():
    with pytest.raises(DataError, match="f:1: the chat template refuses the messages: roles must alternate"):
        shown(GEMMA, TOOLS)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_comes_after_the_last_reply_is_left_out(family):
    cut = shown(FAMILIES[family], (*PLAIN, Message("user", "And?")))
    assert cut == shown(FAMILIES[family], PLAIN)


@pytest.mark.parametrize("family", ["chatml", "llama3", "gemma"])
def test_a_token_that_would_reach_into_the_reply_is_cut_at_the_generation_prompt(family):
    messages = (Message("user", "Hi?"), Message("assistant", "Yes."))
    (document,) = shown(FAMILIES[family], messages, merges=[("Ċ", "Ċ"), ("Ċ", "Y")])
    assert document.split("«")[1].split("»")[0] == f"Yes.{FAMILIES[family].end_of_turn}"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reply_that_was_cut_off_is_what_the_target_wrote_and_nothing_says_that_it_ends(family):
    tok = tokenizer_of(FAMILIES[family])
    example = ChatExample("f:1", (*PLAIN[:4], Message("assistant", " Æ n ")), is_complete=False)
    made = list(documents([example], tok))
    assert mask_problem(example, made, tok) is None
    prompt = tok.apply_chat_template(
        [message.as_dict() for message in PLAIN[:4]], add_generation_prompt=True, return_dict=False
    )
    reply = tok(" Æ n ", add_special_tokens=False)["input_ids"]
    assert made[-1].tokens.tolist() == [*prompt, *reply]
    assert made[-1].supervised[-len(reply) :].all()
    assert marked(tok, made[0]).split("»")[0].endswith(f"Yes.{FAMILIES[family].end_of_turn}")


def test_a_template_that_marks_an_end_is_not_asked_about_a_reply_that_has_none():
    tok = tiny_tokenizer.tokenizer(chat_template=tiny_tokenizer.MARKED_TEMPLATE)
    examples = [ChatExample("f:1", PLAIN[1:], is_complete=is_complete) for is_complete in (True, False, True)]
    whole, cut, again = (marked(tok, document) for document in documents(examples, tok))
    assert (
        whole == again == "[user]Hi?<end>\n[assistant]«Yes.<end>»\n[user]Sure?<end>\n[assistant]«Æ no<end>»\n"
    )
    assert cut == whole.removesuffix("<end>»\n") + "»"


def test_reasoning_kept_apart_from_a_reply_that_was_cut_off_stands_where_the_template_puts_it():
    message = Message("assistant", "It is", {"reasoning_content": "Add."})
    example = ChatExample("f:1", (PLAIN[1], message), is_complete=False)
    [document] = documents([example], tokenizer_of(QWEN3))
    assert marked(tokenizer_of(QWEN3), document).endswith("«<think>\nAdd.\n</think>\n\nIt is»")
    changed = ChatExample(
        "f:1", (PLAIN[1], Message("assistant", " It is ", message.extra)), is_complete=False
    )
    with pytest.raises(DataError, match="f:1: message 2: the chat template changes the words"):
        list(documents([changed], tokenizer_of(LLAMA3)))


def test_a_mask_that_does_not_begin_after_the_generation_prompt_is_named():
    tok = tokenizer_of(CHATML)
    example = ChatExample("f:1", PLAIN)
    (document,) = documents([example], tok)
    first = int(document.supervised.int().argmax())
    late, missing, other = document.supervised.clone(), document.supervised.clone(), document.tokens.clone()
    late[first] = False
    missing[: first + 10] = False
    other[3] += 1
    said = [
        mask_problem(example, [Document("f:1", tokens, mask)], tok)
        for tokens, mask in (
            (document.tokens, late),
            (document.tokens, missing),
            (other, document.supervised),
        )
    ]
    assert said[0] == (
        f"message 3: {first + 1} tokens precede the supervised ones, and the template's generation prompt "
        f"has {first}"
    )
    assert said[1] == "2 turns are the assistant's and 1 runs of tokens are supervised"
    assert said[2] == "message 3: token 3 is 't', and in the template's generation prompt 's'"


def test_a_template_that_marks_too_much_is_noticed():
    template = tiny_tokenizer.MARKED_TEMPLATE.replace("[{{ m['role'] }}]{% if", "{% if").replace(
        "{% generation %}", "{% generation %}[assistant]"
    )
    tok = tiny_tokenizer.tokenizer(chat_template=template)
    example = ChatExample("f:1", PLAIN[1:3])
    made = list(documents([example], tok))
    assert "tokens precede the supervised ones" in str(mask_problem(example, made, tok))


def test_training_cuts_at_the_generation_prompt_too():
    tok = tokenizer_of(CHATML, merges=[("Ċ", "Y")])
    example = ChatExample("f:1", PLAIN[1:3])
    corpus = tokenize([example], tok, sequence_length=128)
    (document,) = documents([example], tok)
    assert torch.equal(corpus.tokens, document.tokens)
    assert tok.decode(corpus.tokens[corpus.supervised]) == "Yes.<|im_end|>"
