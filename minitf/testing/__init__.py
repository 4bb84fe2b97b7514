"""Checks that users run on their own work."""

from .exercise import ExerciseError, exercise

__all__ = ["ExerciseError", "exercise"]
