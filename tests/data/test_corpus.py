"""Tokenising: which tokens are supervised in each form, the errors, and the split by document."""

from __future__ import annotations

import pytest
import torch
from tokenizers import processors

from deepspec.data import (
    ChatExample,
    Message,
    ResponseExample,
    TextExample,
    encode_chat,
    encode_prompt,
    joined,
    split_held_out,
    tokenize,
)
from deepspec.data import corpus as corpus_module
from deepspec.errors import ConfigError, DataError
from tests import tiny_tokenizer

TALK = (
    Message("user", "Hi?"),
    Message("assistant", "Yes."),
    Message("user", "Sure?"),
    Message("assistant", "Æ no"),
)


def corpus_of(*examples, length=512, **options):
    tok = tiny_tokenizer.tokenizer(**options)
    return tok, tokenize(examples, tok, sequence_length=length)


def marked(tok, corpus, piece=0):
    """The piece as text with its supervised runs in «»."""
    ends = [0, *corpus.ends.tolist()]
    places = range(ends[piece], ends[piece + 1])
    out, was = b"", False
    for place in places:
        now = bool(corpus.supervised[place])
        if now != was:
            out += ("«" if now else "»").encode()
        was = now
        token = int(corpus.tokens[place])
        is_byte = token < 256
        out += bytes([BYTE_OF[tok.convert_ids_to_tokens(token)]]) if is_byte else tok.decode([token]).encode()
    return (out + ("»".encode() if was else b"")).decode()


def copied(corpus):
    """All pieces, one after the other."""
    return corpus.select(torch.arange(corpus.num_pieces))


def _byte_of():
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}


BYTE_OF = _byte_of()


def test_all_of_a_text_is_supervised_with_its_end_token():
    tok, corpus = corpus_of(TextExample("f:1", "naïve"))
    assert marked(tok, corpus) == "«naïve<end>»"


@pytest.mark.parametrize("closing", [False, True])
def test_what_was_cut_off_is_not_followed_by_an_end_token(closing):
    tok = tiny_tokenizer.tokenizer()
    if closing:
        tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <end>", special_tokens=[("<end>", tok.eos_token_id)]
        )
    examples = [
        TextExample("f:1", "ab", is_complete=False),
        ResponseExample("f:2", "2+2=", "4", is_complete=False),
        TextExample("f:3", "ab"),
    ]
    corpus = tokenize(examples, tok, sequence_length=64)
    assert [marked(tok, corpus, i) for i in range(3)] == ["«ab»", "2+2=«4»", "«ab<end>»"]


def test_a_begin_token_that_the_tokenizer_adds_is_kept_and_not_supervised():
    tok, corpus = corpus_of(TextExample("f:1", "ab"), begin=True)
    assert marked(tok, corpus) == "<begin>«ab<end>»"


def test_of_a_prompt_and_response_the_response_is_supervised():
    tok, corpus = corpus_of(ResponseExample("f:1", "2+2=", "4 ☺"), begin=True)
    assert marked(tok, corpus) == "<begin>2+2=«4 ☺<end>»"


def test_a_template_that_marks_the_assistant_is_believed():
    tok, corpus = corpus_of(ChatExample("f:1", TALK), chat_template=tiny_tokenizer.MARKED_TEMPLATE)
    text = "[user]Hi?<end>\n[assistant]«Yes.<end>»\n[user]Sure?<end>\n[assistant]«Æ no<end>»\n"
    assert marked(tok, corpus) == text


def test_other_templates_are_read_off_their_prefixes_and_stop_at_the_end_of_turn():
    tok, corpus = corpus_of(ChatExample("f:1", TALK))
    text = "[user]Hi?<end>\n[assistant]«Yes.<end>»\n[user]Sure?<end>\n[assistant]«Æ no<end>»\n"
    assert marked(tok, corpus) == text


