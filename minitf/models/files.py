"""Models on disk: a folder with `config.json` and `model.safetensors`. Nothing is ever unpickled.

Every file appears whole or not at all: it is written under a temporary name beside its place, flushed to the
disk, and then renamed. A crash, a full disk or a kill leaves what was there before.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from minitf.engine import MinitfError

Arrays = dict[str, np.ndarray[Any, Any]]
CONFIG, WEIGHTS = "config.json", "model.safetensors"
# In the metadata of our safetensors files. Other files have none.
CHECKSUM = "minitf.crc32"
# A temporary file that nothing has written to for so many seconds was left by a process that died.
STALE = 600.0


class FileError(MinitfError, OSError):
    """A file that is missing, cannot be read or written, or does not hold what it should."""


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Put `data` at `path`, whole or not at all.

    Raises:
        FileError: a full disk, no permission, no such folder. What was at `path` is untouched, and the
            temporary file is gone.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        for old in path.parent.glob(f".{path.name}.*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - old.stat().st_mtime > STALE:
                    old.unlink()
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {reason(error)}; what was there is untouched") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    # The rename itself must survive a power cut too. Windows cannot open folders, and needs no such step.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def reason(error: OSError) -> str:
    """Why the system refused, in words that say what to do."""
    known = {
        errno.ENOSPC: "the disk is full; free some space",
        errno.EDQUOT: "your disk quota is used up; free some space",
        errno.EFBIG: "the file would be larger than this system allows",
        errno.EACCES: "no permission; check the owner and the mode of the file and its folder",
        errno.EPERM: "no permission; check the owner and the mode of the file and its folder",
        errno.EROFS: "the disk is read-only",
        errno.ENOENT: "there is no such file or folder",
        errno.ENOTDIR: "a part of the path is a file, not a folder",
        errno.EISDIR: "it is a folder, not a file",
    }
    return known.get(error.errno or 0, error.strerror or str(error))


def read_arrays(path: str | os.PathLike[str]) -> tuple[Arrays, dict[str, str]]:
    """The arrays by name, and the metadata, of a safetensors file. A checksum, if it has one, must fit.

    Raises:
        FileError: missing, unreadable, damaged, or a file of another kind.
    """
    # Imported here: building a model needs no files.
    from safetensors import SafetensorError, safe_open

    try:
        # Python's own errors say more about files that cannot be opened.
        with open(path, "rb"):
            pass
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            arrays, metadata = {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except OSError as error:
        raise FileError(f"cannot read {path}: {reason(error)}") from error
    except TypeError as error:
        raise FileError(f"{path} holds numbers that NumPy lacks ({error}): convert it to float32") from error
    except (SafetensorError, ValueError) as error:
        raise FileError(
            f"{path} is not a whole safetensors file ({error}): it is cut short, damaged, or of another "
            "kind; use another copy or save the model again"
        ) from error
    written = metadata.pop(CHECKSUM, None)
    if written is not None and written != checksum(arrays, metadata):
        raise FileError(f"{path} is damaged (its checksum does not fit): use another copy")
    return arrays, metadata


def arrays_to_bytes(arrays: Arrays, metadata: dict[str, str] | None = None) -> bytes:
    """The contents of a safetensors file with these arrays, this metadata, and a checksum of both."""
    from safetensors.numpy import save as to_bytes

    # In C order, which is what the format holds.
    arrays = {name: np.asarray(a, order="C") for name, a in arrays.items()}
    metadata = metadata or {}
    return to_bytes(arrays, {**metadata, CHECKSUM: checksum(arrays, metadata)})


def checksum(arrays: Arrays, metadata: dict[str, str]) -> str:
    """The CRC-32 of all names, metadata and bytes."""
    crc = zlib.crc32(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(arrays):
        crc = zlib.crc32(arrays[name].data, zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileError: missing, unreadable, not JSON, or not an object.
    """
    try:
        value = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise FileError(f"cannot read {path}: {reason(error)}") from error
    except ValueError as error:
        raise FileError(f"{path} is not JSON ({error}): use another copy or save the model again") from error
    except RecursionError as error:
        raise FileError(f"{path} is nested too deeply to be a model's settings: use another copy") from error
    if not isinstance(value, dict):
        raise FileError(f"{path} must hold a JSON object, not a {type(value).__name__}: use another copy")
    return value


