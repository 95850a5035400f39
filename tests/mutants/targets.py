"""Mutants of targets run over packed rows, and of draft layers that follow them; see ``mutations``."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

TARGET = ("tests/target/test_families.py",)
RECURRENT = ("tests/target/test_families.py", "tests/target/test_recurrent.py")
DESCRIBE = ("tests/target/test_describe.py",)
DECODER = ("tests/target/test_decoder.py",)

TARGET_MUTANTS = (
    Mutant(
        "KV rows one position late",
        "deepspec/target/packed.py",
        "offsets + np.arange(ends[-1])",
        "offsets + np.arange(ends[-1]) + 1",
        "keys lie one position behind where attention looks for them",
        TARGET,
    ),
    Mutant(
        "rotary frequencies rounded",
        "deepspec/target/decoder.py",
        "if buffer.is_floating_point():",
        "if False:",
        "in bfloat16 far positions are turned by wrong angles",
        DECODER,
    ),
    Mutant(
        "blind to itself",
        "deepspec/target/packed.py",
        "seen = keys <= positions",
        "seen = (keys < positions) | (keys == 0)",
        "a token does not attend to itself",
        TARGET,
    ),
    Mutant(
        "a state that was not rolled back",
        "deepspec/target/recurrent.py",
        "if len(wave.restored):",
        "if False:",
        "a recurrent layer goes on from what was refused",
        RECURRENT,
    ),
    Mutant(
        "accepted rows forgotten",
        "deepspec/target/recurrent.py",
        "for batch in wave.replays:",
        "for batch in ():",
        "a recurrent layer goes on without the rows that were accepted of a block",
        RECURRENT,
    ),
    Mutant(
        "settled too late",
        "deepspec/target/recurrent.py",
        "states.settle(wave.settled)",
        "states.settle(wave.fresh)",
        "a recurrent layer goes back to the state of an earlier block",
        RECURRENT,
    ),
    Mutant(
        "the last request's state",
        "deepspec/target/recurrent.py",
        "if len(wave.fresh):",
        "if False:",
        "a request begins with the state that another one left in its slot",
        RECURRENT,
    ),
    Mutant(
        "another layer's keys",
        "deepspec/target/kv_slots.py",
        "else self._writers[id(key)]",
        "else min(self.keys)",
        "a layer that shares keys reads those of the first one",
        TARGET,
    ),
    Mutant(
        "scores of another scale",
        "deepspec/nn/attention.py",
        "query = query * self._query_scale",
        "query = query * 1.0",
        "a draft layer weighs positions otherwise than its family does",
        DESCRIBE,
    ),
)
