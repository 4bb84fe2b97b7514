"""The graph behind a tensor: which operations made it, from which inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minitf.engine import GraphError, Tensor

from .picture import BLUE, GREEN, GREY, INK, Picture

# More than this cannot be read on one page.
LIMIT = 80


@dataclass(eq=False)
class Node:
    """A box of the picture: an operation, an input that wants a gradient, or a constant."""

    kind: str
    label: str
    parents: list[Node] = field(default_factory=list)
    # Rows from the top, and place in the row.
    layer: int = 0
    x: float = 0.0


def graph(tensor: Tensor, names: Mapping[str, Tensor] | None = None, *, save: str | Path | None = None) -> Picture:
    """Draw how a tensor was made: inputs at the top, the tensor at the bottom, shapes under the names.

    Args:
        tensor: the result, whose graph has not been freed by `backward`.
        names: what to call inputs, such as {"x": x, "w": w}.
        save: where to write the picture.

    Raises:
        GraphError: no graph, a graph that was freed, or one of more than 80 boxes.
    """
    if tensor.recipe is None:
        raise GraphError("viz.graph: this tensor was not made by recorded operations from one that requires a gradient")
    nodes = collect(tensor, {id(t): name for name, t in (names or {}).items()})
    place(nodes)
    depth = max(node.layer for node in nodes)
    width = max(node.x for node in nodes) - min(node.x for node in nodes)
    picture = Picture(max(4.0, 1.5 * width + 2.4), 0.95 * depth + 1.3)
    axes = picture.add_subplot()
    axes.set_axis_off()
    boxes = {}
    edge = {"operation": BLUE, "input": GREEN, "constant": GREY}
    for node in nodes:
        boxes[node] = axes.annotate(
            node.label, (node.x, -node.layer), ha="center", va="center", fontsize=9, color=INK, parse_math=False,
            bbox=dict(
                boxstyle="round,pad=0.35" if node.kind == "operation" else "square,pad=0.35",
                facecolor="white", edgecolor=edge[node.kind], linewidth=1.6,
                linestyle="--" if node.kind == "constant" else "-",
            ),
        )  # fmt: skip
    for node in nodes:
        for parent in node.parents:
            axes.annotate(
                "", (node.x, -node.layer), (parent.x, -parent.layer), zorder=1,
                arrowprops=dict(
                    arrowstyle="-|>", color=GREY, linewidth=1.1, shrinkA=0, shrinkB=0,
                    patchA=boxes[parent].get_bbox_patch(), patchB=boxes[node].get_bbox_patch(),
                ),
            )  # fmt: skip
    axes.set_xlim(min(n.x for n in nodes) - 0.8, max(n.x for n in nodes) + 0.8)
    axes.set_ylim(-depth - 0.5, 0.5)
    return picture.finish(save)


def collect(result: Tensor, names: Mapping[int, str]) -> list[Node]:
    """The nodes that `result` was made from, each after its parents, with their layers."""
    made: dict[int, Node] = {}
    nodes: list[Node] = []
    # A stack instead of recursion: graphs may be deeper than Python's limit.
    todo = [result]
    while todo:
        t = todo[-1]
        parents = [p for p in t.recipe[3] if p is not None] if t.recipe else []
        if t.recipe and t.recipe[0].name == "freed":
            raise GraphError("viz.graph: the graph was freed by backward(); draw it before, or keep it with retain_graph=True")
        waiting = [p for p in parents if id(p) not in made]
        if waiting:
            todo.extend(reversed(waiting))
            continue
        todo.pop()
        if id(t) in made:
            continue
        if len(nodes) > LIMIT:
            raise GraphError(f"viz.graph: more than {LIMIT} boxes cannot be read; draw a part, or a smaller example")
        made[id(t)] = node = Node("operation" if t.recipe else "input", described(t, names))
        if t.recipe:
            for value, parent in zip(t.recipe[1], t.recipe[3]):
                if parent is not None:
                    node.parents.append(made[id(parent)])
                elif isinstance(value, float | int | complex | np.ndarray) and not isinstance(value, bool):
                    node.parents.append(Node("constant", constant(value)))
                    nodes.append(node.parents[-1])
            node.layer = 1 + max((p.layer for p in node.parents), default=-1)
        nodes.append(node)
    # Inputs and constants stand just above the first that uses them, which keeps arrows short.
    for source in nodes:
        users = [n.layer for n in nodes if source in n.parents]
        if not source.parents and users:
            source.layer = min(users) - 1
    return nodes


def described(t: Tensor, names: Mapping[int, str]) -> str:
    name = names.get(id(t)) or (t.recipe[0].name if t.recipe else "input")
    if isinstance(t.data, tuple):
        return f"{name}\n{len(t.data)} outputs"
    return f"{name}\n{shape_text(t.shape)}"


def constant(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.size != 1:
        return f"constant\n{shape_text(value.shape)}"
    return f"{value.item() if isinstance(value, np.ndarray) else value:.4g}"


def shape_text(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) if shape else "scalar"


def place(nodes: list[Node]) -> None:
    """Choose x: rows are ordered by the mean place of neighbours, up and down a few times, then spread evenly."""
    rows: dict[int, list[Node]] = {}
    for node in nodes:
        rows.setdefault(node.layer, []).append(node)
    for row in rows.values():
        for i, node in enumerate(row):
            node.x = i - (len(row) - 1) / 2
    children: dict[Node, list[Node]] = {node: [] for node in nodes}
    for node in nodes:
        for parent in node.parents:
            children[parent].append(node)
    for sweep in range(8):
        for layer in sorted(rows, reverse=bool(sweep % 2)):
            row = rows[layer]
            wish = {}
            for node in row:
                near = children[node] if sweep % 2 else node.parents
                near = near or (node.parents if sweep % 2 else children[node])
                wish[node] = sum(n.x for n in near) / len(near) if near else node.x
            row.sort(key=lambda n: wish[n])
            spread(row, wish)


def spread(row: list[Node], wish: Mapping[Node, float]) -> None:
    """Put the nodes of a row at least 1 apart, in order, around where they wish to be."""
    for i, node in enumerate(row):
        node.x = wish[node] if i == 0 else max(wish[node], row[i - 1].x + 1.0)
    # Pushing to the right moved the row: move it back by the mean.
    shift = sum(wish[n] - n.x for n in row) / len(row)
    for node in row:
        node.x += shift
