"""What the user sees of a run: progress while it lasts, one screen at its end."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypedDict

from ripple.errors import TooManyRejected
from ripple.runtime.log import Pulse, other_rank, quiet


def plain(text: str) -> str:
    """`text` with control characters escaped, so that catalogue strings cannot forge lines of the log."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


#: Verb -> the command that follows it, with its output for `{}`.
NEXT = {
    "simulate": "ripple fetch --repo {}/repo --collections mini --targets {}/truth.parquet -o cutouts",
    "fetch": "ripple preprocess {} -o tensors",
    "preprocess": "ripple train {} -o model, or ripple score MODEL {} -o scores",
    "inject": "ripple preprocess {} -o tensors",
    "train": "ripple score {} TENSORS -o scores",
    "score": "ripple report {} -o report",
    "search": "ripple show {}",
    "import-model": "ripple score {} TENSORS -o scores",
    "report": "open {} in a browser",
    "vet": "ripple consensus {} -o candidates",
    "consensus": "open {}/index.html in a browser",
    "match": "open {}/index.html in a browser",
    "completeness": "open {}/index.html in a browser",
    "embed": "ripple similar {} --like ID",
}


@dataclass(frozen=True, slots=True)
class Amount:
    """A number with a unit: `text` for people; JSON has the value, and `suffix` at the end of its name."""

    value: float
    text: str
    suffix: str

    def __str__(self) -> str:
        return self.text


def rate(rows: int, seconds: float) -> Amount:
    """Rows per second; the other way round where that is less than one."""
    value = rows / max(seconds, 1e-9)
    text = f"{value:,.0f} rows/s" if value >= 10 else f"{value:.1f} rows/s" if value >= 1 else ""
    return Amount(value, text or f"{1 / max(value, 1e-9):,.1f} s per row", "rows_per_s")


