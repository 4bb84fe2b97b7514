"""Pictures: they show something, say what it is, keep labels apart, and leave matplotlib's state alone."""

import itertools
import math
import struct
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Annotation

import minitf as mt
from minitf import viz
from minitf.engine import GraphError, ShapeError
from minitf.viz import picture
from minitf.viz.curves import smooth
from minitf.viz.graph import collect, route

RNG = np.random.default_rng(0)
ROWS = [{"step": s, "loss": 4 / s, "val_loss": 5 / s if s % 10 == 0 else None} for s in range(1, 41)]


def pixels(figure: viz.Picture) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def assert_shows(figure: viz.Picture) -> None:
    image = pixels(figure)
    assert (image != image[0, 0]).any(), "every pixel has the colour of the corner: the picture is empty"


def all_text(figure: viz.Picture) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def causal_weights(heads: int, n: int) -> np.ndarray:
    e = np.exp(RNG.standard_normal((heads, n, n))) * np.tril(np.ones((n, n)))
    return e / e.sum(axis=-1, keepdims=True)


def test_loss_curve_has_both_units_and_both_lines() -> None:
    figure = viz.loss_curve(ROWS, title="a $title$ of $1")
    assert_shows(figure)
    words = all_text(figure)
    for expected in ("nats", "bits", "training", "0.125 nats = 0.180 bits", "step", "a $title$ of $1"):
        assert expected in words, f"{expected!r} is not written on the loss curve"
    validation = next(line for line in figure.axes[0].lines if "validation" in str(line.get_label()))
    assert validation.get_xdata().tolist() == [10, 20, 30, 40], "validation points stand at the wrong steps"
    low, high = figure.axes[0].get_ylim()
    bits = figure.axes[0].child_axes[0].get_ylim()
    assert math.isclose(bits[0] * math.log(2), low), "the axis of bits does not fit that of nats"


def test_loss_curve_reads_a_log(tmp_path: Path) -> None:
    lines = ["step,loss,val_loss", "1,4.0,", "2,3.0,3.5", "3,nan,", "4,,"]
    (tmp_path / "log.csv").write_text("\n".join(lines), encoding="utf-8")
    for source in (tmp_path, tmp_path / "log.csv", str(tmp_path)):
        figure = viz.loss_curve(source)
        drawn = figure.axes[0].lines[0]
        assert drawn.get_xdata().tolist() == [1, 2], f"{source}: rows without a finite loss must be left out"


def test_loss_curve_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        viz.loss_curve([{"step": 1, "loss": float("nan")}])
    with pytest.raises(FileNotFoundError):
        viz.loss_curve(tmp_path / "missing.csv")


def test_smoothing_keeps_the_mean_of_a_constant() -> None:
    line = [(s, 2.0) for s in range(200)]
    assert smooth(line) == line, "the running mean of a constant is that constant"


def test_attention_map_of_layers_labels_every_map_and_token() -> None:
    text = "a b\nc"
    figure = viz.attention_map([causal_weights(2, 5), causal_weights(3, 5)], text)
    assert_shows(figure)
    words = all_text(figure)
    for layer, head in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2)):
        assert f"layer {layer}, head {head}" in words, f"no title for layer {layer}, head {head}"
    # The first map of the lower row has labels below it.
    ticks = [t.get_text() for t in figure.axes[3].get_xticklabels()]
    assert ticks == ["a", "␣", "b", "↵", "c"], "spaces and line ends must be visible on the axis"


def test_attention_map_takes_one_map_one_layer_and_tensors() -> None:
    for weights in (causal_weights(1, 4)[0], causal_weights(2, 4), causal_weights(2, 4)[None]):
        assert_shows(viz.attention_map(weights))
    figure = viz.attention_map(mt.tensor(causal_weights(2, 4)), "abcd", ["first", "second"])
    assert "second" in all_text(figure), "the titles that were given are not there"


def test_attention_map_of_a_rectangle_has_numbers() -> None:
    assert_shows(viz.attention_map(RNG.random((2, 3, 7))))


@pytest.mark.parametrize(
    ("weights", "tokens", "titles", "message"),
    [
        (RNG.random((2, 2, 3, 3)), None, None, "of one sequence"),
        (RNG.random(3), None, None, "of one sequence"),
        ([], None, None, "empty"),
        (RNG.random((2, 3, 3)), "ab", None, "2 tokens"),
        (RNG.random((2, 3, 3)), None, ["one"], "1 titles for 2 maps"),
    ],
)
def test_attention_map_says_what_does_not_fit(weights, tokens, titles, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ShapeError, match=message):
        viz.attention_map(weights, tokens, titles)


