"""Whole models, built from a config that names their parts."""

from .config import Config, ForecastConfig, ImageConfig
from .encoder import Encoder
from .files import FileError, load, save
from .forecaster import Forecaster, seasonal_naive
from .gpt2 import load_gpt2
from .image import ImageModel
from .language import IGNORE, LanguageModel, State

__all__ = [
    "IGNORE", "Config", "Encoder", "FileError", "ForecastConfig", "Forecaster", "ImageConfig", "ImageModel",
    "LanguageModel", "State", "load", "load_gpt2", "save", "seasonal_naive",
]  # fmt: skip