def save(model: Any, folder: str | os.PathLike[str]) -> None:
    """Write `config.json` and `model.safetensors` into `folder`, which is made if need be.

    Args:
        model: a LanguageModel, an Encoder, an ImageModel or a Forecaster.

    Raises:
        TypeError: another module. FileError: the files cannot be written; earlier ones are untouched.
    """
    kind = next((kind for kind, (cls, _) in model_classes().items() if isinstance(model, cls)), None)
    if kind is None:
        names = ", ".join(cls.__name__ for cls, _ in model_classes().values())
        raise TypeError(
            f"mt.save takes a model ({names}), not {type(model).__name__}: write the "
            "state_dict() of other modules with safetensors.numpy.save_file"
        )
    about = {"model": kind, "config": model.config.to_dict()}
    if kind == "encoder":
        about["classes"] = model.classes
    text = json.dumps(about, indent=2) + "\n"
    weights = arrays_to_bytes(model.state_dict())
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make the folder {folder}: {reason(error)}") from error
    write_atomic(folder / WEIGHTS, weights)
    write_atomic(folder / CONFIG, text.encode())


def load(folder: str | os.PathLike[str]) -> Any:
    """The model in `folder`, as `save` wrote it, or GPT-2 as published.

    Raises:
        FileError: a file is missing, damaged, of another kind, or does not fit the other.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileError(f"{folder} is not a folder: a model is a folder with {CONFIG} and {WEIGHTS}")
    about = read_json(folder / CONFIG)
    if about.get("model_type") == "gpt2":
        from .gpt2 import load_gpt2

        return load_gpt2(folder)
    kinds = model_classes()
    kind, values = about.get("model"), about.get("config")
    if not isinstance(kind, str) or kind not in kinds or not isinstance(values, dict):
        raise FileError(
            f'{folder / CONFIG} does not describe a minitf model: it needs "model" ({" or ".join(kinds)}) '
            'and "config"; GPT-2 as published has "model_type": "gpt2"'
        )
    options = {name: v for name, v in about.items() if name not in ("model", "config")}
    unknown = sorted(options.keys() - ({"classes"} if kind == "encoder" else set()))
    if unknown:
        raise FileError(f"{folder / CONFIG} has unknown keys: {', '.join(unknown)}; update minitf?")
    model_class, config_class = kinds[kind]
    try:
        config = config_class.from_dict(values)
    except (TypeError, ValueError, LookupError) as error:
        raise FileError(f"{folder / CONFIG} does not describe a model that can be built: {error}") from error
    arrays, _ = read_arrays(folder / WEIGHTS)
    return fill(model_class, config, arrays, folder, **options)


def model_classes() -> dict[str, tuple[Any, Any]]:
    """For every kind of model that a folder may hold: its class and that of its config."""
    from .config import Config, ForecastConfig, ImageConfig
    from .encoder import Encoder
    from .forecaster import Forecaster
    from .image import ImageModel
    from .language import LanguageModel

    return {
        "language_model": (LanguageModel, Config),
        "encoder": (Encoder, Config),
        "image_model": (ImageModel, ImageConfig),
        "forecaster": (Forecaster, ForecastConfig),
    }


def fill(model_class: Any, config: Any, arrays: Arrays, folder: Path, **options: Any) -> Any:
    """A model of this class and config with these weights, in their dtype.

    Raises:
        FileError: the weights do not fit the config.
    """
    name, shape = model_class.first_weight(config)
    table = arrays.get(name)
    depth = len({name.split(".")[1] for name in arrays if name.startswith("blocks.")})
    # Checked before building, so that a damaged config cannot ask for more memory than there is.
    if table is None or table.shape != shape or depth != config.depth:
        shown = "none" if table is None else table.shape
        raise FileError(
            f"{folder / WEIGHTS} does not fit {CONFIG}: it has {depth} blocks and {name} {shown}, "
            f"but the config says {config.depth} and {shape}; use two files of one save"
        )
    words = "all weights must be of one floating-point type, and integers where the model has them"
    if table.dtype.kind != "f":
        raise FileError(f"{folder / WEIGHTS}: {name} is {table.dtype}, but {words}")
    try:
        model = model_class(config, dtype=table.dtype, **options)
        for key, own in model.state_dict().items():
            found = arrays.get(key, own).dtype
            if found != own.dtype and (own.dtype.kind != "f" or found != table.dtype):
                raise FileError(f"{folder / WEIGHTS}: {key} is {found} and {name} {table.dtype}, but {words}")
        model.load_state_dict(arrays)
    except (TypeError, ValueError, LookupError, MemoryError) as error:
        why = str(error) or "not enough memory"
        raise FileError(f"{folder / WEIGHTS} does not fit {CONFIG}: {why}") from error
    return model
