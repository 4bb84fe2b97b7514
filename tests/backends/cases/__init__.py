"""Arguments on which kernels are compared with their definitions: one file for each group of operations.

A file has `CASES: dict[operation, function]`; the function takes a generator and yields (label, arguments by
name). Arrays of floats are float64 and are cast; everything that is an array of floats is differentiated.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np

Cases = Callable[[np.random.Generator], Iterator[tuple[str, dict[str, Any]]]]

CASES: dict[str, Cases] = {}
for _module in pkgutil.iter_modules(__path__):
    CASES.update(import_module(f"{__name__}.{_module.name}").CASES)
