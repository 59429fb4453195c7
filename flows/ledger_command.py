"""`switchgear ledger`: what an output has paid for, proven from its files."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from rich.text import Text

from flows.words import batches, count
from schemas.errors import OutputError
from transforms.output_lock import is_locked
from transforms.store import open_store

if TYPE_CHECKING:
    from rich.console import Console

    from flows.backstage import Backstage
    from transforms.verify import Finding, Verification

_SHOWN = 20
_TITLES = {
    "contradiction": "Contradictions",
    "undelivered": "Paid, not yet delivered",
    "ambiguous": "Calls of unknown end (they may have been billed)",
    "torn": "Torn tails of ledgers",
    "unfinished": "Not finished",
}
_VERDICTS = {
    "proven": "Proven: every answered call is in exactly one row's cost, and the sums are equal.",
    "incomplete": "Incomplete: nothing contradicts; something is not delivered yet. Run again, then verify.",
    "contradicted": "Contradicted: the ledger and the output do not agree in the places above.",
}


def verify(output: str) -> Verification:
    """The proof of an output.

    Raises:
        OutputError: it is no output of ours, or a run is at work in it.
    """
    from transforms.verify import verify_output

    if is_locked(open_store(output)):
        raise OutputError(
            f"a run is at work on {output}: its ledger grows while it is read. Wait for it to end, or stop it"
        )
    return verify_output(output)


def show(found: Verification, out: Console) -> None:
    """Print a proof for people."""
    for kind, title in _TITLES.items():
        _show_kind(found, kind, title, out)
    style = {"proven": "bold green", "incomplete": "bold yellow"}.get(found.state, "bold red")
    for line in figures(found):
        out.print(Text(line), soft_wrap=True)
    out.print(Text(_VERDICTS[found.state], style=style), soft_wrap=True)


def _show_kind(found: Verification, kind: str, title: str, out: Console) -> None:
    findings: list[Finding] = [finding for finding in found.findings if finding.kind == kind]
    if not findings:
        return
    total = found.counts[kind]
    more = f", {_SHOWN} of {total:,} shown" if total > _SHOWN else ""
    out.print(Text(f"{title}{more}", style="bold"))
    for finding in findings[:_SHOWN]:
        out.print(Text(f"  {finding.place}: {finding.sentence}"), soft_wrap=True)


def figures(found: Verification) -> list[str]:
    """The sums on a few lines."""
    ledger, rows, rest = found.ledger, found.rows, found.undelivered
    label = " at list price (a rehearsal: nothing was paid)" if found.rehearsal else ""
    amounts = [s.list_amount if found.rehearsal else s.amount for s in (ledger, rows, rest)]
    lines = [
        f"{batches(found.batches)}, {count(found.results, 'result')}, {count(found.failures, 'failure')}",
        f"ledger: {count(ledger.calls, 'call')}, {ledger.answered:,} answered, {ledger.ambiguous:,} of "
        f"unknown end (at most {_exactly(ledger.ambiguous_amount)}); {ledger.shared:,} rows share another's "
        f"answer",
        f"ledger {_exactly(amounts[0])} = rows {_exactly(amounts[1])} + not yet delivered "
        f"{_exactly(amounts[2])}{label}",
    ]
    if ledger.unpriced:
        lines.append(f"{count(ledger.unpriced, 'row')} of unknown price, in none of these amounts")
    return lines


def run_verify(backstage: Backstage, output: str, as_json: bool) -> str:
    """Prove an output and print the proof; its verdict."""
    found = verify(output)
    if as_json:
        backstage.answer(found.to_dict())
    else:
        show(found, backstage.out)
    return found.state


def _exactly(amount: Decimal) -> str:
    """An amount to its last digit: a proof is not rounded."""
    return f"{amount.normalize():f} USD"