def size(count: float) -> Amount:
    """Bytes, as `1.5 GB` for people, in powers of 1000."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return Amount(count, f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}", "bytes")
        value /= 1000
    return Amount(count, f"{value:.1f} TB", "bytes")


class SummaryOutput(TypedDict):
    """What a verb did. Names in `facts` end in their unit, as `rate_rows_per_s`; `rejections` counts rows
    by reason; `done_before` says that the output was finished already.
    """

    verb: str
    output: str
    facts: dict[str, Any]
    rejections: dict[str, int]
    seconds: float
    done_before: bool
    notes: Sequence[str]


@dataclass(frozen=True, slots=True)
class Summary:
    """What a verb did, for the one screen at its end and for `--json`.

    Parameters
    ----------
    verb
        Name of the verb.
    output
        Where the result is.
    facts
        Label -> value, in print order (`{"targets": 2000, "accepted": 1985, "rate": "812 rows/s"}`).
    rejections
        Reason -> number of rows.
    seconds
        Wall time.
    done_before
        True when the output was already there and nothing was done.
    notes
        Lines worth reading.
    """

    verb: str
    output: str
    facts: dict[str, Any]
    rejections: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    done_before: bool = False
    notes: tuple[str, ...] = ()

    def print(self, *, as_json: bool = False, answer: bool = False) -> None:
        """One screen on stderr, or JSON on stdout.

        Parameters
        ----------
        as_json
            Print JSON; numbers with a unit have it in their name, as `rate_rows_per_s`.
        answer
            The screen is what was asked for, as of `show`, and goes to stdout.
        """
        if as_json:
            if not other_rank():
                sys.stdout.write(json.dumps(self.record(), default=str) + "\n")
            return
        if quiet() and not answer:
            return
        # rich is imported late: `--json`, `--help` and workers do without it.
        from rich.table import Table
        from rich.text import Text

        table = Table(title=f"ripple {self.verb}", show_header=False, title_justify="left", box=None)
        table.add_column(style="bold")
        table.add_column()
        if self.done_before:
            table.add_row("status", "already finished, nothing to do")
        for key, value in self.facts.items():
            table.add_row(
                # `Text`: rich would read square brackets in a catalogue string as markup.
                Text(plain(key)),
                Text(plain(f"{value:,}" if isinstance(value, int) and value is not True else str(value))),
            )
        # Most frequent first.
        for reason, count in sorted(self.rejections.items(), key=lambda item: -item[1]):
            table.add_row(Text("  " + plain(reason)), f"{count:,}")
        if not self.done_before:
            table.add_row("seconds", f"{self.seconds:.1f}")
        table.add_row("output", Text(plain(self.output)))
        console = screen(answer=answer)
        console.print(table)
        for note in self.notes:
            console.print(Text(plain(note)))
        for line in self.next_commands():
            console.print(Text(plain(line), style="dim"))

    def next_commands(self) -> list[str]:
        """What people type next: the rows that failed, and the next verb of the chain."""
        where = shlex.quote(self.output)
        lines = []
        if self.rejections and self.verb in ("fetch", "preprocess", "import", "score", "search"):
            lines.append(f"which rows, and why: ripple show {where} --failures")
        if self.verb in NEXT:
            lines.append("next: " + NEXT[self.verb].replace("{}", where))
        return lines

    def record(self) -> SummaryOutput:
        """Everything as JSON values: numbers as numbers, with units in the names."""
        facts: dict[str, Any] = {}
        for name, value in self.facts.items():
            if isinstance(value, Amount):
                facts[f"{name.replace(' ', '_')}_{value.suffix}"] = value.value
            else:
                facts[name] = value
        return {
            "verb": self.verb,
            "output": self.output,
            "facts": facts,
            "rejections": self.rejections,
            "seconds": self.seconds,
            "done_before": self.done_before,
            "notes": self.notes,
        }


def screen(*, answer: bool) -> Any:
    """A `rich` console: stdout for what was asked for, else stderr, since stdout is for data.

    An answer that goes into a file or a pipe is neither wrapped nor cut.
    """
    from rich.console import Console

    return Console(stderr=not answer, width=None if not answer or sys.stdout.isatty() else 100_000)


def tally(index: Any, output: str, max_rejected: float) -> tuple[dict[str, int], dict[str, int]]:
    """Count the rows of an index by status and reason, for the closing screen.

    Parameters
    ----------
    index
        Arrow table with columns `status` and `reason`.
    output
        The finished artefact, for the message.
    max_rejected
        Largest share of rejected rows that the user allows.

    Returns
    -------
    counts, reasons
        Targets by status, and rows by reason.

    Raises
    ------
    TooManyRejected
        More rows are rejected than allowed; the message counts the reasons.
    """
    status = Counter(index["status"].to_pylist())
    reasons = Counter(r for r in index["reason"].to_pylist() if r)
    n, rejected = index.num_rows, status["rejected"]
    if n and rejected / n > max_rejected:
        raise TooManyRejected(
            f"{rejected} of {n} targets were rejected: "
            + ", ".join(f"{k} {v}" for k, v in reasons.most_common()),
            hint=f"the output {output} is complete; its index.parquet has the reason of each",
        )
    counts = {"targets": n, "ok": status["ok"], "partial": status["partial"], "rejected": rejected}
    return counts, dict(reasons)


def _widgets() -> bool:
    """Whether a notebook can draw a bar; without the package each bar would be a warning."""
    return importlib.util.find_spec("ipywidgets") is not None


@contextmanager
def progress(total: int | None, label: str, unit: str = "rows") -> Iterator[Any]:
    """A progress line with rate and time left on stderr; yields `advance(n)`.

    Draws nothing where stderr is neither a terminal nor a notebook.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + unit),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        # The line disappears at the end: the summary takes its place.
        transient=True,
        # No bar in the log of a batch job.
        disable=quiet() or not (sys.stderr.isatty() or (console.is_jupyter and _widgets())),
    )
    pulse = Pulse(label, total, unit)
    with bar:
        task = bar.add_task(label, total=total or 0, rate="")
        start = time.perf_counter()

        def advance(n: float = 1) -> None:
            pulse.beat(n)
            done = bar.tasks[0].completed + n
            bar.update(task, advance=n, rate=f"{done / max(time.perf_counter() - start, 1e-9):,.0f} {unit}/s")

        yield advance
