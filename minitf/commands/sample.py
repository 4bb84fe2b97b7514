"""`minitf sample DIR`: let a trained model write."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from .output import print_json


@click.command("sample")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--prompt", default="", help="What to continue. Default: a line break.")
@click.option(
    "--tokens", type=click.IntRange(min=1), default=300, show_default=True, help="How much to write."
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="The same seed writes the same text.",
)
@click.option(
    "--temperature",
    type=float,
    default=0.8,
    show_default=True,
    help="0 always takes the most probable; above 1 is wilder.",
)
@click.option("--top-k", type=int, help="Only the k most probable tokens.")
@click.option("--top-p", type=float, help="Only the most probable tokens that make up this share.")
@click.option(
    "--backend", default="auto", show_default=True, help="Who computes: auto, reference, or a backend's name."
)
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object at the end.")
def command(
    folder: Path, prompt: str, tokens: int, seed: int, temperature: float, top_k: int | None,
    top_p: float | None, backend: str, as_json: bool,
) -> None:  # fmt: skip
    """Let the model in the folder DIR write, character by character.

    \b
    Examples:
      minitf sample runs/demo --prompt "Call me" --tokens 300
      minitf sample runs/demo --temperature 0.5 --top-k 10 --seed 7
      minitf sample runs/demo --prompt "The sea" --json
    """
    import minitf as mt
    from minitf.decode import generate
    from minitf.models import FileError, LanguageModel

    from .training import computing, default_threads

    model = mt.load(folder)
    if not isinstance(model, LanguageModel):
        raise FileError(
            f"{folder} holds {type(model).__name__}, which cannot write: give the folder of a language model"
        )
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab != model.config.vocab:
        raise FileError(
            f"{folder}: the tokenizer has {tokenizer.vocab} tokens and the model {model.config.vocab}: "
            "they are of two runs, so use another copy of one"
        )
    ids = tokenizer.encode(prompt) if prompt else first_ids(tokenizer)
    pieces = []
    begin = time.perf_counter()
    with computing(backend, default_threads()):
        made = generate(model, ids, tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        if not as_json:
            click.echo(prompt, nl=False)
        try:
            for piece in readable_pieces(made, tokenizer):
                pieces.append(piece)
                if not as_json:
                    click.echo(piece, nl=False)
        except KeyboardInterrupt:
            # Enough was written; the line below ends it.
            pass
    if not as_json:
        click.echo()
        return
    text = "".join(pieces)
    print_json(
        {
            "prompt": prompt, "text": text, "tokens": tokens, "seed": seed, "temperature": temperature,
            "top_k": top_k, "top_p": top_p, "tokens_per_s": tokens / (time.perf_counter() - begin),
        }
    )  # fmt: skip


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a run. Raises FileError."""
    from minitf.models import FileError
    from minitf.models.files import reason
    from minitf.tasks import tokenizer_from_json

    path = folder / "tokenizer.json"
    try:
        return tokenizer_from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileError(
            f"{path} is missing, so the model's tokens are no text: only runs of `minitf train` on a text "
            "have one, not those on tasks such as copy and mqar"
        ) from error
    except OSError as error:
        raise FileError(f"cannot read {path}: {reason(error)}") from error
    except ValueError as error:
        raise FileError(f"{path}: {error}") from error


def first_ids(tokenizer: Any) -> Any:
    """Where to begin without a prompt: at a line break, or at the first token if the alphabet has none."""
    try:
        return tokenizer.encode("\n")
    except ValueError:
        return tokenizer.encode(tokenizer.decode([0]))


def readable_pieces(ids: Any, tokenizer: Any) -> Any:
    """The text of the ids as it comes. Bytes wait until they make a character, at most four of them."""
    waiting: list[int] = []
    for i in ids:
        waiting.append(i)
        piece = tokenizer.decode(waiting)
        if not piece.endswith("\ufffd") or len(waiting) == 4:
            yield piece
            waiting = []
    if waiting:
        yield tokenizer.decode(waiting)
