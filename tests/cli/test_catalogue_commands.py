"""`minitf`, `list` and `show`: what they say, in which form, and with which exit code."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import minitf
from minitf import catalogue
from minitf.cli import COMMANDS, main
from minitf.commands import list as list_command

RUNNER = CliRunner()
PACKAGE = Path(minitf.__file__).parent


def call(*args: str, code: int = 0, **options: object):  # type: ignore[no-untyped-def]
    result = RUNNER.invoke(main, args, **options)  # type: ignore[arg-type]
    assert result.exit_code == code, f"minitf {' '.join(args)}: exit code {result.exit_code}: {result.output}"
    return result


def test_version() -> None:
    assert call("--version").output.strip() == f"minitf, version {minitf.__version__}"


def test_help_lists_every_command() -> None:
    words = call("--help").output
    for name, text in COMMANDS.items():
        assert name in words and text in words, f"`minitf --help` does not explain {name}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(name: str) -> None:
    words = call(name, "--help").output
    assert "Examples:" in words and f"  minitf {name}" in words, f"`minitf {name} --help` has no example"


def test_no_command_shows_help() -> None:
    assert "Commands:" in RUNNER.invoke(main, []).output, "`minitf` alone should show the help"


def test_unknown_command_suggests_one() -> None:
    assert "Did you mean 'train'?" in call("trian", code=2).output
    call("list", "--nonsense", code=2)


def test_list_agrees_with_the_catalogue() -> None:
    rows = json.loads(call("list", "--json").stdout)
    for row, expected in zip(rows, catalogue.table(), strict=True):
        assert {k: row[k] for k in expected} == expected, (
            f"{row['name']}: the list differs from the catalogue"
        )


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["softmax*"], dict(pattern="softmax*")),
        (["NORM"], dict(pattern="*norm*")),
        (["--kind", "ffn"], dict(kind="ffn")),
        (["--family", "gated"], dict(family="gated")),
        (["--streams"], dict(streams=True)),
        (["--no-causal"], dict(causal=False)),
        (["*", "--kind", "norm", "--no-streams"], dict(kind="norm", streams=False)),
        (["--grid", "any"], dict(grid="any")),
        (["--parity"], dict(parity=True)),
        (["--no-parity"], dict(parity=False)),
    ],
)
def test_list_filters(args: list[str], expected: dict[str, object]) -> None:
    names = [row["name"] for row in json.loads(call("list", "--json", *args).stdout)]
    wanted = [entry.name for entry in catalogue.find(**expected)]  # type: ignore[arg-type]
    assert names == wanted, f"`minitf list {args}` and catalogue.find({expected}) differ"


def test_list_is_plain_text_in_a_pipe() -> None:
    lines = call("list").output.splitlines()
    headings = "name kind family year causal streams grid parity title"
    assert lines[0].split() == headings.split()
    assert len(lines) == 1 + len(catalogue.find()), "the table needs one line for each variant"
    assert "\x1b" not in "".join(lines), "there are colours in a pipe"
    assert all(line == line.rstrip() for line in lines), "lines end in spaces"


def test_list_without_a_match_says_so() -> None:
    assert "Nothing matches" in call("list", "nonsense").output
    assert json.loads(call("list", "nonsense", "--json").stdout) == []


def test_list_refuses_unknown_kinds() -> None:
    assert "adapter, attention, block" in call("list", "--kind", "atention", code=2).output
    assert "softmax" in call("list", "--family", "sofmax", code=2).output
    assert "1d, " in call("list", "--grid", "7d", code=2).output


@pytest.fixture
def three_hundred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A catalogue of 300 variants, made of the first card of ours; every third was compared with torch."""
    card = next(iter(json.loads(list_command.INDEX_FILE.read_text(encoding="utf-8")).values()))
    cards = [
        {
            **card,
            "name": f"made_up_{i}",
            "title": f"Made up, number {i}",
            "aliases": {},
            "grid": f"{1 + i % 2}d",
        }
        for i in range(300)
    ]
    for i, one in enumerate(cards):
        # As in an index that was made before cards had this.
        one.pop("parity", None)
        if i % 3 == 0:
            one["parity"] = ["torch"]
    monkeypatch.setattr(list_command, "INDEX_FILE", tmp_path / "index.json")
    (tmp_path / "index.json").write_text(json.dumps({c["name"]: c for c in cards}), encoding="utf-8")
    return cards


def test_list_of_three_hundred(three_hundred: list[dict[str, Any]]) -> None:
    assert len(call("list").output.splitlines()) == 301, "one line for each of 300 variants, and the headings"
    rows = json.loads(call("list", "--parity", "--json").stdout)
    assert [row["name"] for row in rows] == [c["name"] for c in three_hundred if "parity" in c]
    assert all(row["parity"] == ["torch"] for row in rows)
    rows = json.loads(call("list", "--no-parity", "--grid", "2d", "--json").stdout)
    assert len(rows) == 100 and all(row["parity"] == [] and row["grid"] == "2d" for row in rows)


