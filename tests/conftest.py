"""Settings for every test: one hypothesis profile, the same examples on every run."""

from importlib.util import find_spec

from hypothesis import settings

settings.register_profile("minitf", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("minitf")

HAS_TORCH = find_spec("torch") is not None
# Comparisons with other libraries need those libraries.
collect_ignore_glob = [] if HAS_TORCH else ["parity/*"]


def pytest_report_header() -> str:
    return (
        "parity: compared with torch"
        if HAS_TORCH
        else "parity: not run, torch is not installed (make parity)"
    )
