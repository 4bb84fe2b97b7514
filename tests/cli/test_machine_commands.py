"""`info`, `doctor` and `lessons`: true about this machine, and right about machines that are made up here."""

import ctypes
import json
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner, Result

import minitf
from minitf import bench, catalogue, machine
from minitf.cli import main
from minitf.commands import doctor, info, lessons
from minitf.ops import kernels

RUNNER = CliRunner()
ROOT = Path(minitf.__file__).parents[1]


def call(*args: str, code: int = 0) -> Result:
    result = RUNNER.invoke(main, args)
    assert result.exit_code == code, f"minitf {' '.join(args)}: exit code {result.exit_code}: {result.output}"
    return result


def test_info_is_true() -> None:
    about = json.loads(call("info", "--json").stdout)
    assert about["numpy"] == np.__version__ and about["minitf"] == minitf.__version__
    assert sum(about["variants"].values()) == len(catalogue.find()), "variants are counted wrongly"
    assert about["kernelized_operations"] == sorted(kernels.DEFINITIONS)
    assert 1 <= about["cores_usable"] <= about["cores"] and about["blas"][0]["threads"] >= 1
    assert about["mode"] == minitf.active()


def test_info_names_backends_and_their_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = SimpleNamespace(KERNELS={"layer_norm": None}, unavailable=lambda: None)
    ill = SimpleNamespace(KERNELS={}, unavailable=lambda: "no abacus is plugged in")
    monkeypatch.setattr(kernels, "backends", lambda: {"quick": ready, "abacus": ill})
    monkeypatch.setattr(kernels, "_failures", {"broken": "ImportError: no beads"})
    words = call("info").output
    for expected in ("quick", "layer_norm", "no abacus is plugged in", "ImportError: no beads"):
        assert expected in words, f"`minitf info` does not say {expected!r}"
    found = {b["name"]: b for b in json.loads(call("info", "--json").stdout)["backends"]}
    assert found["quick"]["operations"] == ["layer_norm"] and found["quick"]["problem"] is None
    monkeypatch.setattr(kernels, "backends", dict)
    monkeypatch.setattr(kernels, "_failures", {})
    assert "none is registered" in call("info").output


def test_info_shows_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = {"name": b"Imaginary 1", "totalGlobalMem": 8 * 2**30}
    runtime = SimpleNamespace(getDeviceCount=lambda: 1, getDeviceProperties=lambda i: properties)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    assert info.gpus() == [{"name": "Imaginary 1", "memory_gib": 8.0}]
    assert "Imaginary 1, 8.0 GiB" in call("info").output


def test_machine_line_is_one_line() -> None:
    line = machine.machine_line()
    assert "\n" not in line and np.__version__ in line and "cores" in line, f"odd line: {line!r}"


def test_doctor_finds_no_problem_here() -> None:
    words = call("doctor").output
    assert "0 problems" in words
    about = json.loads(call("doctor", "--json").stdout)
    assert about["ok"] and [c["name"] for c in about["checks"]] == list(doctor.CHECKS)
    for check in about["checks"]:
        assert check["result"] in doctor.COLOURS and check["says"], f"odd check: {check}"


def test_doctor_fails_on_a_problem_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECKS", {"Beads": lambda: doctor.Finding("warning", "few", "buy beads")})
    words = call("doctor").output
    assert (
        "warning  Beads: few" in words
        and "mend it with: buy beads" in words
        and "0 problems, 1 warning" in words
    )
    monkeypatch.setattr(doctor, "CHECKS", {"Beads": lambda: doctor.Finding("problem", "none", "buy beads")})
    assert "1 problem, 0 warnings" in call("doctor", code=1).output
    assert not json.loads(call("doctor", "--json", code=1).stdout)["ok"]


def test_bounds_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = [project["requires-python"].join(("python", "")), *project["dependencies"]]
    for name, (low, _) in doctor.BOUNDS.items():
        requirement = next(r for r in stated if r.startswith(name))
        assert f">={doctor.dotted(low)}" in requirement, f"doctor and pyproject.toml differ: {requirement}"


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, expected in (((3, 10), "problem"), ((3, 12), "ok"), ((3, 14), "warning")):
        monkeypatch.setattr(doctor.sys, "version_info", version)
        assert doctor.python().result == expected, f"Python {version}"
    for version, expected in (("1.26.4", "problem"), ("2.0.0rc1", "ok"), ("3.0", "warning")):
        monkeypatch.setattr(doctor.np, "__version__", version)
        found = doctor.numpy()
        assert found.result == expected, f"NumPy {version}"
        assert bool(found.mend) == (expected != "ok"), "a wrong version needs a command"


def test_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = {"gcc": "/bin/gcc"}
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name, path=None: tools.get(name))
    assert doctor.compiler() == ("ok", "/bin/gcc", "")
    tools = {"apt-get": "/bin/apt-get"}
    assert doctor.compiler().mend == "sudo apt-get install build-essential"


