"""How training is shown: live on a terminal, as plain lines into a pipe, as JSON for machines."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import Any

from .output import on_terminal, print_json, say

Event = dict[str, Any]


@contextmanager
def watching(as_json: bool) -> Iterator[Any]:
    """Give the function that `fit` should call with its events, for as long as the run takes."""
    if as_json:
        yield lambda event: print_json(event, indent=None)
        return
    from rich.console import Console

    console = Console(highlight=False)
    if not on_terminal() or console.is_dumb_terminal:
        yield Lines()
        return
    from rich.live import Live

    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield Screen(live)


class Numbers:
    """The latest numbers of a run; speed and training loss are means over the last twenty steps."""

    def __init__(self) -> None:
        self.latest: Event = {}
        self.speeds: deque[float] = deque(maxlen=20)
        self.losses: deque[float] = deque(maxlen=20)
        self.validation = "-"

    def take(self, event: Event) -> None:
        self.latest = {**self.latest, **event}
        if event["event"] == "step":
            self.speeds.append(event["tokens_per_s"])
            self.losses.append(event["loss"])
        if event["event"] == "eval":
            accuracy = event.get("val_accuracy")
            self.validation = self.words(event["val_loss"])
            self.validation += "" if accuracy is None else f", accuracy {accuracy:.3f}"

    def words(self, loss: float | None) -> str:
        """A loss in words: in nats and bits, or a plain number where bits mean nothing."""
        if loss is not None and self.latest.get("bits", loss) is None:
            return f"{loss:.4f}"
        return both(loss)

    def loss(self) -> str:
        """The training loss in words."""
        return self.words(fmean(self.losses) if self.losses else None)

    def line(self) -> str:
        """Speed and losses in words."""
        speed = f"{fmean(self.speeds):,.0f}" if self.speeds else "-"
        unit = self.latest.get("unit", "tokens")
        return f"{speed} {unit}/s  loss {self.loss()}  validation {self.validation}"


class Lines:
    """A line at the start, after each validation, and otherwise every twentieth of the run or ten seconds."""

    def __init__(self) -> None:
        self.numbers, self.written = Numbers(), time.monotonic()

    def __call__(self, event: Event) -> None:
        self.numbers.take(event)
        if event["event"] == "start":
            say(opening(event))
        due = event["step"] % max(1, event["steps"] // 20) == 0 or time.monotonic() - self.written > 10
        # A step with a validation is followed by the event of that validation.
        if event["event"] == "eval" or (event["event"] == "step" and due and event["val_loss"] is None):
            left = clock(self.numbers.latest["seconds_left"])
            say(f"step {event['step']}/{event['steps']}   {self.numbers.line()}   {left} left")
            self.written = time.monotonic()


class Screen:
    """A progress bar with the numbers under it; each validation leaves a line above."""

    def __init__(self, live: Any):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.live, self.numbers = live, Numbers()
        self.bar = Progress(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]} left"),
            expand=True,
        )
        self.task = self.bar.add_task("training", total=None, left="")

    def __call__(self, event: Event) -> None:
        from rich.console import Group
        from rich.text import Text

        self.numbers.take(event)
        if event["event"] == "start":
            self.live.console.print(opening(event))
        if event["event"] == "eval":
            step = f"step {event['step']:>{len(str(event['steps']))}}"
            self.live.console.print(
                f"{step}   loss {self.numbers.loss()}   validation {self.numbers.validation}"
            )
        left = clock(self.numbers.latest.get("seconds_left"))
        self.bar.update(self.task, completed=event["step"], total=event["steps"], left=left)
        self.live.update(Group(self.bar, Text(self.numbers.line(), style="cyan")))


def both(nats: float | None) -> str:
    """A loss in nats and bits."""
    return "-" if nats is None else f"{nats:.3f} nats, {nats / math.log(2):.3f} bits"


def clock(seconds: float | None) -> str:
    """A duration as 1:02:03 or 2:03."""
    if seconds is None or not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def opening(event: Event) -> str:
    where = f"going on from step {event['step']}" if event["resumed"] else "starting"
    size = f"{event['parameters']:,} parameters"
    return f"{size}, {where}, {event['steps']:,} steps in all. Ctrl-C saves and stops."
