"""Settings for every test: one hypothesis profile, the same examples on every run."""

from hypothesis import settings

settings.register_profile("minitf", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("minitf")
