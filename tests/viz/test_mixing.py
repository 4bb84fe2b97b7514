"""Mixing matrices and costs equal the whole Jacobian and counts by hand; the page shows what it should."""

import functools
import math
from typing import Any

import matplotlib
import numpy as np
import pytest

import minitf as mt
from minitf import ops, viz
from minitf.engine import ShapeError
from minitf.nn import Module
from minitf.registry import OptionError
from minitf.viz import mixing, studies, variant
from minitf.viz.mixing import channel_matrix
from minitf.viz.studies import PlotError

RNG = np.random.default_rng(0)


class Blur(Module):
    """Every token of a grid (B, rows, columns, D) becomes the sum of itself and its four neighbours."""

    def forward(self, x: mt.Tensor) -> mt.Tensor:
        rows, columns = x.shape[1:3]
        p = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        cross = p[:, :rows, 1:-1] + p[:, 2:, 1:-1] + p[:, 1:-1, :columns] + p[:, 1:-1, 2:]
        return x + cross


class BatchMean(Module):
    """Subtracts the mean of the batch. Copies of an example give what it alone gives, yet are not apart."""

    def forward(self, x: mt.Tensor) -> mt.Tensor:
        return x * 2.0 - x.mean(axis=0, keepdims=True)


def layer_and_input(name: str, n: int, dim: int = 8, **options: object):  # type: ignore[no-untyped-def]
    return mt.build(name, dim, seed=0, dtype="float64", **options).eval(), RNG.standard_normal((1, n, dim))


def test_it_is_the_norm_of_the_whole_jacobian() -> None:
    layer, x = layer_and_input("softmax_attention", 5)
    whole = mt.jacobian(lambda z: layer(z))(x).numpy().reshape(5, 8, 5, 8)
    expected = np.sqrt((whole**2).sum(axis=(1, 3)))
    # Groups that fill the 40 rows, that do not, and one row at a time
    for copies in (64, 40, 7, 1):
        error = np.abs(viz.mixing_matrix(layer, x, copies=copies) - expected).max()
        assert error <= 1e-12, f"with {copies} copies the mixing matrix differs by {error:.2g}"


def test_causal_attention_is_strictly_lower_triangular() -> None:
    layer, x = layer_and_input("softmax_attention", 6)
    m = viz.mixing_matrix(layer, x)
    assert m.shape == (6, 6) and (np.triu(m, 1) == 0).all(), "a causal layer depends on later tokens"
    assert (m[np.tril_indices(6)] > 0).all(), "causal attention should depend on every earlier token"
    layer, x = layer_and_input("softmax_attention", 6, causal=False)
    assert (viz.mixing_matrix(layer, x) > 0).all(), "attention without a mask depends on every token"


def test_a_token_wise_layer_is_diagonal() -> None:
    layer, x = layer_and_input("swiglu", 5)
    m = viz.mixing_matrix(layer, x)
    assert (m - np.diag(np.diag(m)) == 0).all() and (np.diag(m) > 0).all(), "tokens of an FFN see each other"


def test_a_grid_shows_its_neighbourhood() -> None:
    rows, columns, dim = 3, 4, 2
    m = viz.mixing_matrix(Blur(), RNG.standard_normal((1, rows, columns, dim)))
    place = np.stack(np.unravel_index(np.arange(rows * columns), (rows, columns)), axis=-1)
    near = np.abs(place[:, None] - place[None]).sum(axis=-1) <= 1
    # The Jacobian of a pair is the unit matrix, whose Frobenius norm is sqrt(D).
    error = np.abs(m - math.sqrt(dim) * near).max()
    assert error <= 1e-12, (
        f"tokens of a grid, counted row by row, differ from their neighbours by {error:.2g}"
    )


def test_examples_that_are_not_apart_are_computed_alone() -> None:
    x = RNG.standard_normal((1, 3, 2))
    m = viz.mixing_matrix(BatchMean(), x)
    error = np.abs(m - math.sqrt(2) * np.eye(3)).max()
    assert error <= 1e-12, f"a layer that mixes the batch was measured in a batch of copies: {error:.2g}"


def test_fewer_tokens_come_out() -> None:
    m = viz.mixing_matrix(lambda x: x[:, ::2] + x[:, 1::2], RNG.standard_normal((1, 6, 2)))
    assert m.shape == (3, 6), f"six tokens merged in pairs give a matrix (3, 6), not {m.shape}"
    assert ((m > 0) == np.kron(np.eye(3, dtype=bool), np.ones((1, 2), bool))).all(), "pairs are not merged"