def test_a_template_that_rewrites_earlier_turns_gives_a_document_a_turn():
    tok, corpus = corpus_of(ChatExample("f:1", TALK), chat_template=tiny_tokenizer.REWRITING_TEMPLATE)
    assert corpus.num_pieces == 2
    assert marked(tok, corpus, 0) == "[user]Hi?<end>\n[assistant]«(thought)Yes.<end>»\n"
    assert (
        marked(tok, corpus, 1)
        == "[user]Hi?<end>\n[assistant]Yes.<end>\n[user]Sure?<end>\n[assistant]«(thought)Æ no<end>»\n"
    )


def test_a_conversation_without_a_chat_template_is_an_error():
    with pytest.raises(DataError, match='f:1: "messages" need a chat template'):
        corpus_of(ChatExample("f:1", TALK), chat_template=None)


def test_a_template_that_refuses_the_roles_is_an_error_with_its_own_words():
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="f:1: the chat template refuses the messages: roles must alternate"):
        corpus_of(ChatExample("f:1", TALK), chat_template=template)


def test_a_template_that_does_not_continue_its_generation_prompt_is_an_error():
    template = tiny_tokenizer.PLAIN_TEMPLATE.replace("%}[assistant]{%", "%}<<assistant>>{%")
    with pytest.raises(DataError, match=r"f:1: message 2: the chat template does not continue"):
        corpus_of(ChatExample("f:1", TALK), chat_template=template)


def test_text_that_uses_a_reserved_token_is_an_error_that_names_it():
    tok = tiny_tokenizer.tokenizer()
    examples = [TextExample("f:1", "fine"), TextExample("f:2", "a <mask> b")]
    with pytest.raises(DataError, match=r"f:2: the text uses the token '<mask>' \(id 257\)"):
        tokenize(examples, tok, sequence_length=64, reserved_token_ids=(999, 257))
    tokenize(examples, tok, sequence_length=64)


def test_a_reserved_token_in_a_conversation_is_found_too():
    tok = tiny_tokenizer.tokenizer(chat_template=tiny_tokenizer.MARKED_TEMPLATE)
    example = ChatExample("f:9", (Message("user", "<mask>"), Message("assistant", "what?")))
    with pytest.raises(DataError, match="f:9: the text uses the token '<mask>'"):
        tokenize([example], tok, sequence_length=64, reserved_token_ids=(tok.mask_token_id,))


def test_nothing_supervised_is_an_error():
    template = tiny_tokenizer.MARKED_TEMPLATE.replace("{% generation %}", "").replace(
        "{% endgeneration %}", ""
    )
    template = "{% if false %}{% generation %}{% endgeneration %}{% endif %}" + template
    with pytest.raises(DataError, match=r"no token is supervised in 1 examples \(f:1"):
        corpus_of(ChatExample("f:1", TALK), chat_template=template)
    with pytest.raises(DataError, match="no token is supervised in 0 examples"):
        corpus_of()


def test_long_documents_are_cut_and_pieces_without_labels_are_left_out():
    _, corpus = corpus_of(ResponseExample("f:1", "p" * 20, "r" * 11), TextExample("f:2", "t" * 3), length=8)
    # 20 + 11 + 1 tokens: [8 p][8 p][4 p 4 r][7 r end], then 4.
    assert corpus.lengths().tolist() == [8, 8, 4]
    assert corpus.documents.tolist() == [0, 0, 1]
    assert corpus.supervised[:8].tolist() == [False] * 4 + [True] * 4


def test_a_piece_whose_first_token_alone_is_supervised_teaches_nothing():
    _, corpus = corpus_of(TextExample("f:1", "t" * 8), length=8)
    assert corpus.lengths().tolist() == [8]


def test_a_sequence_length_of_one_is_refused():
    with pytest.raises(ConfigError, match="at least 2"):
        corpus_of(TextExample("f:1", "abc"), length=1)


