"""Whole models, built from a config that names their parts."""

from .config import Config
from .encoder import Encoder
from .files import FileError, load, save
from .gpt2 import load_gpt2
from .language import LanguageModel, State

__all__ = ["Config", "Encoder", "FileError", "LanguageModel", "State", "load", "load_gpt2", "save"]
