"""`minitf info`: versions, threads, backends, and what is installed."""

from __future__ import annotations

import os
import platform
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click
import numpy as np

import minitf
from minitf import registry
from minitf.machine import cpu_name, thread_pools, usable_cores
from minitf.ops import kernels

from .output import heading, print_json, print_table, say

LIBRARIES = ("numba", "cupy", "safetensors", "matplotlib", "hypothesis", "click", "rich", "threadpoolctl")


@click.command("info")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def command(as_json: bool) -> None:
    """Show versions, the machine, threads, backends and the size of the catalogue.

    \b
    Examples:
      minitf info
      minitf info --json
    """
    about: dict[str, Any] = {
        "minitf": minitf.__version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "cores_usable": usable_cores(),
        "numpy": np.__version__,
        "blas": [describe_pool(pool) for pool in thread_pools()],
        "libraries": {name: installed(name) for name in LIBRARIES},
        "gpus": gpus(),
        "mode": minitf.active(),
        "backends": backends(),
        "kernelized_operations": sorted(kernels.DEFINITIONS),
        "variants": dict(sorted(Counter(card["kind"] for card in registry.index().values()).items())),
    }
    if as_json:
        print_json(about)
        return
    say(f"minitf {about['minitf']}", bold=True)
    say(f"  Python {about['python']} at {about['executable']}")
    say(f"  {about['cpu']}, {about['cores']} cores, {about['cores_usable']} usable; {about['platform']}")
    for pool in about["blas"]:
        say(f"  NumPy {about['numpy']} with {pool['name']} {pool['version']}, {pool['threads']} threads")
    for gpu in about["gpus"]:
        say(f"  GPU: {gpu['name']}, {gpu['memory_gib']} GiB")
    if not about["gpus"]:
        say(f"  GPU: none{'' if about['libraries']['cupy'] else ' (CuPy is not installed)'}")
    heading("Libraries")
    libraries = about["libraries"].items()
    print_table(("name", "version"), [(name, found or "not installed") for name, found in libraries])
    heading(f"Backends (mode {about['mode']!r} in Python; the commands use 'auto')")
    table = [
        (b["name"], b["problem"] or "ready", ", ".join(b["operations"]) or "-") for b in about["backends"]
    ]
    if table:
        print_table(("backend", "state", "kernels for"), table)
    else:
        say("none is registered: minitf is not installed (`minitf doctor` says how)")
    say(f"Operations that a backend may take over: {', '.join(about['kernelized_operations'])}")
    heading(f"Catalogue: {sum(about['variants'].values())} variants")
    print_table(("kind", "variants"), [(kind, str(count)) for kind, count in about["variants"].items()])


def describe_pool(pool: dict[str, Any]) -> dict[str, Any]:
    return {"name": pool["internal_api"], "version": pool["version"], "threads": pool["num_threads"]}


def installed(name: str) -> str | None:
    """The version of a library, or None. CuPy is published under a name for each CUDA version."""
    for distribution in (name, f"{name}-cuda12x", f"{name}-cuda13x") if name == "cupy" else (name,):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def gpus() -> list[dict[str, Any]]:
    """The NVIDIA GPUs that CuPy can use; none where CuPy is missing or finds none."""
    try:
        import cupy  # type: ignore[import-not-found, unused-ignore]

        runtime = cupy.cuda.runtime
        found = [runtime.getDeviceProperties(i) for i in range(runtime.getDeviceCount())]
    except Exception:
        # CuPy has many kinds of errors for a missing driver or library; `minitf doctor` looks into them.
        return []
    return [{"name": p["name"].decode(), "memory_gib": round(p["totalGlobalMem"] / 2**30, 1)} for p in found]


def backends() -> list[dict[str, Any]]:
    """Every backend: name, why it cannot run (None: it can), and the operations that it has kernels for."""
    found = [
        {"name": name, "problem": module.unavailable(), "operations": sorted(module.KERNELS)}
        for name, module in sorted(kernels.backends().items())
    ]
    failed = [
        {"name": name, "problem": f"failed to import: {why}", "operations": []}
        for name, why in sorted(kernels.failures().items())
    ]
    return found + failed
