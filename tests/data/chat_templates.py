"""Chat templates built like those of four families, and their special tokens: written for the tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A template and the special tokens that it writes; ``end_of_turn`` is what the target stops at."""

    template: str
    special_tokens: tuple[str, ...]
    end_of_turn: str


CHATML = Family(
    template=(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    special_tokens=("<|im_start|>", "<|im_end|>"),
    end_of_turn="<|im_end|>",
)

# Reasoning is kept after the last question only; tools' answers are the user's; calls are tagged JSON.
QWEN3 = Family(
    template=(
        "{%- if tools %}"
        "{{- '<|im_start|>system\n' }}"
        "{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}"
        "{{- '<tools>' }}{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}"
        "{{- '\n</tools><|im_end|>\n' }}"
        "{%- elif messages[0].role == 'system' %}"
        "{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}"
        "{%- endif %}"
        "{%- set ns = namespace(last=-1) %}"
        "{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}"
        "{%- endfor %}"
        "{%- for m in messages %}"
        "{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
        "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
        "{%- elif m.role == 'assistant' %}"
        "{%- set thought = m.reasoning_content if m.reasoning_content is string else '' %}"
        "{{- '<|im_start|>assistant\n' }}"
        "{%- if loop.index0 > ns.last and (loop.last or thought) %}"
        "{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}"
        "{%- endif %}"
        "{{- m.content.lstrip('\n') }}"
        "{%- for call in m.tool_calls or [] %}"
        "{%- if not loop.first or m.content %}{{- '\n' }}{%- endif %}"
        "{{- '<tool_call>\n' }}{{- call.function | tojson }}{{- '\n</tool_call>' }}"
        "{%- endfor %}"
        "{{- '<|im_end|>\n' }}"
        "{%- elif m.role == 'tool' %}"
        "{%- if loop.previtem is not defined or loop.previtem.role != 'tool' %}"
        "{{- '<|im_start|>user' }}{%- endif %}"
        "{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
        "{%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}"
        "{%- endif %}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
    ),
    special_tokens=("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"),
    end_of_turn="<|im_end|>",
)

# A begin token, headers, a system turn in any case, contents trimmed, one call a turn, no line after a turn.
LLAMA3 = Family(
    template=(
        "{{- bos_token }}"
        "{%- if messages and messages[0].role == 'system' %}"
        "{%- set system = messages[0].content | trim %}{%- set rest = messages[1:] %}"
        "{%- else %}{%- set system = '' %}{%- set rest = messages %}{%- endif %}"
        "{{- '<|start_header_id|>system<|end_header_id|>\n\nKnown until: 2023\n\n' }}"
        "{%- for tool in tools or [] %}{{- tool | tojson }}{{- '\n\n' }}{%- endfor %}"
        "{{- system + '<|eot_id|>' }}"
        "{%- for m in rest %}"
        "{%- if m.tool_calls %}"
        "{%- if m.tool_calls | length != 1 %}{{- raise_exception('one tool call a turn') }}{%- endif %}"
        "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
        "{{- m.tool_calls[0].function | tojson }}{{- '<|eot_id|>' }}"
        "{%- elif m.role == 'tool' %}"
        "{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' }}{{- m.content | tojson }}{{- '<|eot_id|>' }}"
        "{%- else %}"
        "{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}"
        "{%- endif %}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}"
        "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
    ),
    special_tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    end_of_turn="<|eot_id|>",
)

# A begin token, the assistant is "model", the system's words open the first question, no tools.
GEMMA = Family(
    template=(
        "{{ bos_token }}"
        "{%- if messages[0].role == 'system' -%}"
        "{%- set first = messages[0].content + '\n\n' -%}{%- set rest = messages[1:] -%}"
        "{%- else -%}{%- set first = '' -%}{%- set rest = messages -%}{%- endif -%}"
        "{%- for m in rest -%}"
        "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}"
        "{{ raise_exception('roles must alternate user/assistant/user/...') }}{%- endif -%}"
        "{%- set role = 'model' if m.role == 'assistant' else m.role -%}"
        "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}"
        "{{ m.content | trim }}{{ '<end_of_turn>\n' }}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
    ),
    special_tokens=("<start_of_turn>", "<end_of_turn>"),
    end_of_turn="<end_of_turn>",
)

FAMILIES = {"chatml": CHATML, "qwen3": QWEN3, "llama3": LLAMA3, "gemma": GEMMA}