def test_progress_ends_at_one() -> None:
    shares: list[float] = []
    layer, x = layer_and_input("swiglu", 3)
    viz.mixing_matrix(layer, x, copies=5, progress=shares.append)
    assert shares == sorted(shares) and shares[-1] == 1.0, f"the shares that are done: {shares}"


@pytest.mark.parametrize("shape", [(3, 2), (2, 3, 2)])
def test_batches_and_vectors_are_errors(shape: tuple[int, ...]) -> None:
    for f in (viz.mixing_matrix, channel_matrix):
        with pytest.raises(ShapeError, match=r"x must be \(1, "):
            f(lambda x: x, np.ones(shape))


def test_channels_of_one_token() -> None:
    layer, x = layer_and_input("relu", 4, hidden=5)
    x = np.abs(x)
    w1, w2 = np.abs(layer.w1.weight.data), layer.w2.weight.data
    layer.w1.weight.data = w1
    # Every neuron is on, so y = x W1 W2 + const.
    error = np.abs(channel_matrix(layer, x) - (w1 @ w2).T).max()
    assert error <= 1e-12, f"the Jacobian of a linear FFN is W1 W2: {error:.2g}"


def test_costs_are_those_of_the_profile() -> None:
    w = mt.tensor(np.ones((4, 4), dtype="float32"))
    cost = viz.cost_against_length(lambda n: (lambda x: x @ w, (mt.zeros((1, n, 4)),)), [2, 4, 8])
    assert cost.flops == (2 * 2 * 16, 2 * 4 * 16, 2 * 8 * 16), (
        "a product (n, 4) @ (4, 4) is 2 n 16 operations"
    )
    assert cost.peak_bytes == (2 * 16, 4 * 16, 8 * 16), "n rows of 4 numbers of 4 bytes"
    assert cost.slopes == (1.0, 1.0), "both grow like N"
    square = viz.cost_against_length(lambda n: (lambda x: x @ x.mT, (mt.zeros((n, 4)),)), [64, 128])
    assert square.slopes == (2.0, 2.0), "scores of all pairs grow like N^2"
    assert all(map(math.isnan, mixing.Cost((4,), (1,), (1,)).slopes)), "one length has no slope"
    nothing = viz.cost_against_length(lambda n: (lambda x: x.reshape((4, n)), (mt.zeros((n, 4)),)), [2, 4])
    assert nothing.flops == (0, 0) and all(map(math.isnan, nothing.slopes)), "a view costs nothing"


def words_of(picture: viz.Picture) -> str:
    return "\n".join(t.get_text() for t in picture.findobj(matplotlib.text.Text))


def test_study_of_attention_has_heads_and_costs() -> None:
    study = viz.study("mqa", tokens=6, dim=8, heads=2, lengths=(16, 32), options={"causal": False})
    assert study.maps is not None and study.maps.shape == (2, 6, 6), "the weights of both heads are missing"
    assert np.abs(study.maps.sum(axis=-1) - 1).max() <= 1e-12, "rows of attention weights sum to one"
    assert study.options == {"kv_heads": 1, "causal": False} and (study.matrix > 0).all()
    words = words_of(viz.variant_picture(study))
    for expected in (
        "mqa: Multi-head",
        "6 tokens",
        "2 heads",
        "head 1",
        "causal=False",
        "like N^1.",
        "card: 4 N",
    ):
        assert expected in words, f"{expected!r} is not written on the picture"


def test_study_of_a_mixer_without_weights_has_the_jacobian_alone() -> None:
    study = viz.study("gla", tokens=5, dim=8, lengths=(16, 32))
    assert study.maps is None and (np.triu(study.matrix, 1) == 0).all() and study.matrix.shape == (5, 5)
    assert study.cost is not None and study.cost.slopes[0] == 1.0, "gated linear attention is linear in N"


def test_study_of_channel_mixers_shows_channels() -> None:
    study = viz.study("layernorm", dim=6, lengths=(16, 32))
    assert study.pattern == "channels" and study.matrix.shape == (6, 6)
    # Adding a constant to a token changes nothing.
    assert np.abs(study.matrix.sum(axis=1)).max() <= 1e-6, "rows of the Jacobian of LayerNorm sum to zero"