def test_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.numba().result == "ok"
    monkeypatch.setenv("NUMBA_THREADING_LAYER", "tbb")
    monkeypatch.setattr(doctor, "importable", lambda name: name.endswith("workqueue"))
    assert "'tbb' is not available, only workqueue" in doctor.numba().says
    monkeypatch.setattr(doctor, "import_module", lambda name: SimpleNamespace(__version__="0.60.0"))
    assert "too old" in doctor.numba().says

    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'numba'")

    monkeypatch.setattr(doctor, "import_module", missing)
    found = doctor.numba()
    assert found.result == "warning" and "pip install --upgrade 'numba>=0.61'" in found.mend


def test_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = {"name": "numba", "problem": None, "operations": []}
    monkeypatch.setattr(doctor, "backends", lambda: [ready])
    assert doctor.kernel_backends() == ("ok", "numba (ready)", "")
    broken = {"name": "cupy", "problem": "failed to import: ImportError: x", "operations": []}
    monkeypatch.setattr(doctor, "backends", lambda: [ready, broken])
    assert doctor.kernel_backends().says == "cupy: failed to import: ImportError: x"
    monkeypatch.setattr(doctor, "backends", list)
    assert "pip install" in doctor.kernel_backends().mend


class Works:
    """A stand-in for CuPy whose sums are right."""

    __version__ = "14.0"
    arange = staticmethod(np.arange)


class Broken:
    """A stand-in for CuPy that finds no compiler."""

    __version__ = "14.0"

    @staticmethod
    def arange(n: int) -> None:
        raise RuntimeError("libnvrtc.so.12 not found\nmore")


@pytest.mark.parametrize(
    ("driver", "packages", "module", "result", "words"),
    [
        ((None, 0), [], None, "ok", "not needed"),
        ((None, 0), ["cupy-cuda12x"], None, "ok", "cupy-cuda12x"),
        (((12, 4), 0), [], None, "ok", "not needed"),
        (((12, 4), 1), [], None, "warning", "cupy-cuda12x[ctk]"),
        (((13, 0), 1), [], None, "warning", "cupy-cuda13x[ctk]"),
        (((12, 4), 1), ["cupy-cuda13x"], Works, "problem", "needs a driver for CUDA 13"),
        (((13, 0), 1), ["cupy-cuda12x"], Works, "ok", "runs on a driver for CUDA 13.0"),
        (
            ((13, 0), 1),
            ["cupy-cuda12x"],
            Broken,
            "problem",
            "does not run: RuntimeError: libnvrtc.so.12 not found",
        ),
        (((13, 0), 1), ["cupy-cuda12x", "cupy-cuda13x"], Works, "problem", "overwrite each other"),
        (((13, 0), 1), ["cupy"], Works, "ok", "cupy 14.0"),
    ],
)
def test_cupy(monkeypatch: pytest.MonkeyPatch, driver, packages, module, result, words) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(doctor, "driver", lambda: driver)
    monkeypatch.setattr(doctor, "cupy_packages", lambda: packages)
    monkeypatch.setattr(doctor, "import_module", lambda name: module)
    found = doctor.cupy()
    assert found.result == result and words in found.says + found.mend, (
        f"driver {driver}, {packages}: {found}"
    )
    if result == "problem":
        assert f"pip uninstall --yes {' '.join(packages)} && " in found.mend, (
            f"no command that mends it: {found}"
        )


def test_cuda_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    tools: dict[str, str] = {}
    monkeypatch.setattr(doctor.shutil, "which", lambda name, path=None: tools.get(name))
    for driver, result, words in (
        ((None, 0), "ok", "everything runs on the CPU"),
        (((12, 4), 0), "warning", "sees no GPU"),
        (((12, 4), 2), "ok", "CUDA 12.4, 2 GPUs"),
    ):
        monkeypatch.setattr(doctor, "driver", lambda found=driver: found)
        found = doctor.cuda_driver()
        assert found.result == result and words in found.says, f"driver {driver}: {found}"
    monkeypatch.setattr(doctor, "driver", lambda: (None, 0))
    tools["nvidia-smi"] = "/bin/nvidia-smi"
    assert doctor.cuda_driver().result == "warning", "nvidia-smi without its library"
    assert "no nvcc" in doctor.cuda_toolkit().says
    tools["nvcc"] = "/bin/nvcc"
    assert doctor.cuda_toolkit().says == "/bin/nvcc"


class Libcuda:
    """A stand-in for the driver's library: CUDA 13.1 with three GPUs."""

    def __init__(self, fails: str = ""):
        self.fails = fails

    def _answer(self, name: str, pointer: object, value: int) -> int:
        pointer._obj.value = value  # type: ignore[attr-defined]
        return int(self.fails == name)

    def cuDriverGetVersion(self, pointer: object) -> int:
        return self._answer("version", pointer, 13010)

    def cuInit(self, flags: int) -> int:
        return int(self.fails == "init")

    def cuDeviceGetCount(self, pointer: object) -> int:
        return self._answer("count", pointer, 3)


