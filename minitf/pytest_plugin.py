"""The pytest plugin: checks as test items, without a test file.

    pytest --minitf-check softmax_attention --minitf-check mine.py:MyMixer --minitf-kind token_mixer
    pytest --minitf-examples 10                  for every test that does not say how many itself

It is imported by every run of pytest where minitf is installed, so it imports nothing before it is asked to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("minitf", "checks of transformer variants")
    group.addoption(
        "--minitf-check",
        action="append",
        default=[],
        metavar="NAME",
        help="check this variant: a name of the catalogue, or FILE.py:NAME; without files, only that",
    )
    group.addoption(
        "--minitf-kind", metavar="KIND", help="what it is, where it has no card: token_mixer, ..."
    )
    group.addoption(
        "--minitf-claim",
        action="append",
        default=[],
        metavar="CLAIM",
        help="what must hold: causal, streams, ...",
    )
    group.addoption("--minitf-reference", metavar="NAME", help="what it must equal")
    group.addoption("--minitf-grid", metavar="GRID", help="2d for images")
    group.addoption("--minitf-examples", type=int, metavar="N", help="cases per check (default 100)")
    group.addoption(
        "--minitf-backend",
        action="append",
        default=[],
        metavar="NAME",
        help="who computes (default reference)",
    )


def pytest_configure(config: pytest.Config) -> None:
    options = profile(config)
    if options:
        from minitf.testing import doors

        doors.DEFAULTS.update(options)
    # Without files, only what --minitf-check names is collected, not everything below this folder.
    if config.getoption("--minitf-check") and config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = []


def pytest_unconfigure(config: pytest.Config) -> None:
    if profile(config):
        from minitf.testing import doors

        doors.DEFAULTS.update(doors.PROFILE)


def profile(config: pytest.Config) -> dict[str, Any]:
    """What the command line says for all checks."""
    examples, backends = config.getoption("--minitf-examples"), config.getoption("--minitf-backend")
    return {
        **({} if examples is None else {"examples": examples}),
        **({"backends": tuple(backends)} if backends else {}),
    }


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    for name in session.config.getoption("--minitf-check"):
        items.extend(VariantChecks.from_parent(session, name=name).collect())


class VariantChecks(pytest.Collector):
    """The checks of one variant."""

    def collect(self) -> Iterator[CheckItem]:
        from minitf.engine import MinitfError
        from minitf.testing import from_file, variant_checks

        option = self.config.getoption
        path, colon, inner = self.name.rpartition(":")
        try:
            variant = from_file(path, inner) if colon else self.name
            pairs = list(
                variant_checks(
                    variant,
                    kind=option("--minitf-kind"),
                    claims=option("--minitf-claim"),
                    reference=option("--minitf-reference"),
                    grid=option("--minitf-grid"),
                )
            )
        except MinitfError as error:
            raise pytest.UsageError(f"--minitf-check {self.name}: {error}") from error
        for words, call in pairs:
            yield CheckItem.from_parent(self, name=words.partition("-")[2], call=call)


class CheckItem(pytest.Item):
    """One check of one variant."""

    def __init__(self, *, call: Any, **options: Any):
        super().__init__(**options)
        self.call = call
        # Why the card expects it to fail; the call raises if it does not.
        self.expected: str | None = call.keywords["expected"]

    def runtest(self) -> None:
        self.call()
        if self.expected:
            pytest.xfail(self.expected)

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        """The reason and the four lines: a traceback through the checks tells nothing about the variant."""
        from minitf.testing import CheckError

        return str(excinfo.value) if isinstance(excinfo.value, CheckError) else super().repr_failure(excinfo)

    def reportinfo(self) -> Any:
        return self.path, None, f"{self.parent.name if self.parent else ''}: {self.name}"


@pytest.fixture(scope="session")
def check_variant() -> Any:
    """`minitf.testing.check_variant`, for tests that check a variant of their own."""
    from minitf.testing import check_variant

    return check_variant
