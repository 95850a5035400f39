"""The README's tables of the verify kernel and of the loss."""

from __future__ import annotations

from typing import Any

from table_cells import machine

_RULES = ("token", "delta", "block")
#: Of the grid: the rows that are shown on a CPU and on a GPU.
_SHOWN = {"cpu": (32, 7, 32_000), "cuda": (128, 7, 151_936)}


def verify_kernel(record: dict[str, Any]) -> str:
    """Times of the rules beside the two plain formulas, at one size."""
    num, length, vocab = _SHOWN[record["device_type"]]
    rows = [
        "| type | rule | ms | (a), times as long | (b), times as long | of copy bandwidth |",
        "|---|---|---|---|---|---|",
    ]
    for cell in record["result"]["cells"]:
        if (cell["requests"], cell["draft_length"], cell["vocab"]) != (num, length, vocab):
            continue
        for rule in _RULES:
            ms, share = cell[rule]["ms"], cell[rule]["share"]
            times = (f"{cell[name]['median'] / ms['median']:.1f}" for name in ("(a)", "(b)"))
            spread = f"{ms['median']:.1f} ({ms['q1']:.1f}–{ms['q3']:.1f})"
            rows.append(f"| {cell['dtype']} | {rule} | {spread} | {' | '.join(times)} | {share:.0%} |")
    head = (
        f"Verifying {num} requests of {length} drafts over {vocab:,} tokens by the "
        f"{record['result']['backend']['float32']} path, against a batched softmax of p and q with the "
        "residual of the rejected row and one multinomial (a), and with that of all rows (b), both for the "
        "token rule:"
    )
    return "\n".join([head, "", *rows, "", machine(record)])


def loss(record: dict[str, Any]) -> str:
    """Time and memory of the loss against the plain formula."""
    rows = [
        "| V | hidden | anchors | readout | ours / eager, time | adds, MiB | eager adds |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in record["result"]["rows"]:
        ratio, memory = one.get("time_ms", {}).get("ours_over_eager"), one.get("memory_mib")
        if ratio is None and memory is None:
            continue
        time = "" if ratio is None else f"{ratio['median']:.2f} ({ratio['q1']:.2f}–{ratio['q3']:.2f})"
        ours = eager = ""
        if memory is not None:
            ours = f"{memory['ours']:,.0f}"
            eager = f"{memory['eager']:,.0f}{' (scaled)' * memory['eager_is_scaled']}"
        shape = f"{one['vocab']:,} | {one['hidden']:,} | {one['anchors']}"
        rows.append(f"| {shape} | {one['variant']} | {time} | {ours} | {eager} |")
    found = record["result"]
    head = (
        f"The training loss (cross-entropy, L1, confidence; G = {found['draft_length']}), forward and "
        "backward, against the plain formula in autograd; `capped` is a trained readout with a soft-cap. "
        f"Gradients differ by {found['gradient_error']:.0e} at most; time is {found['clock']}:"
    )
    return "\n".join([head, "", *rows, "", machine(record)])
