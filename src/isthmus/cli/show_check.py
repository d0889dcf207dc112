"""How a verdict, a description and a fleet look in a terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from isthmus.portability.check import Check
from isthmus.portability.picture import byte_maps
from isthmus.state.description import Description
from isthmus.state.encoding import Encoding
from isthmus.state.representation import GroupRepresentation

__all__ = ["show_check", "show_description", "show_fleet"]

_COLOUR = {
    "direct": "green",
    "redistribute": "green",
    "convert": "yellow",
    "redistribute+convert": "yellow",
    "reject": "red",
    "unknown": "red",
    "works": "green",
    "converts": "green",
    "refuses": "yellow",
    "crashes": "red",
    "corrupts silently": "bold red",
}
_SAYS = {
    "direct": "may cross as it is",
    "redistribute": "may cross; bytes are laid out anew, none is changed",
    "convert": "may cross; elements are rewritten",
    "redistribute+convert": "may cross; elements are rewritten and laid out anew",
    "reject": "must not cross",
    "unknown": "is not known to be readable, so it must not cross",
}


def show_check(found: Check, *, explain: bool) -> None:
    """The whole verdict."""
    console = Console(highlight=False)
    verdict = found.verdict
    outcome = verdict.outcome.value
    lost = "" if not verdict.plans else "; nothing is lost" if verdict.lossless else "; lossy"
    console.print(Text(outcome, style=f"bold {_COLOUR[outcome]}"), f"— {_SAYS[outcome]}{lost}", soft_wrap=True)
    _differences(console, found)
    if found.price is not None:
        _loss(console, found)
        _price(console, found)
    _assumed(console, found)
    _connectors(console, found)
    for plan in verdict.plans if explain else ():
        console.print(f"\n[bold]{plan.producer.kind.value}[/bold], the first bytes of a block (t token, h head)")
        for line in byte_maps(plan):
            console.print(Text(line), soft_wrap=True)


def _differences(console: Console, found: Check) -> None:
    verdict = found.verdict
    if not verdict.gate.mismatches and not verdict.differences:
        return
    table = _table("field", "producer", "consumer", "resolved by")
    for mismatch in verdict.gate.mismatches:
        by = "unknown" if mismatch.unknown else "reject"
        table.add_row(mismatch.field, mismatch.producer, mismatch.consumer, Text(by, style="red"))
    for d in verdict.differences:
        by = "same bytes" if d.resolution == "none" else d.resolution
        table.add_row(d.name, d.producer, d.consumer, Text(by, style=_COLOUR.get(by, "")))
    console.print(table)


def _loss(console: Console, found: Check) -> None:
    for plan in found.verdict.plans:
        for conversion in plan.conversions:
            bound = conversion.loss
            if conversion.lossless:
                continue
            terms = [
                f"{value:.3g} of {of}"
                for value, of in (
                    (bound.relative, "the value"),
                    (bound.per_row_max, "the row's largest"),
                    (bound.per_scale, "the scale"),
                )
                if value
            ]
            terms += [f"{bound.absolute:.3g}"] if bound.absolute > 1e-30 else []
            said = " + ".join(terms) or "none within the target's range"
            shrinks = "; values beyond its range saturate, and are counted" if conversion.range_shrinks else ""
            console.print(f"[bold]error[/bold] of {conversion.component}, at most: {said}{shrinks}")


def _price(console: Console, found: Check) -> None:
    price, figures = found.price, found.figures
    assert price is not None
    console.print(
        f"[bold]bytes per token[/bold] {price.producer_bytes:,.0f} → wire {price.wire_bytes:,.0f} → "
        f"{price.consumer_bytes:,.0f}"
    )
    states = found.producer.representation.bytes_per_sequence
    if states:
        console.print(f"[bold]and per sequence[/bold] {states:,} bytes of states")
    console.print(
        f"[bold]{figures.tokens:,} tokens[/bold] at {figures.link_gbps:g} Gbit/s: {price.transfer_ms:.2f} ms on the "
        f"wire, {price.convert_ms:.2f} ms to rewrite ({price.arithmetic_intensity:.2f} op/byte)"
    )
    console.print(f"[bold]run at[/bold] {price.run_at}: {price.why}")
    if price.run_bytes:
        console.print(f"[bold]runs[/bold] of {price.run_bytes:,} bytes and more, {price.runs_per_token:.4g} per token")


def _assumed(console: Console, found: Check) -> None:
    if found.assumed:
        console.print("[bold]assumed[/bold]")
    for each in found.assumed:
        console.print(f"  {each.field} = {each.value}: {each.why}")


def _connectors(console: Console, found: Check) -> None:
    joined = [outcome for outcome in found.without_isthmus if outcome.outcome != "not applicable"]
    if not joined:
        console.print("[bold]without Isthmus[/bold] no known connector joins these two engines")
        return
    console.print("[bold]without Isthmus[/bold]")
    for each in joined:
        console.print(
            Text.assemble(
                f"  {each.connector}: ",
                (each.outcome, _COLOUR[each.outcome]),
                f". {each.why} ",
                (f"({each.source})", "dim"),
            )
        )


def show_description(found: Description) -> None:
    """One side: what it stores and where."""
    console = Console(highlight=False)
    identity, partition = found.identity, found.representation.partition
    console.print(
        f"[bold]{found.engine} {found.engine_version}[/bold] on {found.accelerator}, {identity.lineage.base_model}"
        f"@{identity.lineage.revision}, weights in {identity.weights.dtype}"
    )
    ranks = f"tp {partition.tp_size}, pp {partition.pp_size}, dcp {partition.dcp_size}"
    console.print(f"kv_cache_dtype {found.kv_cache_dtype or '-'}; {ranks}")
    table = _table("kind", "layers", "backend", "layout", "K/V order", "interior", "block", "stored")
    for group, backend in zip(found.representation.groups, found.attn_backends, strict=False):
        table.add_row(
            group.kind.value,
            str(group.num_layers),
            backend,
            group.layout.value,
            group.kv_order.value,
            group.interior,
            str(group.block_size),
            _stored(group),
        )
    console.print(table)
    tokens, states = found.representation.bytes_per_token, found.representation.bytes_per_sequence
    console.print(f"{tokens:,.0f} bytes per token" + (f", {states:,} bytes per sequence" if states else ""))
    for each in found.assumed:
        console.print(f"assumed {each.field} = {each.value}: {each.why}")


def _stored(group: GroupRepresentation) -> str:
    """What each component is stored as; said once where all are alike."""
    words = {part.name: _encoding(part.encoding) for part in group.components}
    if len(set(words.values())) == 1:
        return next(iter(words.values()))
    return ", ".join(f"{name} {word}" for name, word in words.items())


def _encoding(encoding: Encoding) -> str:
    quant = encoding.quant
    if quant is None:
        return encoding.storage_dtype.value
    shared = f"block {quant.block}" if quant.block else quant.granularity.value
    return f"{encoding.storage_dtype.value} (scale a {shared}, {quant.scale_location.value})"


def show_fleet(found: dict[str, object]) -> None:
    """All pairs as a matrix: producers down, consumers across."""
    console = Console(highlight=False)
    sides = found["sides"]
    assert isinstance(sides, dict)
    pairs = found["pairs"]
    assert isinstance(pairs, list)
    verdicts = {(pair["producer"], pair["consumer"]): pair["verdict"] for pair in pairs}
    numbers = {name: str(number) for number, name in enumerate(sides, start=1)}
    table = _table("prefill \\ decode", *numbers.values())
    for a in sides:
        words = [verdicts.get((a, b), "-") for b in sides]
        short = [word.replace("redistribute", "redistr.").replace("+", "\n+") for word in words]
        cells = [Text(said, style=_COLOUR.get(word, "dim")) for said, word in zip(short, words, strict=True)]
        table.add_row(f"{numbers[a]} {a}", *cells)
    console.print(table)
    for name, side in sides.items():
        if side["unknown"]:
            console.print(f"{name} is unknown: {side['unknown']}")


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