@pytest.mark.parametrize("width", [30, 60, 80, 120, 200])
def test_list_fits_the_terminal(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [[list_command.cell(v) for v in row.values()] for row in rows_of_the_table()]
    list_command.print_fitting(cells, width)
    lines = click.unstyle(capsys.readouterr().out).splitlines()[:-2]
    assert len(lines) == 1 + len(cells)
    headings = lines[0].split()
    assert headings[:2] == ["name", "kind"] and headings[-1] == "title", "what must stay is left out"
    assert width < 120 or "parity" in headings, "wide terminals have room for all"
    assert width < 80 or "year" in headings, "80 columns have room for more than names and titles"
    if width >= 60:
        assert max(map(len, lines)) <= width, f"lines are longer than {width} columns"


def test_one_variant_is_no_plural(capsys: pytest.CaptureFixture[str]) -> None:
    cells = [[list_command.cell(v) for v in row.values()] for row in rows_of_the_table()[:1]]
    list_command.print_fitting(cells, 200)
    assert "\n1 variant;" in click.unstyle(capsys.readouterr().out)


def rows_of_the_table() -> list[dict[str, Any]]:
    return [
        {key: bool(row[key]) if key == "parity" else row[key] for key in list_command.COLUMNS}
        for row in catalogue.table()
    ]


@pytest.mark.parametrize("name", [entry.name for entry in catalogue.find()])
def test_show_every_variant_as_json(name: str) -> None:
    about = json.loads(call("show", name, "--json").stdout)
    entry = catalogue.get(name)
    assert about["name"] == name and about["source"] == entry.source(), f"{name}: another variant is shown"
    assert [i["words"] for i in about["identities"]] == [i.words for i in entry.identities()]
    required = {o["name"] for o in about["options"] if o["required"]}
    assert required <= {"dim", "mixer", "ffn"}, f"{name}: odd options must be given: {required}"


def test_show_writes_everything_for_people() -> None:
    words = call("show", "swiglu").output
    expected = ["Gated feed-forward network", "also called", "Papers", "arXiv:2002.05202", "Definition"]
    expected += ["Options", "dim: int", "Identities", "def forward"]
    for text in expected:
        assert text in words, f"`minitf show swiglu` does not show {text!r}"
    assert "def forward" not in call("show", "swiglu", "--no-source").output, "--no-source shows the source"
    assert "source" not in json.loads(call("show", "swiglu", "--no-source", "--json").stdout)


def test_show_suggests_three_names() -> None:
    result = call("show", "sofmax", code=1)
    assert result.output.startswith("Error: no variant is called 'sofmax'; the closest are: softmax, ")
    assert result.output.count("\n") == 1, "a failure must be one line"


def test_debug_shows_the_traceback() -> None:
    result = call("--debug", "show", "sofmax", code=1)
    assert isinstance(result.exception, LookupError), "--debug must let the error through"


def test_failures_are_red_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[31m" in call("show", "sofmax", code=1, color=True).output, "the failure is not red"
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in call("show", "sofmax", code=1, color=True).output, "NO_COLOR is ignored"


def on_a_terminal(*args: str, **environment: str) -> str:
    """What the command writes when its output is a terminal of 80 columns."""
    import pty

    reader, writer = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
    env |= {"TERM": "xterm-256color", "COLUMNS": "80", **environment}
    process = subprocess.Popen(
        [sys.executable, "-m", "minitf.cli", *args], stdout=writer, stderr=subprocess.PIPE, env=env
    )
    os.close(writer)
    chunks = []
    try:
        while chunk := os.read(reader, 4096):
            chunks.append(chunk)
    except OSError:
        # Linux reports the closed end of a terminal as an error.
        pass
    os.close(reader)
    _, errors = process.communicate()
    assert process.returncode == 0, f"minitf {args} on a terminal: {errors.decode()}"
    return b"".join(chunks).decode()


def test_list_on_a_terminal() -> None:
    words = on_a_terminal("list", "norm")
    assert "\x1b[" in words and "rmsnorm" in words, "a terminal should get a table with colours"
    plain = on_a_terminal("list", "norm", NO_COLOR="1")
    assert "\x1b[36m" not in plain and "rmsnorm" in plain, "NO_COLOR is ignored"


def test_show_on_a_terminal_colours_the_source() -> None:
    assert "\x1b[94mdef\x1b" in on_a_terminal("show", "rmsnorm"), "the source is not highlighted"


def test_list_imports_little() -> None:
    code = (
        "import sys; from minitf.cli import main; main(['list'], standalone_mode=False);"
        "print([m for m in ('rich', 'matplotlib', 'numba', 'minitf.nn') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]", f"`minitf list` imports more than it needs: {out.splitlines()[-1]}"


def test_list_itself_needs_no_numpy() -> None:
    # The package as an empty shell: what its own first file imports is not the command's doing.
    code = (
        f"import sys, types; shell = types.ModuleType('minitf'); shell.__path__ = [{str(PACKAGE)!r}];"
        "sys.modules['minitf'] = shell; from minitf.commands import list as module;"
        "module.command(['--kind', 'ffn'], standalone_mode=False);"
        "module.print_fitting([['x'] * len(module.COLUMNS)], 80);"
        "print([m for m in ('numpy', 'rich', 'minitf.engine') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]", f"the command `list` itself imports {out.splitlines()[-1]}"


def test_show_tells_parity_and_expected_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = catalogue.get("swiglu")
    assert "compared with    none" in call("show", "swiglu", "--no-source").output or entry.card.parity
    card = replace(entry.card, parity=("torch", "jax"), expected_failures={"gradients": "it rounds"})
    monkeypatch.setattr(catalogue, "get", lambda name: replace(entry, card=card))
    words = call("show", "swiglu", "--no-source").output
    assert "compared with    torch, jax" in words, "`minitf show` does not say what it was compared with"
    assert "gradients: it rounds" in words, "`minitf show` does not say which checks cannot hold"
    about = json.loads(call("show", "swiglu", "--no-source", "--json").stdout)
    assert about["parity"] == ["torch", "jax"] and about["expected_failures"] == {"gradients": "it rounds"}
