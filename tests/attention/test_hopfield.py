"""The Hopfield layers beyond the checks: when iterations stop, gradients through them, storage, options."""

from typing import Any

import numpy as np
import pytest

from minitf import Tensor
from minitf.attention.hopfield import Hopfield, associate, energy, retrieve
from minitf.attention.hopfield_layer import HopfieldLayer
from minitf.attention.hopfield_pooling import HopfieldPooling
from minitf.engine import ShapeError, check_grad


def heads(seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    return Tensor(rng.standard_normal((2, 2, 3, 4))), Tensor(rng.standard_normal((2, 2, 6, 4)))


def test_without_a_limit_it_stops_at_a_fixed_point() -> None:
    q, k = heads()
    a = associate(q, k, None, 2.0, None, 1e-12)
    again = associate(a @ k, k, None, 2.0, 0, 1e-12)
    assert np.max(np.abs(again.data - a.data)) <= 1e-9, "one more retrieval still moves the state"


def test_a_head_that_is_done_stops_and_the_others_go_on() -> None:
    """Head 0 has one pattern only and is done after a step; head 1 goes on as if it were alone."""
    q, k = heads()
    k = Tensor(np.concatenate([np.broadcast_to(k.data[:, :1, :1], (2, 1, 6, 4)), k.data[:, 1:]], axis=1))
    both = associate(q, k, None, 1.0, 4, 1e-3).data
    for h in range(2):
        alone = associate(q[:, h : h + 1], k[:, h : h + 1], None, 1.0, 4, 1e-3).data
        assert np.array_equal(both[:, h : h + 1], alone), f"head {h} depends on the other"


def test_a_coarse_eps_stops_after_one_update() -> None:
    q, k = heads()
    coarse, one = associate(q, k, None, 1.0, 9, 1e9), associate(q, k, None, 1.0, 1, 0.0)
    assert np.array_equal(coarse.data, one.data), "the test comes after each update, not before"


def test_a_batch_stops_together() -> None:
    """As published: an example that is done goes on while another of its batch moves."""
    q, k = heads()
    q, k = (Tensor(np.concatenate([0.01 * a.data[:1], 3.0 * a.data[1:]])) for a in (q, k))
    together = associate(q, k, None, 1.0, 5, 0.05).data
    alone = associate(q[:1], k[:1], None, 1.0, 5, 0.05).data
    assert not np.array_equal(together[:1], alone), "the docstring says that examples depend on their batch"


def test_gradients_flow_through_all_iterations() -> None:
    q, k = heads()
    mask = np.random.default_rng(1).random((2, 1, 3, 6)) < 0.7
    check_grad(
        lambda a, b: associate(a, b, mask, np.array([0.5, 1.5])[:, None, None], 3, 0.0), q.data, k.data
    )


def test_many_patterns_are_stored() -> None:
    """2000 random unit patterns of width 64, states with a tenth of their length as noise: beta decides."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 64))
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    noise = rng.standard_normal(x.shape)
    state = x + 0.1 * noise / np.linalg.norm(noise, axis=-1, keepdims=True)
    errors = [
        np.linalg.norm(retrieve(Tensor(x), Tensor(state), beta).data - x, axis=-1).max()
        for beta in (8, 16, 64)
    ]
    assert errors[0] > 0.5 and errors[2] <= 1e-3, f"retrieval errors at beta = 8, 16, 64: {errors}"
    assert errors[0] > errors[1] > errors[2], "a sharper softmax retrieves worse"


def test_iterations_descend_to_a_metastable_state() -> None:
    """Two patterns near each other: with a small beta they are retrieved as their mean, which is stable."""
    x = Tensor(np.array([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.0]]))
    state, energies = Tensor(np.array([0.9, 0.08])), []
    for _ in range(30):
        energies.append(energy(x, state, 4.0).item())
        state = retrieve(x, state, 4.0)
    assert np.all(np.diff(energies) <= 1e-12), "the energy rose"
    assert np.max(np.abs(state.data - [1.0, 0.0])) <= 0.01, f"retrieved {state.data}, not the mean of two"


def test_widths_of_their_own() -> None:
    layer = Hopfield(
        6,
        heads=2,
        head_dim=5,
        pattern_dim=4,
        stored_dim=3,
        values_dim=7,
        out_dim=9,
        beta=(0.5, 2.0),
        dtype="float64",
    )
    rng = np.random.default_rng(0)
    x, y, u = (Tensor(rng.standard_normal((2, n, w))) for n, w in ((4, 6), (5, 3), (5, 7)))
    assert layer(x, context=y, values=u).shape == (2, 4, 9), "widths are mixed up"
    sharp = [Hopfield(6, heads=2, head_dim=5, stored_dim=3, beta=b, dtype="float64") for b in (0.5, 2.0)]
    for h, one in enumerate(sharp):
        state = {k: v for k, v in layer.state_dict().items() if "q" in k or "k" in k or "norm_st" in k}
        one.load_state_dict(state, strict=False)
        error = np.max(
            np.abs(layer.weights(x, context=y, values=u).data[:, h] - one.weights(x, context=y).data[:, h])
        )
        assert error <= 1e-12, f"head {h} does not use its own beta"


@pytest.mark.parametrize("steps", [0, 2])
def test_added_rows_count_as_visible_patterns(steps: int) -> None:
    layer = Hopfield(8, heads=2, learned_row=True, zero_row=True, steps=steps, dtype="float64")
    x = Tensor(np.random.default_rng(0).standard_normal((2, 3, 8)))
    a = layer.weights(x, mask=np.zeros((3, 3), dtype=bool)).data
    assert a.shape == (2, 2, 3, 5) and not np.any(a[..., :3]), "hidden patterns are seen"
    assert np.allclose(a[..., 3:].sum(axis=-1), 1.0), "the added rows must be visible to all"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"heads": 3}, "heads=3"),
        ({"steps": -1}, "steps=-1"),
        ({"eps": -1.0}, "eps=-1.0"),
        ({"static": ("keys",)}, "static"),
        ({"static": ("state",), "head_dim": 3}, "widths"),
        ({"static": ("stored", "state"), "stored_dim": 5}, "widths"),
        ({"static": ("stored",), "connected": True}, "connected"),
        ({"connected": True, "values_dim": 3}, "connected"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Hopfield(8, **options)


@pytest.mark.parametrize("make", [HopfieldPooling, HopfieldLayer])
def test_quantities_below_one(make: Any) -> None:
    with pytest.raises(ValueError, match="quantity=0"):
        make(8, quantity=0)


def test_grids_are_refused() -> None:
    x = Tensor(np.zeros((1, 2, 3, 8), dtype="float32"))
    for layer in (Hopfield(8), HopfieldPooling(8)):
        with pytest.raises(ShapeError, match=r"\(B, N, D\)"):
            layer(x)
    assert HopfieldLayer(8)(x).shape == x.shape, "a lookup takes any number of axes"


def test_initial_values_are_those_of_the_paper() -> None:
    layer = HopfieldLayer(64, separate=True, seed=1)
    spreads = {name: float(v.std()) for name, v in layer.state_dict().items() if v.size > 1000}
    assert len(spreads) == 6 and all(abs(s - 0.02) <= 1e-3 for s in spreads.values()), f"spreads {spreads}"
    assert not any(np.any(v) for n, v in layer.state_dict().items() if n.endswith("bias")), (
        "biases start at 0"
    )
