"""Checks that users run on their own work.

from minitf.testing import check_variant
check_variant("softmax_attention")
check_variant(MyMixer, kind="token_mixer", claims=("causal", "streams"))
"""

from minitf.nn import Case

from . import checks
from .checks import CHECKS
from .doors import check_variant, parametrize_with_checks, variant_checks
from .exercise import NOTEBOOK, ExerciseError, exercise
from .handed_in import from_file
from .kernels import check_kernel
from .kinds import CLAIMS, GRIDS, KINDS, UsageError, known
from .report import CheckError, Report, Reports, Result
from .strategies import FILLINGS, cases_for, dtypes, fillings, masks, sizes
from .subject import Subject, subject

__all__ = [
    "check_kernel", "check_variant", "variant_checks", "parametrize_with_checks",
    "CHECKS", "CLAIMS", "GRIDS", "KINDS", "Case", "CheckError", "Report", "Reports", "Result", "Subject",
    "UsageError",
    "checks", "from_file", "known", "subject",
    "FILLINGS", "cases_for", "dtypes", "fillings", "masks", "sizes",
    "NOTEBOOK", "ExerciseError", "exercise",
]  # fmt: skip
