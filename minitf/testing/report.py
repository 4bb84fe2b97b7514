"""Results of checks, as data that can be read as text, as HTML and as JSON."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from minitf.engine import MinitfError
from minitf.nn import Case

STATUSES = ("passed", "failed", "not applicable", "expected failure")


@dataclass(frozen=True)
class Result:
    """What one check said.

    Attributes:
        check: its name. backend: the mode of `mt.use` that it ran under.
        status: one of `STATUSES`. reason: why, unless it passed.
        case: the smallest failing case that was found.
        examples: how many cases it may draw. seconds: how long it took.
        snippet: four lines that reproduce a failure.
    """

    check: str
    backend: str
    status: str
    reason: str = ""
    case: Case | None = None
    examples: int = 0
    seconds: float = 0.0
    snippet: str = ""


class Report(list[Result]):
    """The results of one variant, in the order of the checks.

    Attributes:
        name: of the variant.
    """

    def __init__(self, name: str, results: list[Result]):
        super().__init__(results)
        self.name = name

    @property
    def failed(self) -> list[Result]:
        """Those that failed unexpectedly."""
        return [r for r in self if r.status == "failed"]

    @property
    def seconds(self) -> float:
        """How long all of them took."""
        return sum(r.seconds for r in self)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Check, status, seconds, and the reason with its case, as text."""
        mixed = len({r.backend for r in self}) > 1
        return [
            (
                f"{r.check} [{r.backend}]" if mixed else r.check,
                r.status,
                f"{r.seconds:.2f}",
                f"{r.reason} for {r.case}" if r.case else r.reason,
            )
            for r in self
        ]

    def summary(self) -> str:
        """One sentence that counts."""
        counts = [(status, sum(r.status == status for r in self)) for status in STATUSES]
        words = ", ".join(f"{n} {status}" for status, n in counts if n)
        return f"{self.name}: {words or 'no checks'} in {self.seconds:.1f} s"

    def __str__(self) -> str:
        rows = self.rows()
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
        a, b, c = widths
        lines = [f"{row[0]:<{a}}  {row[1]:<{b}}  {row[2]:>{c}}  {row[3]}".rstrip() for row in rows]
        failures = [f"\n# {r.check}: {r.reason}\n{r.snippet}" for r in self.failed]
        return "\n".join([self.summary(), *lines, *failures])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{word}</th>" for word in ("check", "status", "seconds", "reason"))
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows()
        )
        snippets = "".join(f"<pre>{html.escape(r.snippet)}</pre>" for r in self.failed)
        return f"<p>{html.escape(self.summary())}</p><table><tr>{head}</tr>{body}</table>{snippets}"

    def to_json(self) -> str:
        """An object with the name, whether nothing failed, and one object for each result."""
        return json.dumps(
            {"name": self.name, "ok": not self.failed, "results": [asdict(r) for r in self]}, indent=2
        )


class CheckError(MinitfError, AssertionError):
    """A variant that failed a check. The results are in `.report`."""

    def __init__(self, report: Report):
        super().__init__(str(report))
        self.report = report


# How a status looks in a table of many variants.
MARKS = {"passed": "\N{CHECK MARK}", "failed": "\N{BALLOT X}", "expected failure": "~", "not applicable": "-"}
# So many marks stand together in the table as text.
GROUP = 5


class Reports(list[Report]):
    """The reports of several variants: a table of variants by checks, and the reasons below it."""

    @property
    def failed(self) -> list[Report]:
        """Those with a check that failed unexpectedly."""
        return [report for report in self if report.failed]

    @property
    def checks(self) -> list[str]:
        """The names of all checks, in their order, with the backend where there are several."""
        mixed = len({r.backend for report in self for r in report}) > 1
        return list(dict.fromkeys(_column(r, mixed) for report in self for r in report))

    def rows(self) -> list[tuple[str, ...]]:
        """Variant, one mark for each check, seconds."""
        checks, rows = self.checks, []
        for report in self:
            marks = {_column(r, f"{r.check} [{r.backend}]" in checks): MARKS[r.status] for r in report}
            rows.append((report.name, *(marks.get(name, "") for name in checks), f"{report.seconds:.1f}"))
        return rows

    def lines(self) -> list[str]:
        """The table as text: marks in groups of five, below the number of the first of each group."""
        first = [str(i) for i in range(1, len(self.checks) + 1, GROUP)]
        width = max((len(report.name) for report in self), default=0)
        table = [("variant", first, "s")]
        for name, *marks, seconds in self.rows():
            cells = [mark or " " for mark in marks]
            groups = ["".join(cells[i : i + GROUP]) for i in range(0, len(cells), GROUP)]
            table.append((name, groups, seconds))
        return [
            f"{name:<{max(width, 7)}}  {' '.join(f'{group:<{GROUP}}' for group in groups)} {seconds:>6}"
            for name, groups, seconds in table
        ]

    def legend(self) -> list[str]:
        """What the numbers and marks stand for."""
        marks = "  ".join(f"{mark} {status}" for status, mark in MARKS.items())
        starts = range(0, len(self.checks), GROUP)
        return [marks, *(f"{i + 1:>3} {', '.join(self.checks[i : i + GROUP])}" for i in starts)]

    def reasons(self) -> list[str]:
        """One line for each expected failure and each failure."""
        return [
            f"{MARKS[r.status]} {report.name} {r.check}: {r.reason}"
            + (f" for {r.case}" if r.status == "failed" and r.case else "")
            for report in self
            for r in report
            if r.status in ("failed", "expected failure")
        ]

    def summary(self) -> str:
        """One sentence that counts."""
        counts = [(status, sum(r.status == status for report in self for r in report)) for status in STATUSES]
        words = ", ".join(f"{n} {status}" for status, n in counts if n)
        return f"{len(self)} variants: {words or 'no checks'} in {sum(r.seconds for r in self):.0f} s"

    def __str__(self) -> str:
        return "\n".join([self.summary(), *self.lines(), "", *self.legend(), "", *self.reasons()]).rstrip()

    def _repr_html_(self) -> str:
        def cells(tag: str, row: Sequence[str]) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

        head = cells("th", ("variant", *self.checks, "s"))
        body = "".join(cells("td", row) for row in self.rows())
        reasons = "".join(f"<li>{html.escape(line)}</li>" for line in self.reasons())
        return f"<p>{html.escape(self.summary())}</p><table>{head}{body}</table><ul>{reasons}</ul>"

    def to_json(self) -> str:
        """An object that says whether nothing failed, with the object of each report."""
        reports = [json.loads(report.to_json()) for report in self]
        return json.dumps({"ok": not self.failed, "reports": reports}, indent=2)


def _column(result: Result, mixed: bool) -> str:
    return f"{result.check} [{result.backend}]" if mixed else result.check