def test_many_documents_keep_their_order_across_chunks():
    examples = [
        ChatExample(f"f:{i}", (Message("user", "q"), Message("assistant", f"{i};")))
        if i % 3 == 0
        else TextExample(f"f:{i}", f"{i};")
        for i in range(200)
    ]
    tok, corpus = corpus_of(*examples)
    assert [marked(tok, corpus, i).split("«")[1].split(";")[0] for i in range(200)] == [
        str(i) for i in range(200)
    ]


def test_the_split_goes_by_document_and_depends_on_the_seed_alone():
    examples = [TextExample(f"f:{i}", chr(97 + i % 26) * (5 + 7 * i)) for i in range(20)]
    _, corpus = corpus_of(*examples, length=16)
    train, held_out = split_held_out(corpus, 0.2, seed=3)
    assert len(held_out.documents.unique()) == 4
    assert len(train.documents.unique()) == 16
    assert set(train.documents.tolist()).isdisjoint(held_out.documents.tolist())
    assert train.num_tokens + held_out.num_tokens == corpus.num_tokens
    again = split_held_out(corpus, 0.2, seed=3)[1]
    other = split_held_out(corpus, 0.2, seed=4)[1]
    assert torch.equal(copied(held_out).tokens, copied(again).tokens)
    assert held_out.documents.unique().tolist() != other.documents.unique().tolist()


@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_what_was_split_is_joined_piece_by_piece(fraction):
    _, corpus = corpus_of(*(TextExample(f"f:{i}", chr(97 + i) * (5 + 7 * i)) for i in range(9)), length=16)
    parts = split_held_out(corpus, fraction, seed=1)
    whole = joined(*parts)
    lengths = [part.num_pieces for part in parts]
    for part, start in zip(parts, (0, lengths[0]), strict=True):
        again = whole.select(torch.arange(start, start + part.num_pieces))
        for name in ("tokens", "supervised", "ends"):
            assert getattr(again, name).equal(getattr(copied(part), name))
    assert whole.num_tokens == corpus.num_tokens
    assert len(whole.documents.unique()) == 9


def test_a_small_fraction_still_holds_one_document_out_and_zero_holds_none():
    _, corpus = corpus_of(TextExample("f:1", "abc"), TextExample("f:2", "def"))
    assert [len(part.documents.unique()) for part in split_held_out(corpus, 0.01, seed=0)] == [1, 1]
    assert [part.num_pieces for part in split_held_out(corpus, 0.0, seed=0)] == [2, 0]
    _, single = corpus_of(TextExample("f:1", "abc"))
    with pytest.raises(DataError, match="one document cannot be split"):
        split_held_out(single, 0.1, seed=0)


def test_selected_pieces_are_the_pieces_asked_for():
    tok, corpus = corpus_of(*[TextExample(f"f:{i}", str(i) * (i + 1)) for i in range(6)])
    chosen = corpus.select(torch.tensor([4, 1]))
    assert [marked(tok, chosen, i) for i in range(2)] == ["«44444<end>»", "«11<end>»"]


def test_labels_are_counted_part_by_part(monkeypatch):
    monkeypatch.setattr(corpus_module, "_PART", 3)
    tok, corpus = corpus_of(ResponseExample("f:1", "aab", "abca"), TextExample("f:2", "bb"))
    counts = corpus.label_counts(len(tok))
    expected = {"a": 2, "b": 3, "c": 1, "<end>": 2}
    assert {
        tok.convert_ids_to_tokens(i): int(counts[i]) for i in counts.nonzero().flatten().tolist()
    } == expected


def test_prompts_are_encoded_as_decoding_needs_them():
    tok = tiny_tokenizer.tokenizer(begin=True)
    assert tok.decode(encode_prompt(tok, "ab")) == "<begin>ab"
    assert tok.decode(encode_chat(tok, [Message("user", "ab")])) == "[user]ab<end>\n[assistant]"
    with pytest.raises(DataError, match="need a chat template"):
        encode_chat(tiny_tokenizer.tokenizer(chat_template=None), [Message("user", "ab")])
