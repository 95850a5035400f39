"""Compile the Triton kernels for GPUs that need not be there, and print what each became as JSON lines.

Run in a process of its own, because the interpreter's mode is fixed when a kernel is decorated:
``python tests/kernels/ahead_of_time.py '[["block_stats", "bf16", {}, 90], ...]'``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from deepspec.kernels import (
    triton_close,
    triton_draft,
    triton_loss,
    triton_philox,
    triton_rows,
    triton_rules,
    triton_schedule,
)

MODULES = (triton_rows, triton_close, triton_draft, triton_philox, triton_loss, triton_schedule)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
#: Vocabulary of Qwen3 in blocks of 4096, and G = 7.
CONSTANTS = {
    "truncated": False, "one_hot": False, "has_top_k": True, "has_top_p": True, "has_min_p": True,
    "blockwise": False, "whole_round": False, "block": 4096, "tile": 2048, "steps": 8, "parts": 64,
    "has_target": True, "has_dense": True, "has_tanh": True,
    "own": triton_schedule.OWN, "others": triton_schedule.OTHERS, "rows": triton_draft.ROWS,
    "depth": triton_draft.DEPTH, "tiles": 4096 // triton_draft.TILE,
}  # fmt: skip
BITS = {"bf16": 16, "fp16": 19, "fp32": 32}
INT64 = (
    "starts", "lengths", "drafted", "top_k", "accepted", "bonus", "drawn", "tokens",
    "seeds", "positions", "indices", "streams", "epochs", "labels", "keys", "losses",
)  # fmt: skip
INT32 = ("bests", "row_bests", "needed")
DOUBLE = ("temperature", "top_p", "min_p", "uniforms", "pairs", "curve")
UNALIGNED = {"uniform_stride", "request_stride", "step_stride", "level_stride"}
ROWS = ("logits", "draft", "target", "tanh", "base", "latent", "weight", "stored")


def pointer(name: str, dtype: str) -> str:
    """The type of an argument that is a tensor."""
    if name in ROWS:
        return f"*{dtype}"
    if name in DOUBLE:
        return "*fp64"
    return "*i64" if name in INT64 else "*i32" if name in INT32 else "*fp32"


def compile_one(kernel: Any, dtype: str, changes: dict[str, Any], capability: int) -> dict[str, Any]:
    """Registers, spills and 128-bit loads of one kernel on one architecture."""
    constants = {
        n: ({**CONSTANTS, "bits": BITS[dtype]} | changes)[n]
        for n in kernel.arg_names
        if n in {*CONSTANTS, "bits"}
    }
    sizes = [
        n
        for n in kernel.arg_names
        if n.endswith("_stride") or n.startswith("num_") or n in ("vocab_size", "count", "first", "rank")
    ]
    signature = {
        n: "constexpr" if n in constants else "i32" if n in sizes else pointer(n, dtype)
        for n in kernel.arg_names
    }
    aligned = {n for n in sizes if n.endswith("_stride")} - UNALIGNED | {"vocab_size", "rank"}
    attrs = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(kernel.arg_names)
        if signature[n].startswith("*") or n in aligned
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attrs)
    module = next(m for m in MODULES if hasattr(m, kernel.__name__))
    warps = triton_loss.NUM_WARPS if module is triton_loss else triton_rules.num_warps(kernel)
    shared = {"num_warps": warps, "enable_fp_fusion": triton_rules.ENABLE_FP_FUSION}
    options = getattr(module, "OPTIONS", shared)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run(
                [str(TOOLS / tool), *words, file.name], capture_output=True, text=True, check=True
            ).stdout
            for tool, *words in (("cuobjdump", "-res-usage"), ("nvdisasm",))
        )
    return {
        "kernel": kernel.__name__, "dtype": dtype, "changes": changes, "capability": capability,
        "target": re.search(r"\.target\s+(\w+)", made.asm["ptx"]).group(1),
        "registers": int(re.search(r"REG:(\d+)", usage).group(1)),
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", code)),
        "loads_128": len(re.findall(r"\bLDG\.E(?:\.\w+)*\.128", code)),
        "loads_16": len(re.findall(r"\bLDG\.E(?:\.\w+)*\.[US]16", code)),
        "fused": made.metadata.enable_fp_fusion,
    }  # fmt: skip


if __name__ == "__main__":
    for name, dtype, changes, capability in json.loads(sys.argv[1]):
        kernel = next(getattr(m, name) for m in MODULES if hasattr(m, name))
        print(json.dumps(compile_one(kernel, dtype, changes, capability)), flush=True)
