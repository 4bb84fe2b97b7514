"""A saved model, for the tests that damage files."""

from __future__ import annotations

from pathlib import Path

import pytest

import minitf as mt
from minitf.models import LanguageModel
from tests.models.small import SMALL


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    mt.save(LanguageModel(SMALL, seed=3), tmp_path / "model")
    return tmp_path / "model"
