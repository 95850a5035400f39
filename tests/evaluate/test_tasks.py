"""Tasks: what ships, what a task file may hold, and the one line that a missing data set gives."""

from __future__ import annotations

import json

import datasets
import pytest

from deepspec.data.default import default_examples
from deepspec.data.local_text import is_held_out
from deepspec.errors import ConfigError, DataError
from deepspec.evaluate import hub
from deepspec.evaluate.tasks import EvalTask, Prose, Stdlib, file_prompts, spread
from deepspec.paths import asset
from deepspec.plugins import create_plugin_manager, register, resolve_part
from tests import tiny_tokenizer

SHIPPED = ("stdlib", "prose")


def shipped(name):
    return [json.loads(line) for line in asset(f"prompts/{name}.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_prompts_are_distinct_and_from_held_out_modules(name):
    rows = shipped(name)
    assert len(rows) >= 150
    assert all(set(row) == {"prompt", "source"} for row in rows)
    assert len({row["prompt"][:60] for row in rows}) == len(rows)
    assert all(is_held_out(row["source"]) for row in rows)


def test_shipped_code_has_the_stated_sizes_and_ends_at_line_ends():
    prompts = [row["prompt"] for row in shipped("stdlib")]
    assert all(400 <= len(prompt) <= 700 and prompt.endswith("\n") for prompt in prompts)
    assert not any(prompt[0].isspace() for prompt in prompts)


def test_shipped_prose_has_the_stated_sizes_and_ends_after_a_word():
    prompts = [row["prompt"] for row in shipped("prose")]
    assert all(90 <= len(prompt) <= 360 and not prompt[-1].isspace() for prompt in prompts)


def test_no_shipped_prompt_is_in_the_default_training_text():
    text = "\n".join(example.text for example in default_examples([], byte_limit=2**62))
    for name in SHIPPED:
        assert not [row["source"] for row in shipped(name) if row["prompt"][-80:] in text]


@pytest.mark.parametrize("task", [Stdlib, Prose])
def test_the_offline_tasks_give_as_many_prompts_as_asked_the_same_each_time(task):
    tok = tiny_tokenizer.tokenizer()
    prompts = task().prompts(tok, 20)
    assert len(set(prompts)) == 20
    assert prompts == task().prompts(tok, 20)
    assert len(task().prompts(tok, 10_000)) >= 150


def test_prompts_are_spread_over_the_whole_source():
    assert spread(range(100), 4) == [0, 25, 50, 75]
    assert spread(range(3), 4) == [0, 1, 2]


def test_a_task_file_holds_raw_prompts_and_conversations(tmp_path):
    tok = tiny_tokenizer.tokenizer(begin=True)
    file = tmp_path / "mine.jsonl"
    file.write_text(
        '{"prompt": "def f(", "source": "me"}\n{"messages": [{"role": "user", "content": "hi"}]}\n', "utf-8"
    )
    texts = [tok.decode(prompt) for prompt in file_prompts(file, tok, 10)]
    assert texts == ["<begin>def f(", "[user]hi<end>\n[assistant]"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"text": "a"}', 'given: "text"'),
        ('{"prompt": 3}', '"prompt" must be text'),
        ('{"prompt": ""}', '"prompt" is empty'),
        ('{"messages": []}', '"messages" must be a list'),
        ("nothing", "not JSON"),
    ],
)
def test_a_bad_line_of_a_task_file_is_named(tmp_path, line, complaint):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "fine"}\n' + line + "\n", "utf-8")
    with pytest.raises(DataError) as caught:
        file_prompts(file, tiny_tokenizer.tokenizer(), 10)
    assert str(caught.value).startswith(f"{file}:2: ")
    assert complaint in str(caught.value)


BUILT_IN = [task for task in EvalTask.__subclasses__() if task.__module__ == EvalTask.__module__]
ONLINE = [task for task in BUILT_IN if task not in (Stdlib, Prose)]


@pytest.mark.parametrize("task", ONLINE, ids=lambda task: task.name)
def test_offline_a_hub_task_fails_in_one_line_that_names_the_flag(task, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(DataError) as caught:
        task().prompts(tiny_tokenizer.tokenizer(), 4)
    message = str(caught.value)
    assert "\n" not in message
    assert f"--task-file {task.name}=FILE.jsonl" in message
    assert "Couldn't reach" in message


ROWS = {
    "gsm8k": {"question": "How many?", "answer": "3"},
    "math500": {"problem": "Find x.", "solution": "."},
    "humaneval": {"prompt": "def f():\n", "canonical_solution": "    pass\n"},
    "mbpp": {"prompt": "Write f.", "code": ""},
    "mt-bench": {"prompt": ["First?", "Second?"], "category": "writing"},
    "alpaca": {"instruction": "Sum up.", "input": "A text.", "output": ""},
}


@pytest.mark.parametrize("task", ONLINE, ids=lambda task: task.name)
def test_a_hub_task_takes_its_prompt_field_and_the_chat_template_if_there_is_one(task, monkeypatch):
    asked = []

    def load_dataset(name, config, *, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list([ROWS[task.name]] * 3)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    expected = {
        "gsm8k": "How many?",
        "math500": "Find x.",
        "humaneval": "Complete this Python function:\n\n```python\ndef f():\n```",
        "mbpp": "Write f.",
        "mt-bench": "First?",
        "alpaca": "Sum up.\n\nA text.",
    }[task.name]
    plain, chatty = tiny_tokenizer.tokenizer(chat_template=None), tiny_tokenizer.tokenizer()
    assert [plain.decode(prompt) for prompt in task().prompts(plain, 2)] == [expected] * 2
    assert [chatty.decode(p) for p in task().prompts(chatty, 1)] == [f"[user]{expected}<end>\n[assistant]"]
    assert asked[0] == asked[1]


def test_a_data_set_with_other_fields_fails_in_one_line(monkeypatch):
    rows = datasets.Dataset.from_list([{"other": "x"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: rows)
    with pytest.raises(
        DataError, match="needs the data set openai/gsm8k, which cannot be had here .KeyError"
    ):
        hub.load_texts(hub.GSM8K, "gsm8k")


def test_every_built_in_task_is_registered_under_its_name():
    manager = create_plugin_manager()
    assert [resolve_part(manager, "task", task.name) for task in BUILT_IN] == BUILT_IN


def test_a_plugin_adds_a_task_and_an_unknown_one_names_the_nearest():
    class Riddles(EvalTask):
        """Made up."""

        name = "riddles"

        def prompts(self, tokenizer, num_prompts):
            return [(1, 2)] * num_prompts

    from deepspec.hookspecs import hookimpl

    class Plugin:
        @hookimpl
        def deepspec_parts(self):
            return [Riddles]

    manager = create_plugin_manager()
    register(manager, Plugin(), name="riddles")
    assert resolve_part(manager, "task", "riddles")().prompts(None, 2) == [(1, 2)] * 2
    with pytest.raises(ConfigError, match="unknown task 'riddle'.*did you mean 'riddles'"):
        resolve_part(manager, "task", "riddle")
