"""Every `.cu` file compiles for every chip that it is for, in each of its variants. No card is needed."""

from __future__ import annotations

import pytest
from minitf_cupy import module

from .cuda import nvrtc
from .emulator.signatures import architectures, kernels, variants

CHIPS = ("sm_75", "sm_80", "sm_90")
FILES = sorted(path.name for path in module.FOLDER.glob("*.cu"))


def every_variant():
    for file in FILES:
        text = module.source(file)
        for dtype, defines in variants(text):
            for chip in architectures(text) or CHIPS:
                words = "-".join([file, dtype, *(f"{k}={v}" for k, v in defines.items()), chip])
                yield pytest.param(file, dtype, defines, chip, id=words)


def problem(compiler: str, code: str, options: tuple[str, ...]) -> str:
    """What is wrong, or ""."""
    made, log = nvrtc.compilers()[compiler](code, options)
    if not made:
        return f"{compiler} says:\n{log[:4000]}"
    for name in kernels(code):
        # The name of each kernel stands in the machine code's table.
        if name.encode() not in made:
            return f"{name} is not in the machine code of {compiler}"
    return ""


@pytest.mark.parametrize(("file", "dtype", "defines", "chip"), list(every_variant()))
def test_compiles(file, dtype, defines, chip):
    found = nvrtc.compilers()
    if not found:
        pytest.skip("not run: neither NVRTC (pip install nvidia-cuda-nvrtc) nor nvcc")
    options = (*module.options(dtype, defines), f"-arch={chip}")
    # NVRTC is what compiles on a card's machine.
    why = problem("nvrtc" if "nvrtc" in found else "nvcc", module.source(file), options)
    assert not why, f"{file} {dtype} {defines} {chip}: {why}"


@pytest.mark.parametrize("file", FILES)
def test_nvcc_agrees(file):
    if "nvcc" not in nvrtc.compilers():
        pytest.skip("not run: no nvcc")
    text = module.source(file)
    dtype, defines = variants(text)[0]
    chip = (architectures(text) or CHIPS)[-1]
    why = problem("nvcc", text, (*module.options(dtype, defines), f"-arch={chip}"))
    assert not why, f"{file} {dtype} {defines} {chip}: {why}"


@pytest.mark.parametrize("file", FILES)
def test_says_what_it_is(file):
    """A file begins with a comment, names its variants and has kernels."""
    text = module.source(file)
    assert text.startswith("// "), f"{file} begins with a comment that explains it"
    assert kernels(text), f"{file} has no kernel that can be found by its signature"
    assert variants(text), f"{file} has no line `// variant: float32`"


def test_a_mistake_is_reported():
    if not nvrtc.compilers():
        pytest.skip("not run: neither NVRTC nor nvcc")
    for name in nvrtc.compilers():
        assert "undefined" in problem(name, "__global__ void f() { g(); }", ("-arch=sm_80",))
