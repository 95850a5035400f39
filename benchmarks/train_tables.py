"""The README's tables of a training step."""

from __future__ import annotations

from typing import Any

from table_cells import machine


def step(record: dict[str, Any]) -> str:
    """Speed and memory by anchors and vocabulary, then options of the draft layers, then attention."""
    found = record["result"]
    memories = {(one["vocab"], one["anchors"]): one for one in found["memory_mib"]}
    timed = {(one["vocab"], one["anchors"]): one for one in found["rows"]}
    first = found["memory_mib"][0]
    has_peak = any(one["mfu"] is not None for one in found["rows"])
    share = "MFU" if has_peak else "of a product's rate"
    columns = ("V", "anchors", "ms", "ours / eager", "tokens/s", "anchors/s", f"GFLOP/s, {share}")
    columns += ("adds, MiB", "eager adds")
    rows = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for key, memory in memories.items():
        speed = _speed(timed[key]) if key in timed else [""] * 5
        eager = "" if memory["eager"] is None else f"{memory['eager']:,.0f}"
        cells = [f"{key[0]:,}", str(key[1]), *speed, f"{memory['ours']:,.0f}", eager]
        rows.append(f"| {' | '.join(cells)} |")
    head = (
        f"A whole training step of {first['strategy']} (two draft layers, hidden {first['hidden']}, "
        f"{first['rows']} × {first['length']} tokens, G = 7, stored features), with our loss and with plain "
        "cross-entropy and L1 over materialised logits. A first step adds so much to weights and text; what "
        "is left out would take too long or too much:"
    )
    beside = "; medians with quartiles"
    if "other work" in record["repeats"]:
        beside += "; other work ran beside"
    where = machine(record, beside)
    parts = [head, "\n".join(rows), _layers(found["layers"]), _attention(found["attention"]), where]
    return "\n\n".join(part for part in parts if part)


def cached(record: dict[str, Any]) -> str:
    """The peak of training without the target's layers."""
    found = record["result"]
    target, train = found["target"], found["train"]
    return (
        f"`deepspec train` on stored features at V = {target['vocab_size']:,} and hidden "
        f"{target['hidden_size']:,}, no decoder layer of the target loaded: DSpark with "
        f"{found['drafter']['num_layers']} draft layers, {train['optimizer']}, {train['sequences_per_step']} "
        f"× {found['text']['sequence_length']} tokens and {train['anchors_per_sequence']} anchors a row, "
        f"took {found['training']['peak_gib']:.1f} GiB at its peak, validation and checkpoint included.\n\n"
        f"{machine(record, '; one run')}"
    )


def _speed(row: dict[str, Any]) -> list[str]:
    ms, ratio = row["ms"]["ours"], row.get("ours_over_eager")
    share = row["share_of_product"] if row["mfu"] is None else row["mfu"]
    return [
        f"{ms['median']:,.0f} ({ms['q1']:,.0f}–{ms['q3']:,.0f})",
        "" if ratio is None else _quartiles(ratio),
        f"{row['tokens_per_s']:,.0f}",
        f"{row['anchors_per_s']:,.0f}",
        f"{row['gigaflops_per_s']:,.0f}, {share:.0%}",
    ]


def _layers(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    columns = ("draft layers", "recomputed / kept, time", "adds, MiB, kept", "recomputed")
    columns += ("compiled / eager, time", "compiling, s")
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        cells = [
            f"{row['strategy']}, {row['layers']} of hidden {row['hidden']}",
            _quartiles(row["recomputed_over_plain"]),
            f"{row['mib']['plain']:,.0f}",
            f"{row['mib']['recomputed']:,.0f}",
            _quartiles(row["compiled_over_plain"]),
            f"{row['compile_s']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    head = "Draft layers recomputed (`train.gradient_checkpointing`), and compiled by `torch.compile`:"
    return "\n".join([head, "", *lines])


def _attention(found: dict[str, Any]) -> str:
    masks = "; ".join(
        f"{one['length']:,} tokens with {one['anchors']} anchors of {one['draft_length']}: {one['seen']:.0%} "
        f"of scores and {one['tiles']:.0%} of 128 × 128 tiles, mask {one['mask_mib']:,.0f} MiB a row"
        for one in found["masks"]
    )
    compared = "; ".join(
        f"{one['passes']} {one['flex_ms']['median']:.0f} ms against {one['dense_ms']['median']:.0f}"
        for one in found["compared"]
    )
    return (
        f"Of the attention of training blocks is seen: {masks} (bfloat16, 32 heads on 8). `flex_attention`, "
        f"compiled, at 512 tokens and 64 anchors: {compared} by SDPA under the mask."
    )


def _quartiles(value: dict[str, float]) -> str:
    return f"{value['median']:.2f} ({value['q1']:.2f}–{value['q3']:.2f})"
