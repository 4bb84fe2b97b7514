"""What machine this is, in words: for reports, benchmarks and the doctor."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    if sys.platform == "darwin":
        asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        if asked.stdout.strip():
            return asked.stdout.strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_line(libraries: Sequence[str] = ()) -> str:
    """The machine in one line, for reports, with the versions of those `libraries` that are imported."""
    blas = ", ".join(f"{pool['internal_api']} ({pool['num_threads']} threads)" for pool in thread_pools())
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}"
    found = [
        f"{n} {getattr(sys.modules[n], '__version__', '')}".strip() for n in libraries if n in sys.modules
    ]
    blas = blas or "no known BLAS"
    return ", ".join([cpu_name(), f"{usable_cores()} cores", versions, blas, *found])


def thread_pools() -> list[dict[str, Any]]:
    """The BLAS libraries in this process, with their threads."""
    from threadpoolctl import threadpool_info

    return [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
