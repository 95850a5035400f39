"""The target writes in our own engine: plainly, or with a run's drafter, which leaves the law as it is.

Each turn has a seed of its own, so plainly a sample is the same whatever is decoded beside it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from deepspec.data.chat import encode_chat, encode_prompt, require_template
from deepspec.data.prompts import TextPrompt
from deepspec.engine import Completion, Engine
from deepspec.errors import DataError, TargetError
from deepspec.plugins import create_plugin_manager, round_observer
from deepspec.regenerate.conversation import Conversation
from deepspec.regenerate.samples import LeftOut, Outcome, Reply, Sample
from deepspec.resources import memory
from deepspec.runs import Run, target_record
from deepspec.sampling import SamplingParams
from deepspec.train.assemble import for_decoding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from deepspec.target import Target


class EngineWriter:
    """Writes by the engine.

    Args:
        source: a target, or a run whose drafter is to help.
        params: of every turn; ``seed`` is the root of all seeds, ``max_tokens`` what a turn takes at most
            where the positions do not end before.
        concurrency: samples that are decoded together.
        max_positions: of prompt and reply together; see :class:`deepspec.engine.Engine`.

    Raises:
        TargetError: a target without a tokenizer. ConfigError: settings that do not fit it.
        ResourceError: it does not fit into memory.
    """

    def __init__(
        self,
        source: Target | Run,
        params: SamplingParams,
        *,
        concurrency: int = 32,
        max_positions: int | None = None,
    ) -> None:
        self._run = source if isinstance(source, Run) else None
        self._target = source.target if isinstance(source, Run) else source
        if self._target.tokenizer is None:
            raise TargetError(f"target {self._target.name!r} has no tokenizer, so it reads no prompts")
        self._tokenizer: PreTrainedTokenizerBase = self._target.tokenizer
        self.params, self.concurrency = params, concurrency
        with memory(self._needs_memory):
            self._engine = Engine(
                self._target,
                None if self._run is None else for_decoding(self._run.parts, self._target),
                max_batch=concurrency,
                max_positions=max_positions,
                observers=[round_observer(create_plugin_manager())],
            )

    def identity(self) -> dict[str, Any]:
        """The target's weights and type, the drafter's run, and how long a text may be."""
        found: dict[str, Any] = {"target": self._target.fingerprint, "dtype": str(self._target.dtype)}
        found["max_positions"] = self._engine.max_positions
        if self._run is not None:
            found["draft"] = {"run": self._run.path.name, "step": self._run.step}
        return found

    def details(self) -> dict[str, Any]:
        """The target as a checkpoint remembers it, and the drafter's run."""
        found: dict[str, Any] = {"target": target_record(self._target), "device": str(self._target.device)}
        if self._run is not None:
            found["draft"] = {"run": str(self._run.path), "step": self._run.step}
        return found

    def write(self, samples: Iterator[Sample]) -> Generator[Outcome]:
        """See :class:`deepspec.regenerate.samples.Writer`."""
        live: dict[int, Conversation] = {}
        with memory(self._needs_memory):
            while True:
                for sample in islice(samples, self.concurrency - len(live)):
                    yield from self._submit(Conversation(sample, self.params), live)
                if not live and not self._engine.has_work:
                    return
                for event in self._engine.step():
                    if event.finish_reason is None:
                        continue
                    done = self._engine.completions.pop(event.request_id)
                    yield from self._taken(live.pop(event.request_id), done, live)

    def _submit(self, conversation: Conversation, live: dict[int, Conversation]) -> Iterator[Outcome]:
        """Have the next turn written, or give what there is when it has no room."""
        if not isinstance(conversation.sample.prompt, TextPrompt):
            require_template(
                self._tokenizer, conversation.sample.prompt.source
            )  # no other row would fare better
        try:
            prompt = self._encoded(conversation)
        except DataError as error:
            yield LeftOut(conversation.sample, "unusable", str(error))
            return
        room = self._engine.max_positions - len(prompt)
        if prompt and room >= 1:
            most = min(self.params.max_tokens, room)
            params = replace(self.params, seed=conversation.seed, max_tokens=most)
            live[self._engine.submit(prompt, params)] = conversation
        elif conversation.has_replies:
            yield conversation.ended()
        else:
            limit = f"and {self._engine.max_positions} positions are all there are (--max-positions)"
            yield LeftOut(conversation.sample, "unusable", f"the prompt has {len(prompt)} tokens, {limit}")

    def _encoded(self, conversation: Conversation) -> tuple[int, ...]:
        prompt = conversation.sample.prompt
        if isinstance(prompt, TextPrompt):
            return encode_prompt(self._tokenizer, prompt.text)
        return encode_chat(self._tokenizer, conversation.messages, source=prompt.source, tools=prompt.tools)

    def _taken(
        self, conversation: Conversation, done: Completion, live: dict[int, Conversation]
    ) -> Iterator[Outcome]:
        """What a finished turn makes of its sample; the next turn is submitted when there is one."""
        is_stopped = done.finish_reason == "stop"
        tokens = done.tokens[:-1] if is_stopped else done.tokens
        special = next((token for token in tokens if token in self._tokenizer.all_special_ids), None)
        if special is not None:
            name = self._tokenizer.convert_ids_to_tokens(special)
            yield LeftOut(conversation.sample, "unusable", f"the target wrote {name!r} amid its text")
            return
        outcome = conversation.take(
            Reply(
                text=self._decoded(done.prompt, tokens),
                finish_reason="stop" if is_stopped else "length",
                seed=conversation.seed,
                num_tokens=len(done.tokens),
                tokens=done.tokens,
            )
        )
        if outcome is None:
            yield from self._submit(conversation, live)
        else:
            yield outcome

    def _decoded(self, prompt: tuple[int, ...], tokens: tuple[int, ...]) -> str:
        """The text of tokens after others, which some tokenizers write differently than by themselves."""
        before, whole = (
            str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
            for ids in (prompt, prompt + tokens)
        )
        if whole.startswith(before):
            return whole[len(before) :]
        return str(self._tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))

    def _needs_memory(self) -> str:
        return (
            f"memory ran out while the target was writing; lower --concurrency (now {self.concurrency}) or "
            "--max-positions, or place the target elsewhere (--target-device); what is written is kept"
        )
