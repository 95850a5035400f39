"""What the mask of training blocks costs, and what block-sparse attention would save of it.

A draft block sees the text before its anchor and itself; SDPA computes the whole rectangle and reads a mask
of its size. ``flex_attention`` leaves out the tiles that no query sees. Torch has no backward of it on a CPU,
so there only forwards are compared; on a GPU both passes are.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from records import spread
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from deepspec.nn import attention_mask, grouped_attention

#: Rows' length, anchors a row, draft length: the demo target's training, then real ones.
SHAPES = ((256, 48, 7), (2048, 128, 7), (2048, 512, 7), (4096, 512, 15))
#: Of a Qwen3-4B: query heads, key/value heads.
HEADS = (32, 8)


def geometry(length: int, anchors: int, draft: int, device: torch.device) -> tuple[Tensor, BlockMask]:
    """Bool ``[Q, L + Q]`` of one row with anchors drawn evenly, Q its slots; and its tiles."""
    columns = torch.randperm(length - 1, generator=torch.Generator().manual_seed(0))[:anchors].sort().values
    columns = 1 + columns.to(device)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (key >= length) & ((key - length) // draft == query // draft)
        return own | (key < columns[query // draft])

    slots = anchors * draft
    tiles = create_block_mask(sees, None, None, slots, length + slots, device=str(device))
    every = torch.arange(length + slots, device=device)
    return sees(every, every, every[:slots, None], every), tiles


def cost(length: int, anchors: int, draft: int) -> dict[str, Any]:
    """Of one row: the mask that SDPA is given, and the shares of scores and of tiles that are seen."""
    seen, tiles = geometry(length, anchors, draft, torch.device("cpu"))
    given = seen.numel() * HEADS[0] // HEADS[1] * 2  # in bfloat16, once for each query head of a key head
    queries, keys = -(-seen.shape[0] // 128), -(-seen.shape[1] // 128)
    needed = int(tiles.kv_num_blocks.sum()) + int(tiles.full_kv_num_blocks.sum())
    return {
        "length": length,
        "anchors": anchors,
        "draft_length": draft,
        "slots": seen.shape[0],
        "mask_mib": round(given / 2**20, 1),
        "seen": round(float(seen.float().mean()), 3),
        "tiles": round(needed / (queries * keys), 3),
    }


def compare(length: int, anchors: int, repeats: int, device: torch.device) -> dict[str, Any]:
    """Milliseconds of SDPA under the dense mask and of compiled flex_attention, interleaved."""
    draft, size = 7, 64
    seen, tiles = geometry(length, anchors, draft, device)
    heads, kv_heads = HEADS[0] // 4, HEADS[1] // 4
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    slots, keys = seen.shape
    learns = device.type != "cpu"
    made = torch.Generator(device).manual_seed(0)

    def random(rows: int, num: int) -> Tensor:
        return torch.randn(1, rows, num, size, generator=made, device=device, dtype=dtype).requires_grad_(
            learns
        )

    query, key, value = random(slots, heads), random(keys, kv_heads), random(keys, kv_heads)
    mask = attention_mask(seen[None], heads // kv_heads, dtype)
    compiled = torch.compile(flex_attention, dynamic=False)
    parts = [part.transpose(1, 2) for part in (query, key, value)]
    runs = {
        "dense": lambda: grouped_attention(query, key, value, mask),
        "flex": lambda: compiled(*parts, block_mask=tiles, enable_gqa=True).transpose(1, 2),
    }
    began = time.perf_counter()
    error = float((runs["flex"]() - runs["dense"]()).detach().abs().max())
    first = time.perf_counter() - began
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + repeats):
        for name, run in runs.items():
            taken[name].append(1e3 * timed(run, learns, device))
    return {
        "length": length,
        "anchors": anchors,
        "passes": "forward and backward" if learns else "forward",
        "compile_s": round(first, 1),
        "largest_difference": error,
        **{f"{name}_ms": spread(values[1:]) for name, values in taken.items()},
    }


def timed(run: Any, learns: bool, device: torch.device) -> float:
    """Seconds of one call; on a CPU the process's own."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    began = clock()
    out = run()
    if learns:
        out.sum().backward()
        torch.cuda.synchronize()
    return clock() - began
