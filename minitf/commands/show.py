"""`minitf show NAME`: everything about one variant."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from typing import Any

import click

from minitf import catalogue

from .output import heading, on_terminal, print_json, say


@click.command("show")
@click.argument("name")
@click.option("--no-source", is_flag=True, help="Leave the source code out.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def command(name: str, no_source: bool, as_json: bool) -> None:
    """Show the variant NAME: card, equation, options, identities and source code.

    NAME is a name or an alias of the catalogue.

    \b
    Examples:
      minitf show softmax_attention
      minitf show swiglu --no-source
      minitf show rope --json
    """
    entry = catalogue.get(name)
    card, variant = entry.card, entry.load()
    source = "" if no_source else entry.source()
    about = {
        **asdict(card),
        "module": entry.module,
        "class": entry.class_name,
        "equation": entry.doc(),
        "identities": [{"words": i.words, "tolerance": i.tolerance} for i in entry.identities()],
        "options": options(variant),
        **({} if no_source else {"source": source}),
    }
    if as_json:
        print_json(about)
        return
    say(card.title, bold=True)
    aliases = [f"{alias} ({words(implied)})" if implied else alias for alias, implied in card.aliases.items()]
    facts = {
        "name": card.name,
        "also called": ", ".join(aliases),
        "kind": f"{card.kind}, family {card.family}",
        "causal": "yes" if card.causal else "no",
        "streams": "yes (start, step)" if card.streams else "no",
        "grid": card.grid,
        "operations": card.complexity,
        "properties": ", ".join(card.properties),
        "checked against": card.basis,
        "compared with": ", ".join(card.parity) or "none: no independent implementation",
        "defined in": entry.module,
    }
    for key, value in facts.items():
        if value:
            say(f"  {key:<16} {value}")
    if card.expected_failures:
        heading("Checks that cannot hold")
        for check, reason in card.expected_failures.items():
            say(f"  {check}: {reason}")
    heading("Papers")
    for paper in card.papers:
        say(f"  {paper.title}, {paper.year}{f', arXiv:{paper.arxiv}' if paper.arxiv else ''}")
    heading("Definition")
    say(indented(entry.doc()))
    heading(f"Options of mt.build({name!r}, dim=64, ...)")
    for option in options(variant):
        needed = "" if option["required"] else f" = {option['default']}"
        say(f"  {option['name']}: {option['type']}{needed}")
    if variant.__doc__:
        say()
        say(indented(inspect.getdoc(variant) or ""))
    heading("Identities (machine-checked)")
    for identity in entry.identities():
        say(f"  - {identity.words}")
    if no_source:
        return
    heading(f"Source: {entry.module}")
    if not on_terminal():
        say(source.rstrip())
        return
    from rich.console import Console
    from rich.syntax import Syntax

    Console().print(Syntax(source, "python", theme="ansi_dark", word_wrap=True))


def options(variant: Any) -> list[dict[str, Any]]:
    """What the variant's class takes: name, type, default as text, and whether it must be given."""
    empty = inspect.Parameter.empty
    return [
        {
            "name": p.name,
            "type": p.annotation if isinstance(p.annotation, str) else inspect.formatannotation(p.annotation),
            "default": None if p.default is empty else repr(p.default),
            "required": p.default is empty,
        }
        for p in inspect.signature(variant).parameters.values()
    ]


def words(implied: Any) -> str:
    """Options as they would be written in a call."""
    return ", ".join(f"{key}={value!r}" for key, value in implied.items())


def indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())
