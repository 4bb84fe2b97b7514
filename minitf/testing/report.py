"""Results of checks, as data that can be read as text, as HTML and as JSON."""

from __future__ import annotations

import html
import json
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
