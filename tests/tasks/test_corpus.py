"""The data that ships: sizes, types, gaps, and a few values known from the sources."""

import gzip
from importlib import resources

import numpy as np
import pytest

from minitf.tasks import load_digits, load_moby, load_series

DATA = resources.files("minitf.tasks").joinpath("data")


def test_moby_is_the_whole_novel() -> None:
    text = load_moby()
    assert len(text) == 1_189_553, "the novel has another length: was the file repacked from another source?"
    assert len(set(text)) == 81, "the novel has another alphabet: models are sized for 81 characters"
    assert text.startswith("CHAPTER 1. Loomings.\n\nCall me Ishmael.")
    assert text.endswith("as it rolled five thousand years ago.\n")
    assert "\r" not in text, "line ends must be plain newlines on every platform"


def test_moby_file_is_small_and_reproducible() -> None:
    raw = DATA.joinpath("moby_dick.txt.gz").read_bytes()
    assert len(raw) < 2**20, "the packed novel must stay under 1 MiB"
    # Bytes 4..8 of a gzip file hold its time stamp, bit 3 of byte 3 says that a file name follows.
    assert raw[4:8] == bytes(4), "pack with mtime=0, so that packing again gives the same bytes"
    assert not raw[3] & 8, "pack without a file name, so that packing again gives the same bytes"
    assert gzip.decompress(raw).decode("utf-8") == load_moby()


def test_digits_shapes_types_and_range() -> None:
    images, labels = load_digits()
    assert images.shape == (1797, 8, 8) and images.dtype == np.float32
    assert labels.shape == (1797,) and labels.dtype == np.int64
    assert images.min() == 0 and images.max() == 16, "pixels run from 0 to 16"
    np.testing.assert_array_equal(images, np.round(images), err_msg="pixels are whole numbers")
    np.testing.assert_array_equal(labels[:10], np.arange(10), err_msg="the file starts with 0, 1, ... 9")
    np.testing.assert_array_equal(images[0, 0], [0, 0, 5, 13, 9, 1, 0, 0], err_msg="the first row of pixels")
    counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    np.testing.assert_array_equal(np.bincount(labels), counts, err_msg="images per digit")


@pytest.mark.parametrize(
    ("name", "length", "times", "first", "last", "gaps"),
    [
        ("co2", 2284, "datetime64[D]", ("1958-03-29", 316.1), ("2001-12-29", 371.5), 59),
        ("sunspots", 309, "int64", (1700, 5.0), (2008, 2.9), 0),
        ("elnino", 732, "datetime64[M]", ("1950-01", 23.11), ("2010-12", 22.07), 0),
        ("nile", 100, "int64", (1871, 1120.0), (1970, 740.0), 0),
    ],
)
def test_series(
    name: str,
    length: int,
    times: str,
    first: tuple[int | str, float],
    last: tuple[int | str, float],
    gaps: int,
) -> None:
    t, values = load_series(name)
    assert t.shape == values.shape == (length,)
    assert t.dtype == np.dtype(times) and values.dtype == np.float64
    assert np.isnan(values).sum() == gaps, f"{name}: gaps must be NaN, and only gaps"
    assert np.all(np.diff(t).astype(np.int64) > 0), f"{name}: times must rise"
    for at, (when, value) in ((0, first), (-1, last)):
        assert t[at] == np.array(when, dtype=times) and values[at] == value, f"{name}: entry {at}"


def test_co2_is_weekly() -> None:
    days, _ = load_series("co2")
    assert set(np.diff(days).astype(int)) == {7}


def test_elnino_keeps_the_order_of_months() -> None:
    months, values = load_series("elnino")
    assert values[months == np.datetime64("1950-02")] == 24.20
    assert values[months == np.datetime64("1951-01")] == 24.19


def test_unknown_series_names_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'tides'.*co2, sunspots, elnino, nile"):
        load_series("tides")


def test_each_call_returns_fresh_arrays() -> None:
    load_series("nile")[1][:] = 0
    load_digits()[0][:] = 0
    assert load_series("nile")[1][0] == 1120, "a change made by a caller must not reach the next caller"
    assert load_digits()[0].max() == 16, "a change made by a caller must not reach the next caller"


def test_every_data_file_has_its_provenance() -> None:
    readme = DATA.joinpath("README.md").read_text(encoding="utf-8")
    for file in DATA.iterdir():
        known = file.name == "README.md" or f"| {file.name} |" in readme
        assert known, f"data/README.md must say where {file.name} is from"
