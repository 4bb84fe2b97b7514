"""Optimisers: AdamW and SGD, step for step the algorithms of `torch.optim`.

Both change the parameters' arrays in place, between one backward pass and the next forward pass. Parameters
without a gradient are left alone, and so is what is remembered about them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from minitf.engine import Array, DTypeError, Tensor, array_module, to_device
from minitf.nn import StateError
from minitf.ops.kernels import active, engaged

Params = Iterable[Tensor] | Iterable[Mapping[str, Any]]


class Optimizer:
    """What AdamW and SGD share: groups of parameters, scratch memory, and state that can be saved.

    Attributes:
        groups: dictionaries with the key "params" and one key for each option. Options may be changed.
        state: what is remembered about each parameter: {"step": int, name: array of its shape, ...}.
    """

    # Names of the arrays that are remembered for each parameter.
    slots: tuple[str, ...] = ()

    def __init__(self, params: Params, defaults: dict[str, Any]):
        given = list(params)
        if not given:
            raise ValueError(
                "an optimiser needs at least one parameter; was model.parameters() already used up?"
            )
        grouped: Any = given if isinstance(given[0], Mapping) else [{"params": given}]
        self.groups: list[dict[str, Any]] = []
        self.state: dict[Tensor, dict[str, Any]] = {}
        self._scratch: dict[Any, Array] = {}
        seen: set[Tensor] = set()
        for group in grouped:
            unknown = group.keys() - defaults.keys() - {"params"}
            if unknown or "params" not in group:
                raise ValueError(
                    f"a parameter group needs the key 'params' and may have {', '.join(defaults)}; "
                    f"this one has {', '.join(map(str, group))}"
                )
            group = {**defaults, **group, "params": list(group["params"])}
            self.check_options(group)
            for p in group["params"]:
                _check_parameter(p)
                if p in seen:
                    raise ValueError(
                        f"a parameter of shape {p.shape} is given twice: it would be updated twice a step"
                    )
                seen.add(p)
            self.groups.append(group)
        if not seen:
            raise ValueError("every parameter group is empty: there is nothing to optimise")

    @staticmethod
    def check_options(group: dict[str, Any]) -> None:
        """Raise ValueError where an option of a group is out of range."""
        for name in ("lr", "eps", "weight_decay", "momentum"):
            # `not >=` also refuses NaN.
            if name in group and not group[name] >= 0.0:
                raise ValueError(f"{name} must be at least 0, not {group[name]}")

    @property
    def lr(self) -> float:
        """The learning rate of the first group. Setting it sets that of all groups."""
        return self.groups[0]["lr"]

    @lr.setter
    def lr(self, value: float) -> None:
        self.check_options({**self.groups[0], "lr": value})
        for group in self.groups:
            group["lr"] = value

    def parameters(self) -> list[Tensor]:
        """All parameters, in the order of the groups."""
        return [p for group in self.groups for p in group["params"]]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self.parameters():
            p.grad = None

    def step(self) -> None:
        """Move every parameter that has a gradient.

        A backend in use (`mt.use`) that has this update in one pass takes the arrays it can.
        """
        name = type(self).__name__
        fused = [module.update(name) for module in engaged(active()) if hasattr(module, "update")]
        for group in self.groups:
            left = [(p.data, p.grad.data, self._remembered(p)) for p in group["params"] if p.grad is not None]
            for update in fused:
                left = left if update is None else update(left, group)
            for p, g, state in left:
                self.update(p, g, state, **group)

    def update(self, p: Array, g: Array, state: dict[str, Any], **options: Any) -> None:
        """Change `p` in place with the gradient `g`, both of one shape; update `state`."""
        raise TypeError(f"{type(self).__name__} does not define update")

    def _remembered(self, p: Tensor) -> dict[str, Any]:
        """The state of `p`, counted one step further; made of zeros at the first step."""
        state = self.state.get(p)
        if state is None:
            zeros = array_module(p.data).zeros
            state = self.state[p] = {"step": 0, **{name: zeros(p.shape, p.dtype) for name in self.slots}}
        data = p.data
        for name in self.slots:
            kept = state[name]
            # The parameter has moved or was converted since the last step: what is remembered follows.
            if kept.dtype is not data.dtype or type(kept) is not type(data):
                state[name] = to_device(kept.astype(p.dtype), p.device)
        state["step"] += 1
        return state

    def scratch(self, p: Array) -> Array:
        """Memory of the shape and type of `p`, for use within one update. Its contents are arbitrary."""
        xp = array_module(p)
        key = (xp.__name__, p.dtype)
        if key not in self._scratch or self._scratch[key].size < p.size:
            self._scratch[key] = xp.empty(p.size, dtype=p.dtype)
        return self._scratch[key][: p.size].reshape(p.shape)

    def state_dict(self) -> dict[str, Any]:
        """Return copies of all that `load_state_dict` needs.

        Returns:
            {"groups": [{option: number, ...}, ...],
             "state": {i: {"step": int, name: NumPy array, ...}, ...}}
            where i counts the parameters in the order of the groups. Those never updated are absent.
        """
        state = {}
        for i, p in enumerate(self.parameters()):
            if p in self.state:
                state[i] = {
                    k: np.array(to_device(v, "cpu")) if k in self.slots else v
                    for k, v in self.state[p].items()
                }
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.groups]
        return {"groups": groups, "state": state}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over what `state_dict` of an optimiser of the same parameters gave.

        Raises:
            StateError: another number of groups or parameters, other options, or a wrong shape. Nothing has
                been changed then.
        """
        params = self.parameters()
        name = type(self).__name__
        if len(saved["groups"]) != len(self.groups):
            raise StateError(
                f"{name} has {len(self.groups)} parameter groups, the state {len(saved['groups'])}"
            )
        options = [dict(group) for group in saved["groups"]]
        for mine, other in zip(self.groups, options, strict=True):
            if mine.keys() - {"params"} != other.keys():
                raise StateError(
                    f"{name} has options {', '.join(mine)}, the state {', '.join(other)}: another optimiser"
                )
            self.check_options(other)
        new: dict[Tensor, dict[str, Any]] = {}
        for i, entry in saved["state"].items():
            if not 0 <= int(i) < len(params):
                raise StateError(
                    f"the state has an entry for parameter {i}, {name} has {len(params)} parameters"
                )
            p = params[int(i)]
            if entry.keys() != {"step", *self.slots}:
                raise StateError(
                    f"{name} remembers step, {', '.join(self.slots)}; the state has {', '.join(entry)}"
                )
            for slot in self.slots:
                if entry[slot].shape != p.shape:
                    raise StateError(
                        f"{slot} of parameter {i} has shape {entry[slot].shape}, the parameter {p.shape}"
                    )
            arrays = {slot: to_device(np.array(entry[slot], dtype=p.dtype), p.device) for slot in self.slots}
            new[p] = {"step": int(entry["step"]), **arrays}
        self.state = new
        for mine, other in zip(self.groups, options, strict=True):
            mine.update(other)


