"""Writing that fails: nothing that was there is lost, nothing half-made stays."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

import minitf as mt
from minitf.models import FileError, LanguageModel
from minitf.models.files import STALE, arrays_to_bytes, read_arrays, write_atomic
from tests.models.small import SMALL, same_weights


def temporaries(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".tmp")]


def fail_with(code: int):
    def fail(*args, **options):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize(
    ("call", "code", "words"),
    [
        ("fsync", errno.ENOSPC, "the disk is full"),
        ("fsync", errno.EDQUOT, "quota"),
        ("fsync", errno.EIO, "nput/output error"),
        ("replace", errno.EACCES, "no permission"),
        ("replace", errno.EPERM, "no permission"),
        ("replace", errno.EROFS, "read-only"),
    ],
)
def test_a_failed_save_loses_nothing(
    saved: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, words: str
) -> None:
    before = {name: (saved / name).read_bytes() for name in os.listdir(saved)}
    monkeypatch.setattr(os, call, fail_with(code))
    with pytest.raises(FileError, match=words) as caught:
        mt.save(LanguageModel(SMALL, seed=9), saved)
    monkeypatch.undo()
    assert "model.safetensors" in str(caught.value), "the message must name the file"
    assert {name: (saved / name).read_bytes() for name in os.listdir(saved)} == before, (
        "a failed save changed the folder"
    )


def test_a_write_that_stops_half_way(saved: Path) -> None:
    before = {name: (saved / name).read_bytes() for name in os.listdir(saved)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The system refuses to let any file grow beyond 1 KiB.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(FileError, match="larger than this system allows"):
            mt.save(LanguageModel(SMALL, seed=9), saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {name: (saved / name).read_bytes() for name in os.listdir(saved)} == before, (
        "a failed save changed the folder"
    )


def test_an_interrupt_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "x", b"abc")
    assert os.listdir(tmp_path) == [], "an interrupted write must leave nothing"


def test_what_a_killed_process_left_is_removed_later(tmp_path: Path) -> None:
    old, fresh, other = (tmp_path / name for name in (".x.1.tmp", ".x.2.tmp", ".y.1.tmp"))
    for path in (old, fresh, other):
        path.write_text("half")
    for path in (old, other):
        os.utime(path, (time.time() - 2 * STALE,) * 2)
    write_atomic(tmp_path / "x", b"abc")
    assert sorted(os.listdir(tmp_path)) == [".x.2.tmp", ".y.1.tmp", "x"], (
        "only old temporaries of this file may go"
    )
    assert (tmp_path / "x").read_bytes() == b"abc"


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file or folder"):
        write_atomic(tmp_path / "missing" / "x", b"")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="a part of the path is a file"):
        write_atomic(tmp_path / "file" / "x", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError, match="it is a folder"):
        write_atomic(tmp_path / "folder", b"")
    assert temporaries(tmp_path) == [], "a failed write must leave no temporary file"


def test_a_file_that_may_not_be_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The super-user may read everything, so the refusal is simulated.
    monkeypatch.setattr("builtins.open", fail_with(errno.EACCES))
    with pytest.raises(FileError, match=r"model\.safetensors: no permission"):
        read_arrays(saved / "model.safetensors")


def test_a_link_to_a_model_loads(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(saved)
    assert same_weights(mt.load(tmp_path / "link"), mt.load(saved))
    shutil.rmtree(saved)
    with pytest.raises(FileError, match="not a folder"):
        mt.load(tmp_path / "link")


def test_checksum_covers_the_metadata(tmp_path: Path) -> None:
    data = arrays_to_bytes({"a": np.ones(2)}, {"note": "one"})
    (tmp_path / "x").write_bytes(data)
    assert read_arrays(tmp_path / "x")[1] == {"note": "one"}, "the metadata must come back as given"
    (tmp_path / "x").write_bytes(data.replace(b"one", b"two"))
    with pytest.raises(FileError, match="damaged"):
        read_arrays(tmp_path / "x")