def test_study_of_positions() -> None:
    bias = viz.study("alibi", tokens=5, heads=2)
    assert bias.pattern == "bias" and bias.maps is not None and bias.maps.shape == (2, 5, 5)
    assert bias.maps[0, 4, 1] == -3 * 2.0**-4, "ALiBi's first head of two falls by 2^-4 with each step"
    turned = viz.study("rope", tokens=5)
    assert turned.pattern == "rotation" and np.abs(np.diag(turned.matrix) - 1).max() <= 1e-12
    error = np.abs(turned.matrix[1:, 1:] - turned.matrix[:-1, :-1]).max()
    assert error <= 1e-12, f"rotated scores depend on the distance only: {error:.2g}"
    assert viz.study("sinusoidal", tokens=5).pattern == "similarity"
    for study in (bias, turned):
        words = words_of(viz.variant_picture(study))
        assert "against distance" in words and study.title in words
    with pytest.raises(PlotError, match="nothing to show"):
        viz.study("nope")


def test_hidden_keys_of_a_bias_have_no_colour() -> None:
    m = np.where(np.tri(3, dtype=bool), -1.0, -np.inf)
    facts = dict(name="x", title="y", kind="position", complexity="", grid=(3,), dim=2, heads=1, seed=0)
    study = viz.Study(**facts, options={}, pattern="bias", matrix=m, maps=m[None], cost=None)  # type: ignore[arg-type]
    image = viz.variant_picture(study).findobj(matplotlib.image.AxesImage)[0].get_array()
    assert image.mask.sum() == 3 and image.min() == -1.0, "infinite biases must be left white"


def test_kinds_without_tokens_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, why in studies.WHY_NOT.items():
        card = type("Card", (), {"kind": kind, "grid": "1d"})
        monkeypatch.setattr(
            studies.registry, "variant_class", lambda name, card=card: type("V", (), {"card": card})
        )
        with pytest.raises(PlotError, match=why):
            viz.study("softmax_attention")


def test_of_several_outputs_the_first_counts() -> None:
    x = mt.zeros((1, 2, 3))
    assert studies.tensor_of((x, "sizes"), "tome") is x and studies.tensor_of(x, "gla") is x
    for wrong in ("words", (1, 2), (), mt.zeros((2, 3))):
        with pytest.raises(PlotError, match=r"x gives .* holds no tokens"):
            studies.tensor_of(wrong, "x")


def test_unknown_options_are_named() -> None:
    with pytest.raises(OptionError, match="does not take hiden"):
        viz.study("swiglu", options={"hiden": 3})


@pytest.mark.parametrize(
    ("name", "options", "share"),
    [
        ("sliding_window", {"left": 8}, 0.25),
        ("bigbird", {"block": 1}, 0.6),
        ("swin_attention", {"window": 4}, 0.25),
        ("neighborhood_attention", {"window": 4}, 0.25),
    ],
)
def test_windows_are_smaller_than_the_picture(name: str, options: dict[str, int], share: float) -> None:
    study = viz.study(name, dim=4, heads=2, lengths=(16, 32))
    assert study.options == options, "the headline must tell what was changed"
    assert (study.matrix > 0).mean() <= share, f"{name} looks like full attention"


def test_other_inputs_do_not_grow_with_the_square_of_the_tokens() -> None:
    study = viz.study("deformable_attention", tokens=2, dim=4, heads=1, lengths=(64, 128))
    assert study.cost is not None
    power = study.cost.slopes[0]
    assert abs(power - 1.0) <= 0.1, f"deformable attention is linear in its cells, not N^{power:.2f}"


def test_more_inputs_are_repeated_with_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    def matrix(name: str) -> Any:
        return viz.study(name, tokens=4, dim=4, heads=2, lengths=(16, 32)).matrix

    names = ("dit_block", "deformable_attention", "kmax_cross_attention")
    together = [matrix(name) for name in names]
    one = functools.partial(viz.mixing_matrix, copies=1)
    monkeypatch.setattr(studies, "mixing_matrix", lambda f, x, progress: one(f, x))
    for name, fast in zip(names, together):
        error = np.abs(fast - matrix(name)).max()
        assert error <= 1e-12, f"{name}: rows computed together and alone differ by {error:.2g}"


