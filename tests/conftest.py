"""Settings for every test: one hypothesis profile, the same examples on every run."""

from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("minitf", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("minitf")

HAS_TORCH = find_spec("torch") is not None
# Comparisons with other libraries need those libraries.
collect_ignore_glob = [] if HAS_TORCH else ["parity/*"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend", default="reference", help="who computes kernelized operations: loopback, numba, auto"
    )


def pytest_configure(config: pytest.Config) -> None:
    name = config.getoption("--backend")
    if name != "reference":
        from minitf.ops import kernels

        if name == "loopback":
            spec = spec_from_file_location("loopback", Path(__file__).with_name("loopback.py"))
            module = module_from_spec(spec)
            spec.loader.exec_module(module)
            kernels.register_backend("loopback", module.BACKEND)
        kernels.use(name)


def pytest_report_header(config: pytest.Config) -> list[str]:
    parity = "compared with torch" if HAS_TORCH else "not run, torch is not installed (make parity)"
    return [f"parity: {parity}", f"kernelized operations: {config.getoption('--backend')}"]
