"""Speculative decoding: a small model drafts, the large one checks all drafts in one pass, without loss.

    x_1 .. x_g ~ q                        drafted one after the other; q_i = q(. | prefix, x_<i)
    p_1 .. p_g+1                          from one pass of the target over the drafted tokens
    accept x_i  if  u_i < min(1, p_i(x_i) / q_i(x_i)),   u_i uniform in (0, 1)
    at the first that is refused, draw from  max(0, p_i - q_i) / sum max(0, p_i - q_i)  and stop
    if all are accepted, draw one more from p_g+1

    p_i, q_i  (V,)   probabilities after temperature, top-k and top-p, the same for both

Every pass of the target gives 1 to g + 1 tokens, distributed as if drawn from p alone. With a share of
agreement beta = sum_x min(p, q), alike for all places, that is (1 - beta^(g+1)) / (1 - beta) tokens. At
temperature 0, p and q are one-hot, and the rule says: accept while the draft is the argmax of p.

Cost: one pass of the target over g + 1 tokens and g steps of the draft model, for each pass.
Source: Fast Inference from Transformers via Speculative Decoding, Leviathan et al., arXiv:2211.17192, 2022,
algorithm 1.
Differs from the paper: `lenience` l < 1 compares with l q, which accepts more and is no longer lossless.
Numerics: where p and q agree up to rounding the residual may sum to 0; then p itself is drawn from.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from minitf.engine import Array
from minitf.nn import Card, Case, Module, Paper, identity, init

from .sampling import check_settings, draw, probabilities

CARD = Card(
    name="speculative_decoding",
    title="Draft and verify, with the lossless accept rule",
    kind="decode",
    family="speculative",
    papers=(Paper("Fast Inference from Transformers via Speculative Decoding", "2211.17192", 2022),),
    causal=True,
    streams=False,
    grid="1d",
    complexity="one pass of the target over g + 1 tokens for (1 - beta^(g+1)) / (1 - beta) of them",
    properties=(),
    basis="published code: lucidrains/speculative-decoding; facebookresearch/LayerSkip self_speculation",
)


def residual(p: Array, q: Array) -> Array:
    """max(0, p - q), normalised: what p has left where q has been served. p where nothing is left."""
    rest = np.maximum(p - q, 0.0)
    total = rest.sum(axis=-1, keepdims=True)
    return np.where(total > 0.0, rest / np.where(total > 0.0, total, 1.0), p)


def acceptance(p: Array, q: Array, lenience: float = 1.0) -> Array:
    """min(1, p / (l q)) for every token (V,); tokens that q never drafts count as refused."""
    return np.where(q > 0.0, np.minimum(1.0, p / np.where(q > 0.0, lenience * q, 1.0)), 0.0)


def verify(p: Array, q: Array, drafted: Array, rng: np.random.Generator, lenience: float = 1.0) -> list[int]:
    """The tokens of one pass: drafted ones as far as they are accepted, and one of the target's own.

    p: (g + 1, V). q: (g, V). drafted: (g,). Returns 1 to g + 1 tokens.
    """
    for i, token in enumerate(drafted):
        if rng.random() >= acceptance(p[i], q[i], lenience)[token]:
            return [*map(int, drafted[:i]), int(draw(residual(p[i], q[i]), rng))]
    return [*map(int, drafted), int(draw(p[-1], rng))]


class Speculation(NamedTuple):
    """New tokens (n,), and how they came about: passes of the target, tokens drafted and accepted."""

    tokens: Array
    passes: int
    drafted: int
    accepted: int


class SpeculativeDecoding(Module):
    """Continues a prompt with a target and a draft model. No parameters.

    Args:
        dim: for the common call; nothing depends on it. draft_length: g, 0 for plain decoding.
        lenience: l in (0, 1]; below 1 the output is no longer distributed as the target's.
        temperature, top_k, top_p: as in `sample_logits`. seed: of every call.

    Raises:
        ValueError: an option out of range.
    """

    card = CARD

    def __init__(
        self,
        dim: int = 0,
        *,
        draft_length: int = 4,
        lenience: float = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: init.Seed = 0,
    ):
        check_settings(temperature, top_k, top_p)
        if draft_length < 0 or not 0.0 < lenience <= 1.0:
            raise ValueError(f"draft_length={draft_length} must be 0 or more, lenience={lenience} in (0, 1]")
        self.draft_length, self.lenience, self.seed = draft_length, lenience, seed
        self.settings = (temperature, top_k, top_p)

    def forward(self, target: Any, draft: Any, prompt_ids: Any, tokens: int) -> Speculation:
        """Continue prompt_ids (n,) by `tokens` tokens. Models: LanguageModels of one vocabulary.

        Raises:
            ValueError: models of two vocabularies, an empty prompt, or more tokens than a context holds.
        """
        ids = [int(i) for i in np.asarray(prompt_ids).reshape(-1)]
        context = min(target.config.context, draft.config.context)
        if target.config.vocab != draft.config.vocab:
            raise ValueError(
                f"target and draft must know the same tokens, not {target.config.vocab} and "
                f"{draft.config.vocab}"
            )
        if not ids or len(ids) + tokens > context:
            raise ValueError(f"{len(ids)} + {tokens} tokens must be at least 1 + 0 and fit {context}")
        rng, start, passes, drafted, accepted = init.generator(self.seed), len(ids), 0, 0, 0
        # A state holds all tokens but the last: that one is read together with what follows.
        states = [read(model, ids[:-1], model.start(1)) for model in (target, draft)]
        while len(ids) < start + tokens:
            g = min(self.draft_length, start + tokens - len(ids) - 1)
            found: list[int] = []
            q, small = [], states[1]
            for i in range(g):
                logits, small = draft.step(np.array([found[-1] if i else ids[-1]]), small)
                q.append(probabilities(logits[0], *self.settings))
                found.append(int(draw(q[-1], rng)))
            logits, large = target.prefill(np.array([[ids[-1], *found]]), states[0])
            p = probabilities(logits[0], *self.settings)
            new = verify(p, np.array(q), np.array(found, dtype=int), rng, self.lenience)
            passes, drafted, accepted = passes + 1, drafted + g, accepted + len(new) - 1
            # Roll back to what was accepted: the last token of `new` is read in the next pass.
            seen = [ids[-1], *new[:-1]]
            ids += new
            states = [
                rolled_back(target, states[0], large, seen),
                rolled_back(draft, states[1], small, seen),
            ]
        return Speculation(np.array(ids[start:]), passes, drafted, accepted)


def read(model: Any, ids: list[int], state: Any) -> Any:
    """The state after some tokens."""
    return model.prefill(np.array([ids]), state)[1] if ids else state


def rolled_back(model: Any, before: Any, after: Any, seen: list[int]) -> Any:
    """The state after `before` and the tokens `seen`, from one that read further, if it can be cut."""
    length = before.length + len(seen)
    if after.length >= length and all(hasattr(block, "truncate") for block in after.blocks):
        return after._replace(blocks=tuple(block.truncate(length) for block in after.blocks), length=length)
    return read(model, seen, before)


def two(case: Case, places: int = 1) -> tuple[Array, Array]:
    """p and q (places, V): random, and without a token or two each."""
    rng = case.rng()
    p, q = rng.dirichlet(np.ones(case.dim + 2), (2, places))
    p[:, 0] = 0.0
    q[:, -1] = 0.0
    return p / p.sum(axis=-1, keepdims=True), q / q.sum(axis=-1, keepdims=True)


@identity("over all drafts: sum of q min(1, p / q) plus what is refused times the residual is p")
def lossless(case: Case) -> tuple[Any, Any]:
    p, q = two(case)
    kept = q * acceptance(p, q)
    return kept + (1.0 - kept.sum(axis=-1, keepdims=True)) * residual(p, q), p


@identity("the share that is accepted is sum min(p, q), one less the total variation")
def agreement(case: Case) -> tuple[Any, Any]:
    p, q = two(case)
    return (q * acceptance(p, q)).sum(axis=-1), 1.0 - 0.5 * np.abs(p - q).sum(axis=-1)


@identity(
    "a draft model that equals the target is always accepted; one of other tokens never, and p is drawn"
)
def extremes(case: Case) -> tuple[Any, Any]:
    rng = case.rng()
    p = two(case, 4)[0]
    drafted = np.array([draw(row, rng) for row in p[:3]])
    same = verify(p, p[:3], drafted, rng)[:3]
    apart = np.stack([p[0], np.zeros(len(p[0]))]).reshape(-1)
    other = np.stack([np.zeros(len(p[0])), p[0]]).reshape(-1)
    return np.append(same, residual(apart, other)), np.append(drafted, apart)


@identity("greedy: drafts are accepted while they are the argmax, which then follows")
def greedy(case: Case) -> tuple[Any, Any]:
    rng = case.rng()
    best, drafted = rng.integers(0, 2, 5), rng.integers(0, 2, 4)
    p, q = np.eye(3)[best], np.eye(3)[drafted]
    agreed = int(np.argmin(np.append(best[:4] == drafted, False)))
    new = verify(p, q, drafted, rng)
    return np.append(new, np.zeros(5 - len(new))), np.append(best[: agreed + 1], np.zeros(4 - agreed))


@functools.cache
def frequencies(passes: int = 5000) -> tuple[Any, Any]:
    """How often each of 5 tokens comes first in so many passes of one draft, and p."""
    rng = np.random.default_rng(1)
    p, q = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
    places = np.stack([p, p])
    drafts = rng.choice(5, passes, p=q)
    first = [verify(places, q[None], np.array([x]), rng)[0] for x in drafts]
    return np.bincount(first, minlength=5) / passes, p


@functools.cache
def lengths(passes: int = 5000, g: int = 3) -> tuple[float, float]:
    """Tokens per pass, on average over so many passes of g drafts, and what beta says."""
    rng = np.random.default_rng(2)
    p, q = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
    drafts = rng.choice(5, (passes, g), p=q)
    found = [len(verify(np.stack([p] * (g + 1)), np.stack([q] * g), x, rng)) for x in drafts]
    beta = np.minimum(p, q).sum()
    return float(np.mean(found)), float((1.0 - beta ** (g + 1)) / (1.0 - beta))


@identity(
    "5,000 passes of three drafts: (1 - beta^4) / (1 - beta) tokens each, of at most 4, within 6 errors",
    tolerance=0.032,
)
def tokens_per_pass(case: Case) -> tuple[Any, Any]:
    # Shares of 4 from 1/4 to 1 deviate by at most 3/8, their mean by 3/8 / sqrt(5000) = 0.0053.
    found, expected = lengths()
    return np.array(found / 4.0), np.array(expected / 4.0)


@identity("5,000 passes of one draft give p within 5 standard errors of a share", tolerance=0.036)
def sampled(case: Case) -> tuple[Any, Any]:
    # A share has a standard error of at most sqrt(1/4 / 5000) = 0.0071. Sizes are fixed: once will do.
    return frequencies()
