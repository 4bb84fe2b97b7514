"""Toy facts: persons of two names, relations, and the object that each relation gives to each person.

    x = BOS ... BOS  f ... f  first last relation        0 to 3 random fillers f
    y =                                   object         scored at the relation

A table T[subject, relation] of random objects is drawn once, from `seed`; a sample asks for random entries of
it, so nothing but learning by heart helps. The fillers are paraphrases: they change the question, not the
answer. Every name belongs to at least two subjects, so neither name alone tells who is meant.

Ids, in this order: BOS is 0; the fillers; the first names; the last names; the relations; the objects.

`disjoint`: each relation has objects of its own, objects/relations of them: object ids of relation r are
those with the same quotient r.

Chance is the share of the most frequent object in the table, near 1/objects.
Source: the prompts of Interpreting Key Mechanisms of Factual Recall, Lv et al., arXiv:2403.19521, 2024, made
small; the table is ours.
Differs from prompts in words: two names make a subject by construction. Of the subjects, 2 * names form a
ring in which each name occurs twice; the others are random pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from minitf.tasks.task import Sample

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ToyFacts:
    """The task with `names` first and as many last names, and a table drawn from `seed`.

    See `minitf.tasks.task.Task`.

    Raises:
        ValueError: numbers that do not fit; the message says which.
    """

    names: int = 12
    subjects: int = 60
    relations: int = 4
    objects: int = 20
    fillers: int = 5
    longest: int = 3
    disjoint: bool = False
    seed: int = 0
    causal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.names < 2 or not 2 * self.names <= self.subjects <= self.names**2:
            raise ValueError(
                f"ToyFacts needs 2 or more names, and from 2 names to names^2 subjects, not "
                f"names={self.names} and subjects={self.subjects}"
            )
        if self.relations < 1 or self.objects < 1 or self.longest < 0 or self.fillers < min(self.longest, 1):
            raise ValueError(
                f"ToyFacts needs relations >= 1, objects >= 1, longest >= 0 and fillers to draw from, not "
                f"relations={self.relations}, objects={self.objects}, longest={self.longest}, "
                f"fillers={self.fillers}"
            )
        if self.disjoint and self.objects % self.relations:
            raise ValueError(
                f"ToyFacts: with disjoint=True relations={self.relations} must divide objects={self.objects}"
            )

    @property
    def first_name(self) -> int:
        """The lowest id of a first name; last names follow."""
        return 1 + self.fillers

    @property
    def first_relation(self) -> int:
        """The lowest id of a relation."""
        return self.first_name + 2 * self.names

    @property
    def first_object(self) -> int:
        """The lowest id of an object."""
        return self.first_relation + self.relations

    @property
    def V_in(self) -> int:
        """All ids."""
        return self.first_object + self.objects

    @property
    def V_out(self) -> int:
        """All ids, though only objects are answers."""
        return self.V_in

    @property
    def N(self) -> int:
        """BOS, the fillers, two names and a relation."""
        return self.longest + 4

    @property
    def chance(self) -> float:
        """The share of the most frequent object."""
        return float(np.bincount(self.table.ravel()).max() / self.table.size)

    @cached_property
    def _drawn(self) -> tuple[Array, Array]:
        rng, n = np.random.default_rng(self.seed), self.names
        # A ring: first name i goes with last names order[i] and order[i + 1].
        order, i = rng.permutation(n), np.arange(n)
        ring = np.concatenate([i * n + order, i * n + np.roll(order, -1)])
        others = np.setdiff1d(np.arange(n * n), ring)
        pairs = rng.permutation(np.concatenate([ring, rng.permutation(others)[: self.subjects - 2 * n]]))
        people = np.stack([self.first_name + pairs // n, self.first_name + n + pairs % n], axis=1)
        choice = self.objects // self.relations if self.disjoint else self.objects
        table = rng.integers(0, choice, size=(self.subjects, self.relations))
        if self.disjoint:
            table = table + choice * np.arange(self.relations)
        return people, self.first_object + table

    @property
    def people(self) -> Array:
        """The two ids of each subject, (subjects, 2)."""
        return self._drawn[0]

    @property
    def table(self) -> Array:
        """T: the id of the object for each subject and relation, (subjects, relations)."""
        return self._drawn[1]

    def objects_of(self, relation: int) -> Array:
        """The ids that relation 0, 1, ... draws its objects from."""
        every = self.first_object + np.arange(self.objects)
        return every.reshape(self.relations, -1)[relation] if self.disjoint else every

    def facts(self) -> Sample:
        """Every fact once, without fillers: x, y, w (subjects * relations, N), subject by subject."""
        subject, relation = np.divmod(np.arange(self.subjects * self.relations), self.relations)
        return self._asked(subject, relation)

    def sample(self, rng: np.random.Generator, batch: int) -> Sample:
        """x, y, w, each (batch, N)."""
        subject = rng.integers(0, self.subjects, size=batch)
        relation = rng.integers(0, self.relations, size=batch)
        x, y, w = self._asked(subject, relation)
        count = rng.integers(0, self.longest + 1, size=batch)
        if self.longest:
            fill = rng.integers(1, 1 + self.fillers, size=(batch, self.longest))
            # The last `count` places before the names.
            used = np.arange(self.longest) >= self.longest - count[:, None]
            x[:, 1:-3] = np.where(used, fill, 0)
        return x, y, w

    def _asked(self, subject: Array, relation: Array) -> Sample:
        x = np.zeros((len(subject), self.N), dtype=np.int64)
        y, w = np.zeros_like(x), np.zeros(x.shape)
        x[:, -3:-1], x[:, -1] = self.people[subject], self.first_relation + relation
        y[:, -1], w[:, -1] = self.table[subject, relation], 1.0
        return x, y, w

    def oracle(self, x: Array) -> Array:
        """The answers by a dictionary of all facts."""
        known = {
            (*person, self.first_relation + r): o
            for person, row in zip(self.people.tolist(), self.table.tolist())
            for r, o in enumerate(row)
        }
        y = np.zeros_like(x)
        y[:, -1] = [known.get(tuple(row[-3:]), 0) for row in x.tolist()]
        return y
