"""`minitf plot`: a picture with something on it, numbers for machines, clear words where there is none."""

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from click.testing import CliRunner, Result

import minitf as mt
from minitf import viz
from minitf.cli import main
from minitf.commands import plot

# Small sizes: what is drawn does not change with them.
SMALL = ("--tokens", "6", "--dim", "8", "--longest", "32")


def call(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["plot", *args])
    assert result.exit_code == code, (
        f"minitf plot {' '.join(args)}: exit code {result.exit_code}: {result.output}"
    )
    return result


@pytest.mark.parametrize(
    "name", ["softmax_attention", "gla", "swiglu", "rmsnorm", "pre_norm", "alibi", "rope"]
)
def test_a_picture_is_written_and_its_path_printed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(name, *SMALL).stdout.strip() == f"{name}.png", "the path that was written is not printed"
    file = tmp_path / f"{name}.png"
    assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n", "the file is not a PNG"
    image = matplotlib.image.imread(file)[..., :3]
    colours = len(np.unique(image.reshape(-1, 3), axis=0))
    assert colours > 20 and min(image.shape[:2]) > 500, f"{image.shape} with {colours} colours shows nothing"


def test_out_names_the_file_and_makes_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "pictures" / "a.svg"
    assert call("swiglu", *SMALL, "--out", str(file)).stdout.strip() == str(file)
    assert "<svg" in file.read_text(encoding="utf-8"), "the ending chooses the format"


def test_json_has_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    args = ("--heads", "2", "--seed", "3", "--option", "causal=false", "--option", "kv-heads=1")
    about = json.loads(call("softmax_attention", *SMALL, *args, "--json").stdout)
    layer = mt.build(
        "softmax_attention", 8, heads=2, seed=3, causal=False, kv_heads=1, dtype="float64"
    ).eval()
    x = np.random.default_rng(3).standard_normal((1, 6, 8))
    error = np.abs(about["matrix"] - viz.mixing_matrix(layer, x)).max()
    assert error <= 1e-12, f"the matrix differs from that of the library by {error:.2g}"
    assert np.shape(about["maps"]) == (2, 6, 6), "the weights of both heads are missing"
    assert about["lengths"] == [16, 32] and about["options"] == {"causal": "False", "kv_heads": "1"}
    with mt.no_grad(), mt.profile() as p:
        layer.to("float32")(mt.zeros((1, 32, 8)))
    assert (about["flops"][1], about["bytes"][1]) == (p.flops, p.peak_bytes), (
        "the costs are not those at N = 32"
    )
    assert 1 < about["flops_power"] < 2 and about["file"] is None
    assert list(tmp_path.iterdir()) == [], "--json writes a picture only where --out names one"


def test_json_of_a_list_of_heads() -> None:
    data = json.loads(
        call("cascaded_group_attention", "--json", "--tokens", "4", "--dim", "4", "--longest", "32").stdout
    )
    assert data["heads"] is None and data["drawn"]


def test_json_and_picture_together(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    about = json.loads(call("alibi", *SMALL, "--json", "--out", str(file)).stdout)
    assert about["file"] == str(file) and file.exists() and about["lengths"] == []


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["sofmax"], 1, "the closest are: softmax"),
        (["nope"], 1, "nothing to show"),
        (["vit_patch_embed"], 1, "it makes tokens, and mixes none"),
        (["swiglu", "--option", "hiden=3"], 1, "does not take hiden; it takes: hidden"),
        (["swiglu", "--option", "hidden=big"], 1, "hidden must be int or None, not 'big'"),
        (["softmax_attention", "--heads", "5"], 1, "must divide"),
        (["softmax_attention", "--option", "3"], 2, "is not KEY=VALUE"),
        (["gla", "--option", "seed=3"], 2, "use --seed"),
        (["gla", "--option", "dtype=float32"], 2, "the picture sets it"),
        (["gla", "--tokens", "0"], 2, "--tokens"),
        (["gla", "--out", "a.nonsense"], 1, "not supported"),
    ],
)
def test_errors_are_clear(
    args: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = SMALL[2:] if "--tokens" in args else SMALL
    words = call(*args, *small, code=code).output
    assert message in " ".join(words.split()), f"`minitf plot {args}` does not say {message!r}: {words}"
    assert list(tmp_path.iterdir()) == [], "a file was written all the same"


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ("causal=false", ("causal", False)),
        ("window=(2, 3)", ("window", (2, 3))),
        ("rate=0.5", ("rate", 0.5)),
        ("kv-heads=1", ("kv_heads", 1)),
        ("act=silu", ("act", "silu")),
        ("hidden=None", ("hidden", None)),
    ],
)
def test_options_are_python_values(pair: str, expected: tuple[str, object]) -> None:
    assert plot.parsed(pair) == expected


def test_a_person_sees_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with plot.progress_bar("gla") as update:
        assert update is None, "there is a bar although nobody watches"
    monkeypatch.setattr(plot.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with plot.progress_bar("gla") as update:
        assert update is not None
        update(0.5)
    captured = capsys.readouterr()
    assert "gla" in captured.err and captured.out == "", "the bar must be on standard error"