def _check_parameter(p: Any) -> None:
    if not isinstance(p, Tensor):
        raise TypeError(
            f"an optimiser takes parameters, not {type(p).__name__}; pass model.parameters(), or wrap the "
            "array: mt.nn.Parameter(a)"
        )
    if not p.requires_grad or p.recipe is not None:
        reason = "does not require a gradient" if p.recipe is None else f"is the result of {p.recipe[0].name}"
        raise TypeError(
            f"an optimiser takes parameters, but this tensor of shape {p.shape} {reason}; "
            "pass model.parameters(), or wrap the array: mt.nn.Parameter(a)"
        )
    if p.dtype.kind == "c":
        raise DTypeError(
            "an optimiser takes real parameters: keep the real and the imaginary part as two parameters"
        )


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101, 2017, algorithm 2).

        p <- p (1 - lr wd)
        m <- m + (1 - b1) (g - m)                  v <- b2 v + (1 - b2) g^2
        p <- p - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)

    t counts the updates of this parameter, from 1. As in torch.optim.AdamW, the decay is multiplied by lr.

    Args:
        params: parameters, or groups: dictionaries with "params" and any of the options below.
        lr: learning rate.
        betas: (b1, b2), each in [0, 1).
        eps: added to the denominator.
        weight_decay: wd.

    Raises:
        ValueError: no parameters, one given twice, or an option out of range.
        TypeError: something that is no parameter.
    """

    slots = ("m", "v")

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @staticmethod
    def check_options(group: dict[str, Any]) -> None:
        Optimizer.check_options(group)
        group["betas"] = tuple(group["betas"])
        if len(group["betas"]) != 2 or not all(0.0 <= b < 1.0 for b in group["betas"]):
            raise ValueError(f"betas must be two numbers in [0, 1), not {group['betas']}")

    def update(self, p: Array, g: Array, state: dict[str, Any], **options: Any) -> None:
        """See the class."""
        xp = array_module(p)
        m, v, t = state["m"], state["v"], state["step"]
        (b1, b2), lr = options["betas"], options["lr"]
        s = self.scratch(p)
        if options["weight_decay"]:
            xp.multiply(p, 1.0 - lr * options["weight_decay"], out=p)
        # m += (1 - b1) (g - m)
        xp.subtract(g, m, out=s)
        xp.multiply(s, 1.0 - b1, out=s)
        xp.add(m, s, out=m)
        # v = b2 v + (1 - b2) g^2
        xp.multiply(v, b2, out=v)
        xp.multiply(g, g, out=s)
        xp.multiply(s, 1.0 - b2, out=s)
        xp.add(v, s, out=v)
        # p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
        xp.sqrt(v, out=s)
        xp.multiply(s, 1.0 / math.sqrt(1.0 - b2**t), out=s)
        xp.add(s, options["eps"], out=s)
        xp.divide(m, s, out=s)
        xp.multiply(s, lr / (1.0 - b1**t), out=s)
        xp.subtract(p, s, out=p)


class SGD(Optimizer):
    """Stochastic gradient descent with momentum (Sutskever et al., 2013, in the form of torch.optim.SGD).

        g <- g + wd p
        u <- momentum u + g            (u starts at zero)
        p <- p - lr u                  or, with nesterov, p <- p - lr (g + momentum u)

    Without momentum, p <- p - lr g. Here the weight decay is part of the gradient, as in torch.

    Args:
        params: parameters, or groups: dictionaries with "params" and any of the options below.
        lr: learning rate.
        momentum: at least 0.
        nesterov: look one step of momentum ahead; needs momentum > 0.
        weight_decay: wd.

    Raises:
        ValueError: no parameters, one given twice, or an option out of range.
        TypeError: something that is no parameter.
    """

    slots = ("u",)

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ):
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        )

    @staticmethod
    def check_options(group: dict[str, Any]) -> None:
        Optimizer.check_options(group)
        if group["nesterov"] and not group["momentum"] > 0.0:
            raise ValueError("nesterov needs momentum > 0")

    def update(self, p: Array, g: Array, state: dict[str, Any], **options: Any) -> None:
        """See the class."""
        xp = array_module(p)
        u, momentum, decay = state["u"], options["momentum"], options["weight_decay"]
        s = self.scratch(p)
        # s = g + wd p
        if decay:
            xp.multiply(p, decay, out=s)
            xp.add(s, g, out=s)
        else:
            s[...] = g
        if momentum:
            xp.multiply(u, momentum, out=u)
            xp.add(u, s, out=u)
            if options["nesterov"]:
                # One scratch array is in use, so the two parts of the step are taken one after the other.
                xp.multiply(s, options["lr"], out=s)
                xp.subtract(p, s, out=p)
                xp.multiply(u, options["lr"] * momentum, out=s)
            else:
                xp.multiply(u, options["lr"], out=s)
        else:
            xp.multiply(s, options["lr"], out=s)
        xp.subtract(p, s, out=p)
