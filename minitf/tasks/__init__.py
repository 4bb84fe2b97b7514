"""The small real data sets that ship with the package."""

from minitf.tasks.corpus import load_digits, load_moby, load_series

__all__ = ["load_digits", "load_moby", "load_series"]