def test_mask_picture() -> None:
    figure = viz.mask_picture(np.tril(np.ones((1, 1, 4, 4), bool)), "abcd", title="causal")
    assert_shows(figure)
    words = all_text(figure)
    for expected in ("query", "key", "causal", "visible", "hidden"):
        assert expected in words, f"{expected!r} is not written on the mask"
    assert_shows(viz.mask_picture(mt.tensor(np.ones((3, 90), bool))))
    for wrong in (np.ones((4, 4)), np.ones((2, 4, 4), bool), np.ones((0, 4), bool)):
        with pytest.raises(ShapeError, match="a mask is boolean"):
            viz.mask_picture(wrong)


def network() -> tuple[mt.Tensor, dict[str, mt.Tensor]]:
    x = mt.tensor(RNG.standard_normal((2, 3)), requires_grad=True)
    w = mt.tensor(RNG.standard_normal((3, 4)), requires_grad=True)
    h = mt.ops.tanh(x @ w + 1.0)
    # h is used again much later: a long arrow, which must go around the boxes between.
    y = mt.ops.exp(mt.ops.sin(mt.ops.cos(h))) * np.ones((2, 4)) + h
    return (y * y).sum(), {"x": x, "w": w}


def test_graph_shows_operations_inputs_and_constants() -> None:
    y, names = network()
    figure = viz.graph(y, names)
    assert_shows(figure)
    words = all_text(figure)
    for expected in ("x\n2×3", "w\n3×4", "matmul\n2×4", "tanh", "constant\n2×4", "sum\nscalar", "1"):
        assert expected in words, f"{expected!r} is not in the picture of the graph"


def test_graph_boxes_do_not_overlap() -> None:
    layer = mt.build("softmax_attention", dim=8, heads=2, seed=0)
    x = mt.tensor(RNG.standard_normal((1, 3, 8)).astype("float32"))
    for y, names in (network(), (layer(x).sum(), {"x": x, **dict(layer.named_parameters())})):
        figure = viz.graph(y, names)
        pixels(figure)
        boxes = [
            (a.get_text(), a.get_bbox_patch().get_window_extent())
            for a in figure.axes[0].findobj(Annotation)
            if a.get_text()
        ]
        for (one, a), (other, b) in itertools.combinations(boxes, 2):
            assert not a.overlaps(b), f"the boxes {one!r} and {other!r} overlap"


def test_graph_layers_go_down_and_long_arrows_bend() -> None:
    y, names = network()
    nodes = collect(y, {id(t): name for name, t in names.items()})
    chains = route(nodes)
    for chain in chains:
        rows = [node.layer for node in chain]
        assert rows == list(range(rows[0], rows[-1] + 1)), f"an arrow skips a row: {rows}"
    assert max(map(len, chains)) > 2, "the arrow that passes several rows has no bend"
    twice = [c for c in chains if c[-1].label.startswith("multiply") and c[0].label.startswith("add")]
    assert len(twice) == 2, "y * y must have two arrows"


def test_graph_shares_an_array_that_is_used_twice() -> None:
    a = np.ones((2, 2))
    x = mt.tensor(a, requires_grad=True)
    words = all_text(viz.graph(((x * a) @ a).sum()))
    assert words.count("constant") == 1, "one array that is used twice must be one box"


def test_graph_refuses_what_it_cannot_draw() -> None:
    x = mt.tensor(np.ones(3), requires_grad=True)
    with pytest.raises(GraphError, match="nothing was recorded"):
        viz.graph(x)
    y = (x * 2.0).sum()
    y.backward()
    with pytest.raises(GraphError, match="freed"):
        viz.graph(y)
    deep = x
    # Deeper than Python's recursion limit: the refusal must be ours.
    for _ in range(3000):
        deep = mt.ops.sin(deep)
    with pytest.raises(GraphError, match="more than 80 boxes"):
        viz.graph(deep.sum())


def test_save_writes_a_png_and_makes_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mask.png"
    viz.mask_picture(np.eye(3, dtype=bool), save=path)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n", "the file is not a PNG"
    width, height = struct.unpack(">II", data[16:24])
    assert width > 100 and height > 100, f"the picture has only {width} x {height} pixels"
    with pytest.raises(ValueError, match="not supported"):
        viz.mask_picture(np.eye(3, dtype=bool), save=tmp_path / "mask.nonsense")


def test_notebooks_show_pictures_by_themselves() -> None:
    assert viz.mask_picture(np.eye(3, dtype=bool))._repr_png_().startswith(b"\x89PNG"), "no PNG for notebooks"


def test_state_of_matplotlib_is_left_alone() -> None:
    before = dict(matplotlib.rcParams)
    viz.loss_curve(ROWS)
    viz.attention_map(causal_weights(2, 3))
    viz.graph(network()[0])
    assert dict(matplotlib.rcParams) == before, "a picture changed matplotlib's settings"


@pytest.mark.parametrize(
    ("token", "expected"),
    [(" the", "␣the"), ("\n", "↵"), ("\t", "⇥"), ("é", "é"), ("漢", "U+6F22"), ("\x00", "U+0000"), (7, "7")],
)
def test_readable_tokens(token: object, expected: str) -> None:
    assert picture.readable(token) == expected, f"token {token!r} is shown wrongly"