def test_few_outputs_of_many_tokens_are_no_thin_strip() -> None:
    picture = viz.variant_picture(viz.study("kmax_cross_attention", dim=4, heads=1, lengths=(16, 32)))
    panel = next(a for a in picture.findobj(matplotlib.axes.Axes) if a.get_ylabel() == "output token")
    assert panel.get_box_aspect() == 1 and panel.get_aspect() == "auto"


def test_windows_that_were_asked_for_stay() -> None:
    study = viz.study("sliding_window", dim=4, lengths=(16, 32), options={"left": 30})
    assert study.options == {"left": 30}
    assert viz.study("gla", dim=4, tokens=8, lengths=(16, 32)).options == {}, "chunks are no reach"


@pytest.mark.parametrize("name", ["dit_block", "cascaded_group_attention"])
def test_layers_that_begin_as_zero_are_drawn(name: str) -> None:
    study = viz.study(name, tokens=4, dim=4, lengths=(16, 32))
    assert study.drawn and (study.matrix > 0).all(), "the picture shows no influence between tokens"
    assert study.heads is None, "a list of heads is no number of heads"
    assert "weights that begin as zeros drawn" in words_of(viz.variant_picture(study))
    assert not viz.study("softmax_attention", tokens=4, dim=4, lengths=(16, 32)).drawn


@pytest.mark.parametrize(("n", "grid"), [(64, (8, 8)), (32, (4, 8)), (12, (3, 4)), (7, (1, 7)), (1, (1, 1))])
def test_grids_are_as_square_as_can_be(n: int, grid: tuple[int, int]) -> None:
    assert studies.Maker("x", None, False, 4, 0, {}).grid(n) == grid


def test_grids_get_maps_of_what_a_token_sees() -> None:
    rows, columns = 3, 4
    m = viz.mixing_matrix(Blur(), RNG.standard_normal((1, rows, columns, 2)))
    facts = dict(
        name="blur", title="Blur", kind="mixer", complexity="N", grid=(rows, columns), dim=2, heads=None
    )
    cost = viz.Cost((16, 32), (16, 32), (0, 0))
    study = viz.Study(**facts, seed=0, options={}, pattern="mixing", matrix=m, maps=None, cost=cost)  # type: ignore[arg-type]
    strip = variant.strip_of(study)
    assert strip is not None and [s.place for s in strip] == [(0, 0), (1, 0), (1, 2), (2, 3)]
    seen = [[0, 0, 1, 0], [0, 1, 1, 1], [0, 0, 1, 0]]
    assert ((strip[2].values > 0) == np.array(seen, bool)).all(), "row 1, column 2 sees its cross"
    words = words_of(viz.variant_picture(study))
    assert "seen from row 1, column 2" in words and "3 × 4 tokens" in words and "row by row" in words


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [(0, "B", "0 B"), (100, "", "100"), (1000, "B", "1 kB"), (1e6, "", "1 M"), (2.5e10, "B", "25 GB")],
)
def test_short_numbers(value: float, unit: str, expected: str) -> None:
    assert variant.short(value, unit) == expected


def test_labels_of_the_page_do_not_overlap() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for name in ("softmax_attention", "swiglu"):
        picture = viz.variant_picture(viz.study(name, tokens=8, dim=8, lengths=(16, 32)))
        FigureCanvasAgg(picture).draw()
        # Titles and names of axes; the numbers along them are placed by matplotlib.
        titles = [t for part in picture.findobj(matplotlib.axes.Axes) for t in (part.title, *part.texts)]
        titles += [
            a.label for part in picture.findobj(matplotlib.axes.Axes) for a in (part.xaxis, part.yaxis)
        ]
        titles += [t for part in picture.subfigs for t in part.texts]
        titles = [t for t in titles if t.get_text()]
        assert len(titles) >= 12, f"{name}: a page has more labels than {[t.get_text() for t in titles]}"
        boxes = [(t.get_text(), t.get_window_extent()) for t in titles]
        width, height = picture.bbox.width, picture.bbox.height
        for i, (one, a) in enumerate(boxes):
            assert a.x0 >= 0 and a.y0 >= 0 and a.x1 <= width and a.y1 <= height, f"{name}: {one!r} is cut off"
            for other, b in boxes[i + 1 :]:
                assert not a.overlaps(b), f"{name}: {one!r} and {other!r} overlap"
