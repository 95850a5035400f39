"""A byte-level tokenizer made on the spot, for tests: one token a byte, specials, a chosen chat template."""

from __future__ import annotations

from collections.abc import Sequence

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

END, MASK, BEGIN = "<end>", "<mask>", "<begin>"
PLAIN_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
MARKED_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<end>{% endgeneration %}{% else %}{{ m['content'] }}<end>{% endif %}"
    "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
#: Like templates that keep a turn's reasoning only while it is the last one.
REWRITING_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]"
    "{% if m['role'] == 'assistant' and loop.last %}(thought){% endif %}"
    "{{ m['content'] }}<end>\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def tokenizer(
    *,
    chat_template: str | None = PLAIN_TEMPLATE,
    begin: bool = False,
    specials: Sequence[str] = (),
    merges: Sequence[tuple[str, str]] = (),
) -> transformers.PreTrainedTokenizerFast:
    """256 byte tokens, then the end, mask and begin tokens; ``begin`` puts one before every text.

    ``specials`` are more special tokens. ``merges`` join bytes, as ByteLevel writes them, into more tokens;
    words are not told apart then, so that a merge may reach anywhere.
    """
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not merges)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END, MASK, BEGIN, *specials])
    if begin:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A", special_tokens=[(BEGIN, backend.token_to_id(BEGIN))]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=END,
        mask_token=MASK,
        bos_token=BEGIN,
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )
