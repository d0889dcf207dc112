"""The demo's result for a terminal of 80 columns."""

from typing import Any

from rich.console import Console
from rich.table import Table

from isthmus.lab.demo.deployment import LOSSLESS, LOSSY

__all__ = ["show"]

ANSWERS_SHOWN = 5
STAGES = ("reserve", "prefill", "plan", "transfer", "verify", "commit")


def show(found: dict[str, Any]) -> None:
    """Print everything that matters, in the order in which it happened."""
    console = Console(width=80, highlight=False)
    _workers(console, found["workers"])
    for pair in found["pairs"]:
        _pair(console, pair)
    _handoffs(console, found["handoffs"])
    _answers(console, found["answers"])
    _comparison(console, found)


def _workers(console: Console, workers: list[dict[str, Any]]) -> None:
    table = Table(title="Workers and how each stores KV", title_justify="left", box=None, pad_edge=False)
    for column in ("worker", "layout", "K/V", "block", "tp", "encoding", "by"):
        table.add_column(column)
    for worker in workers:
        group = worker["representation"]["groups"][0]
        stored = group["components"][0]["encoding"]
        quant = stored["quant"]
        encoding = stored["storage_dtype"] + (f" / {quant['granularity']}, {quant['scale_location']}" if quant else "")
        table.add_row(
            worker["worker"],
            group["layout"],
            group["kv_order"],
            str(group["block_size"]),
            str(worker["representation"]["partition"]["tp_size"]),
            encoding,
            ",".join(worker["transports"]) or "-",
        )
    console.print(table)


def _pair(console: Console, pair: dict[str, Any]) -> None:
    loss = "nothing is lost" if pair["lossless"] else "lossy"
    console.print(f"\n[bold]{pair['producer']} → {pair['consumer']}: {pair['outcome']}[/bold], {loss}")
    for difference in pair["differences"]:
        values = f"{difference['producer']} → {difference['consumer']}"
        console.print(f"  {difference['field']}: {values}  ({difference['resolution']})")
    for plan in pair["plans"]:
        ops = " → ".join(["gather", *plan["ops"], "scatter"])
        console.print(f"  plan {plan['fingerprint'][:12]}: {ops}; {plan['parts']} part(s), at the consumer")
        for component, loss_bound in plan["loss"].items():
            bound = ", ".join(f"{name} {value:.3g}" for name, value in loss_bound.items() if value)
            console.print(f"  error bound of {component}: {bound}")
    console.print(
        f"  {pair['producer_bytes_per_token']:,} B/token on the producer and the wire, "
        f"{pair['consumer_bytes_per_token']:,} B/token here"
    )
    for assumption in pair["assumptions"]:
        console.print(f"  assumed: {assumption['field']}: {assumption['value']} ({assumption['why']})")


def _handoffs(console: Console, handoffs: list[dict[str, Any]]) -> None:
    for consumer in (LOSSLESS, LOSSY):
        table = Table(title=f"\nHand-offs to {consumer}, in ms", title_justify="left", box=None, pad_edge=False)
        for column in ("tokens", "bytes", "by", *STAGES, "TTFT"):
            table.add_column(column, justify="right")
        for handoff in handoffs:
            if handoff["consumer"] != consumer:
                continue
            stages = [f"{handoff['stage_ms'].get(stage, 0.0):.1f}" for stage in STAGES]
            table.add_row(
                str(handoff["tokens"]),
                _size(handoff["wire_bytes"]),
                handoff["transport"],
                *stages,
                f"{handoff['ttft_ms']:.0f}",
            )
        console.print(table)
    console.print("Four are asked at once, so prefill and TTFT include waiting for a turn.")


def _answers(console: Console, answers: list[dict[str, Any]]) -> None:
    console.print("\n[bold]Answers[/bold] (one engine alone | lossless | lossy)")
    for answer in answers[:ANSWERS_SHOWN]:
        console.print(f"  {_short(answer['prompt'])}")
        for name in ("alone", "lossless", "lossy"):
            console.print(f"    {name:8} {_short(answer[name])}", markup=False)
    if len(answers) > ANSWERS_SHOWN:
        console.print(f"  … and {len(answers) - ANSWERS_SHOWN} more (--json has them all)")


def _comparison(console: Console, found: dict[str, Any]) -> None:
    count = found["prompts"]
    console.print("\n[bold]Compared with one engine alone[/bold]")
    console.print(f"  lossless: tokens identical {found['lossless_tokens_identical']} of {count}")
    console.print(
        f"            KV identical     {found['lossless_kv_identical']} of {count} (logical digest, read back)"
    )
    console.print(
        f"  lossy:    top-1 match {found['lossy_top1']:.4f}, answers identical {found['lossy_agreement']:.2f}"
    )
    console.print(f"  blocks held after: {found['blocks_held_after']}")


def _size(count: int) -> str:
    return f"{count / 2**20:.1f}M" if count >= 2**20 else f"{count / 2**10:.0f}K"


def _short(text: str, width: int = 62) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
