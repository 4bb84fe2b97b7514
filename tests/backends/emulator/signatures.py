"""What the `.cu` files say about themselves: their kernels with the types of the parameters, and variants."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

KERNEL = re.compile(
    r'extern "C" __global__ void\s*(?:__launch_bounds__\([^)]*\)\s*)?(?P<name>\w+)\((?P<parameters>[^)]*)\)'
)
# Type in C -> NumPy's name.
SCALARS = {
    "int": "int32",
    "unsigned": "uint32",
    "u32": "uint32",
    "i64": "int64",
    "u64": "uint64",
    "long long": "int64",
    "float": "float32",
    "double": "float64",
    "bool": "bool",
    "unsigned char": "uint8",
    "float16": "float16",
    "u16": "uint16",
    "bfloat16": "bfloat16",
}


class Parameter(NamedTuple):
    """One parameter of a kernel: its name, the type of what it is or points to, and whether it points."""

    name: str
    kind: str
    pointer: bool
    constant: bool


def kernels(text: str) -> dict[str, list[Parameter]]:
    """The kernels in the text of a file, by name."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    return {
        found["name"]: [parameter(p) for p in found["parameters"].split(",") if p.strip()]
        for found in KERNEL.finditer(text)
    }


def parameter(text: str) -> Parameter:
    words = text.replace("__restrict__", " ").replace("*", " * ").split()
    name, rest = words[-1], words[:-1]
    kind = " ".join(w for w in rest if w not in ("const", "*"))
    return Parameter(name, kind, "*" in rest, "const" in rest)


def defined(options: tuple[str, ...]) -> dict[str, str]:
    """The names that `-D` options define."""
    pairs = (o[2:].partition("=") for o in options if o.startswith("-D"))
    return {name: value for name, _, value in pairs}


def wrong(parameters: list[Parameter], args: tuple[Any, ...], defines: dict[str, str], arrays: Any) -> str:
    """What is wrong with the arguments of a launch, or "". `arrays`: the type of arrays."""
    if len(parameters) != len(args):
        return f"{len(args)} arguments for {len(parameters)} parameters"
    for p, a in zip(parameters, args):
        kind = defines.get(p.kind, p.kind)
        want = SCALARS.get(kind)
        if p.pointer:
            if isinstance(a, np.uint64) and a == 0:
                continue
            if not isinstance(a, arrays):
                return f"{p.name} is a pointer, the argument {type(a).__name__}"
            if kind != "void" and str(a.dtype) != want:
                return f"{p.name} points to {kind}, the array has {a.dtype}"
        elif not isinstance(a, np.generic) or str(a.dtype) != want:
            return f"{p.name} is {kind}, the argument {type(a).__name__}"
    return ""


def variants(text: str) -> list[tuple[str, dict[str, str]]]:
    """How a file is compiled: (type of element, names), from its lines `// variant: float16 WIDTH=64`."""
    found = re.findall(r"^// variant: (\w+)(.*)$", text, flags=re.MULTILINE)
    return [(dtype, dict(word.split("=", 1) for word in rest.split())) for dtype, rest in found]


def architectures(text: str) -> list[str] | None:
    """For which chips a file is compiled, from its line `// chips: sm_80 sm_90`, or None: for all."""
    found = re.search(r"^// chips:(.*)$", text, flags=re.MULTILINE)
    return found[1].split() if found else None
