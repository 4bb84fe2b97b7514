"""The graph behind a tensor: which operations made it, from which inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from minitf.engine import GraphError, Tensor

from .picture import BLUE, GREEN, GREY, INK, Picture

# More than this cannot be read on one page.
LIMIT = 80
EDGE_COLOUR = {"operation": BLUE, "input": GREEN, "constant": GREY}


@dataclass(eq=False)
class Node:
    """A box of the picture (an operation, an input with a gradient, a constant), or a bend of an arrow."""

    kind: str
    label: str = ""
    parents: list[Node] = field(default_factory=list)
    # Rows from the top, and place in the row.
    layer: int = 0
    x: float = 0.0

    @property
    def width(self) -> float:
        """The room it needs in its row; a box with a label of 14 letters needs 1."""
        return 0.35 if self.kind == "bend" else max(1.0, max(map(len, self.label.split("\n"))) / 14)


def graph(
    tensor: Tensor, names: Mapping[str, Tensor] | None = None, *, save: str | Path | None = None
) -> Picture:
    """Draw how a tensor was made: inputs at the top, the tensor at the bottom, shapes under the names.

    Operations are blue and round, inputs that want a gradient green, constants grey and dashed.

    Args:
        tensor: the result, whose graph has not been freed by `backward`.
        names: what to call inputs, such as {"x": x, "w": w}.
        save: where to write the picture.

    Raises:
        GraphError: no graph, a graph that was freed, or one of more than 80 boxes.
    """
    if tensor.recipe is None:
        raise GraphError(
            "viz.graph: nothing was recorded here: make an input with mt.tensor(a, requires_grad=True)"
        )
    known = {id(part): name for name, t in (names or {}).items() for part in (t, t.data)}
    nodes = collect(tensor, known)
    chains = route(nodes)
    everything = nodes + [bend for chain in chains for bend in chain[1:-1]]
    place(everything)
    left = min(n.x - n.width / 2 for n in everything)
    right = max(n.x + n.width / 2 for n in everything)
    depth = max(n.layer for n in nodes)
    picture = Picture(max(3.0, 1.35 * (right - left)), 0.85 * (depth + 1))
    axes = picture.add_subplot()
    axes.set_axis_off()
    axes.set_xlim(left, right)
    axes.set_ylim(-depth - 0.5, 0.5)
    boxes = {}
    for node in nodes:
        boxes[node] = axes.annotate(
            node.label, (node.x, -node.layer), ha="center", va="center", fontsize=9, color=INK,
            parse_math=False,
            bbox=dict(
                boxstyle="round,pad=0.35" if node.kind == "operation" else "square,pad=0.35",
                facecolor="white", edgecolor=EDGE_COLOUR[node.kind], linewidth=1.6,
                linestyle="--" if node.kind == "constant" else "-",
            ),
        )  # fmt: skip
    for chain in chains:
        # Two arrows between the same boxes, as in x * x, bend apart.
        twins = [id(c) for c in chains if c == chain]
        curve = 0.25 * (twins.index(id(chain)) - (len(twins) - 1) / 2)
        for start, end in pairwise(chain):
            axes.annotate(
                "", (end.x, -end.layer), (start.x, -start.layer), zorder=1,
                arrowprops=dict(
                    arrowstyle="-" if end.kind == "bend" else "-|>", color=GREY, linewidth=1.1,
                    shrinkA=0, shrinkB=0,
                    patchA=None if start.kind == "bend" else boxes[start].get_bbox_patch(),
                    patchB=None if end.kind == "bend" else boxes[end].get_bbox_patch(),
                    connectionstyle=f"arc3,rad={curve}",
                ),
            )  # fmt: skip
    return picture.finish(save)


def collect(result: Tensor, names: Mapping[int, str]) -> list[Node]:
    """The boxes that `result` was made from, each after its parents, with their layers."""
    made: dict[int, Node] = {}
    nodes: list[Node] = []
    # A stack instead of recursion: graphs may be deeper than Python's limit.
    todo = [result]
    while todo:
        t = todo[-1]
        op, values, _, parents, *_ = t.recipe or (None, (), {}, ())
        if op is not None and op.name == "freed":
            raise GraphError(
                "viz.graph: backward() has freed the graph; draw it before, or keep it with retain_graph=True"
            )
        waiting = [p for p in parents if p is not None and id(p) not in made]
        if waiting:
            todo.extend(reversed(waiting))
            continue
        todo.pop()
        if id(t) in made:
            continue
        node = Node("operation" if op else "input", names.get(id(t)) or (op.name if op else "input"))
        node.label += f"\n{shape_text(t.data)}"
        for value, parent in zip(values, parents):
            if parent is not None:
                node.parents.append(made[id(parent)])
            elif isinstance(value, float | int | np.ndarray) and not isinstance(value, bool):
                # An array that is used twice is one box; a number is written where it is used.
                key = id(value) if isinstance(value, np.ndarray) else id(node)
                if key not in made:
                    made[key] = Node("constant", constant_text(value, names))
                    nodes.append(made[key])
                node.parents.append(made[key])
        node.layer = 1 + max((p.layer for p in node.parents), default=-1)
        made[id(t)] = node
        nodes.append(node)
        if len(nodes) > LIMIT:
            raise GraphError(f"viz.graph: more than {LIMIT} boxes cannot be read; draw a smaller example")
    # Inputs and constants stand just above the first that uses them, which keeps arrows short.
    for source in nodes:
        users = [n.layer for n in nodes if source in n.parents]
        if not source.parents and users:
            source.layer = min(users) - 1
    return nodes


def constant_text(value: Any, names: Mapping[int, str]) -> str:
    if isinstance(value, np.ndarray) and (value.size != 1 or id(value) in names):
        return f"{names.get(id(value), 'constant')}\n{shape_text(value)}"
    return f"{value.item() if isinstance(value, np.ndarray) else value:.4g}"


def shape_text(data: Any) -> str:
    if isinstance(data, tuple):
        return f"{len(data)} outputs"
    return "×".join(map(str, data.shape)) or "scalar"


def route(nodes: list[Node]) -> list[list[Node]]:
    """Every arrow as a chain from parent to child, with a bend in each row that it crosses."""
    chains = []
    for child in nodes:
        for parent in child.parents:
            bends = [Node("bend", layer=layer) for layer in range(parent.layer + 1, child.layer)]
            chain = [parent, *bends, child]
            for above, below in pairwise(chain[:-1]):
                below.parents = [above]
            chains.append(chain)
    # From here on parents stand in the row above.
    for node in nodes:
        node.parents = [chain[-2] for chain in chains if chain[-1] is node]
    return chains


def place(nodes: list[Node]) -> None:
    """Choose x: order each row by the mean place of its neighbours, down and up a few times."""
    rows: dict[int, list[Node]] = {}
    children: dict[Node, list[Node]] = {node: [] for node in nodes}
    for node in nodes:
        rows.setdefault(node.layer, []).append(node)
        for parent in node.parents:
            children[parent].append(node)
    for row in rows.values():
        spread(row, {node: float(i) for i, node in enumerate(row)})
    for sweep in range(12):
        down = sweep % 2 == 0
        for layer in sorted(rows, reverse=not down):
            wish = {}
            for node in rows[layer]:
                first, second = (node.parents, children[node]) if down else (children[node], node.parents)
                near = first or second
                wish[node] = sum(n.x for n in near) / len(near) if near else node.x
            rows[layer].sort(key=wish.__getitem__)
            spread(rows[layer], wish)


def spread(row: list[Node], wish: Mapping[Node, float]) -> None:
    """Put the nodes of a row side by side, in order, around where they wish to be."""
    for i, node in enumerate(row):
        before = row[i - 1]
        node.x = wish[node] if i == 0 else max(wish[node], before.x + (before.width + node.width) / 2)
    # Pushing to the right moved the row: move it back by the mean.
    shift = sum(wish[n] - n.x for n in row) / len(row)
    for node in row:
        node.x += shift