def test_driver_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for fails, expected in (("", ((13, 1), 3)), ("init", ((13, 1), 0)), ("version", (None, 0))):
        monkeypatch.setattr(ctypes, "CDLL", lambda name, fails=fails: Libcuda(fails))
        assert doctor.driver() == expected, f"a driver that fails at {fails!r}"

    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert doctor.driver() == (None, 0), "no library means no driver"


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    pools = [{"num_threads": 4}]
    monkeypatch.setattr(doctor, "thread_pools", lambda: pools)
    monkeypatch.setattr(doctor, "usable_cores", lambda: 4)
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    assert doctor.threads().result == "ok"
    monkeypatch.setenv("NUMBA_NUM_THREADS", "8")
    assert doctor.threads().result == "warning", "8 Numba threads on 4 cores"
    monkeypatch.delenv("NUMBA_NUM_THREADS")
    monkeypatch.setattr(doctor, "usable_cores", lambda: 2)
    found = doctor.threads()
    assert found.result == "warning" and "OPENBLAS_NUM_THREADS=2" in found.mend, "4 BLAS threads on 2 cores"
    pools = [{"num_threads": 1}, {"num_threads": 1}]
    assert "2 BLAS libraries" in doctor.threads().says


def test_matplotlib_and_jupyter(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ValueError("Key backend: 'abacus' is not a valid value")

    assert doctor.matplotlib().result == "ok"
    monkeypatch.setattr(doctor, "import_module", missing)
    monkeypatch.setenv("MPLBACKEND", "abacus")
    assert doctor.matplotlib().mend == "unset MPLBACKEND"
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None)
    assert "[lessons]" in doctor.jupyter().mend


def test_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, result in ((2**20, "problem"), (2**29, "warning"), (2**40, "ok")):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        assert doctor.disk().result == result, f"{free} bytes free"


def test_versions_are_read() -> None:
    assert doctor.numbers("2.1.0rc1") == (2, 1) and doctor.numbers("3.0rc2") == (3, 0)
    assert doctor.cuda_major("cupy-cuda12x") == 12 and doctor.cuda_major("cupy") is None


def test_lessons_open_jupyterlab(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    codes = [0, 3, 0]
    monkeypatch.setattr(lessons.os, "geteuid", lambda: 1000, raising=False)
    monkeypatch.setattr(lessons.util, "find_spec", lambda name: object())
    monkeypatch.setattr(lessons.subprocess, "call", lambda command: calls.append(command) or codes.pop(0))
    call("lessons", "--port", "9001", "--no-browser")
    assert calls[0][1:] == ["-m", "jupyterlab", str(ROOT / "lessons"), "--port=9001", "--no-browser"]
    assert "exit code 3" in call("lessons", code=1).output
    monkeypatch.setattr(lessons.os, "geteuid", lambda: 0, raising=False)
    call("lessons")
    assert calls[2][-1] == "--allow-root", "JupyterLab refuses root unless told"


def test_lessons_say_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lessons.util, "find_spec", lambda name: None)
    message = call("lessons", code=1).output
    assert "JupyterLab is not installed" in message and "pip install --editable" in message
    monkeypatch.setattr(lessons, "ROOT", tmp_path)
    assert "in the repository" in call("lessons", code=1).output
    assert lessons.install_command().endswith("pip install 'minitf[lessons]'")
    call("lessons", "--port", "0", code=2)


def test_bench_reports_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "BENCHMARKS", [lambda n: bench.engine_overhead(n, length=5)])
    report = json.loads(call("bench", "--repetitions", "1", "--json").stdout)
    assert report["machine"] and {row["library"] for row in report["rows"]} >= {"minitf"}
    assert all(row["median"] > 0 for row in report["rows"]), "a time is not positive"
    words = call("bench", "--repetitions", "1").output
    assert "engine_overhead" in words and "us/op" in words, "the table does not say what was measured"
    call("bench", "--repetitions", "0", code=2)
    assert "there is no folder" in call("bench", "--save", str(tmp_path / "none" / "b.json"), code=2).output
    call("bench", "--repetitions", "1", "--save", str(tmp_path / "b.json"))
    assert json.loads((tmp_path / "b.json").read_text())["rows"]
    assert "choose among: <lambda>" in call("bench", "engine", code=2).output


def test_bench_fails_where_libraries_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    def disagree(repetitions: int) -> None:
        raise bench.BenchError("gradients differ")

    monkeypatch.setattr(bench, "BENCHMARKS", [disagree])
    assert call("bench", code=1).output == "Error: gradients differ\n"
