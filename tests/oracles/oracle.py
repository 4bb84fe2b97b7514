"""Frozen answers of independent implementations: how they are written, and how minitf is compared with them.

Each NAME.npz holds float64 (or integer) arrays: inputs under "in.*", a cotangent under "cotangent", the
answers under "y" and "grad.*", and a text "source" that names the implementation and its version. `make
oracles` writes them anew; the tests only read them.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np

FOLDER = Path(__file__).parent
Arrays = dict[str, np.ndarray]


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for packages that published code imports, but does not use for what we call."""

    def __init__(self, *names: str):
        self.names = names

    @classmethod
    def install(cls, *names: str) -> None:
        """From now on, these packages import as empty ones."""
        sys.meta_path.insert(0, cls(*names))

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> Any:
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__, module.__name__, module.__version__ = [], spec, spec.name, "0"
        return module

    def exec_module(self, module: Any) -> None:
        pass


def save(name: str, source: str, arrays: Arrays) -> None:
    """Write NAME.npz. source: "package version, the function that was called"."""
    np.savez_compressed(FOLDER / f"{name}.npz", source=np.array(source), **arrays)  # type: ignore[arg-type]
    print(f"{name}: {source}")


def from_torch(name: str, source: str, f: Callable[..., Any], inputs: Arrays, seed: int = 0) -> None:
    """Save what a torch function answers: y = f(**inputs) and the gradients of <cotangent, y> by float
    inputs."""
    import torch

    given = {k: torch.tensor(v, requires_grad=v.dtype.kind == "f") for k, v in inputs.items()}
    y = f(**given)
    cotangent = np.random.default_rng([seed, 1]).standard_normal(tuple(y.shape))
    y.backward(torch.tensor(cotangent, dtype=y.dtype))
    arrays = {f"in.{k}": v for k, v in inputs.items()} | {"cotangent": cotangent}
    arrays["y"] = y.detach().double().numpy()
    for k, t in given.items():
        if t.grad is not None:
            arrays[f"grad.{k}"] = t.grad.double().numpy()
    save(name, f"{source}; torch {torch.__version__}", arrays)


def load(name: str) -> Arrays:
    """The arrays of NAME.npz."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return {k: file[k] for k in file.files}


def compare(name: str, f: Callable[..., Any], tolerance: float) -> None:
    """Assert that y = f(**inputs) and its gradients are those of NAME.npz, relative to the largest element.

    f takes and gives Tensors, under the names of the inputs. The tolerance is that of the oracle: 1e-10 where
    it computes in float64, 1e-4 where it falls back to float32.
    """
    from minitf import Tensor

    found = load(name)
    inputs = {
        k[3:]: Tensor(v, requires_grad=True) if v.dtype.kind == "f" else v
        for k, v in found.items()
        if k.startswith("in.")
    }
    y = f(**inputs)
    y.backward(found["cotangent"])
    pairs = {"y": (y.data, found["y"])}
    for key in found:
        if key.startswith("grad."):
            grad = inputs[key[5:]].grad
            assert grad is not None, f"{name}: no gradient reaches {key[5:]}"
            pairs[key] = (grad.data, found[key])
    for key, (ours, theirs) in pairs.items():
        assert ours.shape == theirs.shape, f"{name}: {key} is {ours.shape} here and {theirs.shape} there"
        error = float(
            np.max(np.abs(ours - theirs), initial=0.0) / max(1.0, float(np.max(np.abs(theirs), initial=0.0)))
        )
        assert error <= tolerance, f"{name}: {key} differs from {found['source']} by {error:.2g}"
