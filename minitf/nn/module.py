"""Modules: trees of named parameters, with the names and habits of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from minitf.engine import Array, MinitfError, Tensor, to_device


class StateError(MinitfError, ValueError):
    """A state dictionary that does not fit a module."""


class Parameter(Tensor):
    """A tensor that training changes. Its gradient is in `.grad` after a backward pass."""

    __slots__ = ()

    def __init__(self, data: Array):
        super().__init__(np.asarray(data) if isinstance(data, np.generic) else data, requires_grad=True)


class Buffer(Tensor):
    """A tensor that belongs to a module's state but is not trained."""

    __slots__ = ()


class Hook:
    """What `register_forward_hook` returns: call `remove()` to take the hook off again."""

    def __init__(self, hooks: list[Any], entry: Any):
        self._hooks, self._entry = hooks, entry

    def remove(self) -> None:
        """Take the hook off. Removing twice does nothing."""
        if self._entry in self._hooks:
            self._hooks.remove(self._entry)


class Module:
    """A function with parameters. Subclasses set parameters and modules as attributes and define `forward`.

    A list or dictionary of modules counts as an attribute too: `self.blocks = [Block(...), ...]` gives the
    names `blocks.0.norm1.weight` and so on.

    Attributes:
        training: whether layers such as dropout act; set by `train()` and `eval()`.
    """

    training: bool = True

    def forward(self, *args: Any, **options: Any) -> Any:
        """Compute the output. Call the module itself instead: that also runs its hooks."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def __call__(self, *args: Any, **options: Any) -> Any:
        hooks = self.__dict__.get("_hooks")
        if not hooks:
            return self.forward(*args, **options)
        for before, hook in list(hooks):
            if before:
                changed = hook(self, args)
                args = args if changed is None else changed
        y = self.forward(*args, **options)
        for before, hook in list(hooks):
            if not before:
                changed = hook(self, args, y)
                y = y if changed is None else changed
        return y

    def register_forward_pre_hook(self, hook: Callable[..., Any]) -> Hook:
        """Call hook(module, args) before each forward. A tuple that it returns replaces the arguments."""
        return self._add_hook(True, hook)

    def register_forward_hook(self, hook: Callable[..., Any]) -> Hook:
        """Call hook(module, args, output) after each forward. What it returns replaces the output."""
        return self._add_hook(False, hook)

    def _add_hook(self, before: bool, hook: Callable[..., Any]) -> Hook:
        hooks = self.__dict__.setdefault("_hooks", [])
        hooks.append((before, hook))
        return Hook(hooks, hooks[-1])

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Pairs of name and module, one level down, in the order they were set."""
        for name, value in self.__dict__.items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, (list, tuple)):
                yield from ((f"{name}.{i}", m) for i, m in enumerate(value) if isinstance(m, Module))
            elif isinstance(value, dict) and name != "_hooks":
                yield from ((f"{name}.{key}", m) for key, m in value.items() if isinstance(m, Module))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Pairs of dotted name and module: this one first (named `prefix`), then all below it."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Module]:
        """This module and all below it."""
        return (module for _, module in self.named_modules())

    def _named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for prefix, module in self.named_modules():
            for name, value in module.__dict__.items():
                if isinstance(value, (Parameter, Buffer)):
                    yield (f"{prefix}.{name}" if prefix else name), value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Pairs of dotted name and parameter. A parameter used in several places comes once."""
        seen: set[int] = set()
        for name, value in self._named_tensors():
            if isinstance(value, Parameter) and id(value) not in seen:
                seen.add(id(value))
                yield name, value

    def parameters(self) -> list[Parameter]:
        """All parameters, each once."""
        return [p for _, p in self.named_parameters()]

    def count_parameters(self) -> int:
        """The number of trained numbers."""
        return sum(p.size for p in self.parameters())

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self.parameters():
            p.grad = None

    def train(self, mode: bool = True) -> Self:
        """Set training mode here and below: dropout and the like act."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Leave training mode here and below."""
        return self.train(False)

    def to(self, target: Any) -> Self:
        """Move all parameters to a device ("cpu", "cuda") or to a dtype ("float32", ...), in place."""
        for _, t in self._named_tensors():
            if target in ("cpu", "cuda"):
                t.data = to_device(t.data, target)
            elif t.data.dtype.kind == "f":
                t.data = t.data.astype(np.dtype(target))
            t.grad = None
        return self

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """Copies of all parameters and buffers as NumPy arrays, by dotted name."""
        return {name: np.array(t.numpy()) for name, t in self._named_tensors()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> tuple[list[str], list[str]]:
        """Copy values in by name, converted to each parameter's dtype and device.

        Args:
            state: arrays or tensors by dotted name.
            strict: refuse missing and unexpected names.

        Returns:
            (missing names, unexpected names).

        Raises:
            StateError: names that do not fit (if strict), or a wrong shape. Nothing has been changed then.
        """
        own = dict(self._named_tensors())
        arrays = {name: np.asarray(v.numpy() if isinstance(v, Tensor) else v) for name, v in state.items()}
        missing = [name for name in own if name not in arrays]
        unexpected = [name for name in arrays if name not in own]
        problems = []
        if strict and missing:
            problems.append(f"missing: {_some(missing)}")
        if strict and unexpected:
            problems.append(f"unexpected: {_some(unexpected)}")
        for name in own.keys() & arrays.keys():
            if own[name].shape != arrays[name].shape:
                problems.append(f"{name} has shape {arrays[name].shape}, the module needs {own[name].shape}")
        if problems:
            raise StateError(f"cannot load into {type(self).__name__}: {'; '.join(sorted(problems))}")
        for name, t in own.items():
            if name in arrays:
                # In the same memory layout: a matrix product may round differently in another.
                data = np.empty_like(t.numpy())
                data[...] = arrays[name]
                t.data = to_device(data, t.device)
        return missing, unexpected

    def __repr__(self) -> str:
        children = dict(self.named_children())
        if not children:
            shapes = [
                f"{n}: {v.shape}" for n, v in self.__dict__.items() if isinstance(v, (Parameter, Buffer))
            ]
            return f"{type(self).__name__}({', '.join(shapes)})"
        inner = "\n".join(f"({name}): {child!r}" for name, child in children.items())
        return f"{type(self).__name__}(\n  " + inner.replace("\n", "\n  ") + "\n)"


def _some(names: Iterable[str], most: int = 6) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
