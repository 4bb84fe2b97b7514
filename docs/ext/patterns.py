"""The picture of each variant: its mixing pattern, drawn once for each state of its source."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import minitf
from minitf import viz
from minitf.viz.picture import Picture
from minitf.viz.studies import PlotError
from minitf.viz.variant import draw_distance, draw_pattern, draw_strip, how_built, strip_of

from .gather import Variant

# Width of the layers: small, because the exact Jacobian has a row for every channel of every token.
DIM = 16
# Other sizes: fewer tokens where a row of the Jacobian is dear, because batch norms tie examples or many maps
# are sampled; more channels where the norm of a narrow head makes one token outshine all others.
SIZES: dict[str, dict[str, Any]] = {
    "cascaded_group_attention": {"tokens": 36},
    "deformable_attention": {"tokens": 16},
    "gla": {"dim": 32},
}
# What a picture shows, for those who do not see it.
SHOWS = {
    "mixing": "Matrix of {} by {}: how strongly each output token depends on each input token",
    "channels": "Matrix of {} by {}: how each output channel of a token depends on each input channel",
    "bias": "Matrix of {} by {}: what is added to the scores of head 0; and that against distance",
    "rotation": "Matrix of {} by {}: the score of equal vectors at two places; and that against distance",
    "similarity": "Matrix of {} by {}: the cosine of what is added at two places; and that against distance",
}


@dataclass(frozen=True)
class Pattern:
    """The picture of a variant's pattern, or why there is none.

    Attributes:
        file: its name. alt: what it shows, in words. caption: how the layer was built. why: instead of these.
    """

    file: str = ""
    alt: str = ""
    caption: str = ""
    why: str = ""


def pattern(variant: Variant, folder: Path) -> Pattern:
    """The picture of a variant, drawn unless `folder` has it from this source already."""
    stem = f"{variant.name}-{fingerprint(variant)}"
    facts = folder / f"{stem}.json"
    if facts.exists():
        return Pattern(**json.loads(facts.read_text(encoding="utf-8")))
    for old in folder.glob(f"{variant.name}-*"):
        # Names may begin alike: what follows the name is a hash.
        if "-" not in old.name[len(variant.name) + 1 :]:
            old.unlink()
    try:
        # A cost is studied at two lengths at least; it is not drawn here.
        study = viz.study(variant.name, **{"dim": DIM, **SIZES.get(variant.name, {})}, lengths=(8, 16))
    except PlotError as error:
        found = Pattern(why=str(error))
    else:
        draw(study, folder / f"{stem}.png")
        alt = SHOWS[study.pattern].format(*study.matrix.shape)
        found = Pattern(f"{stem}.png", f"{variant.name}. {alt}.", how_built(study))
    # Last, and whole: it says that the picture is there.
    half = facts.with_suffix(".half")
    half.write_text(json.dumps(asdict(found)), encoding="utf-8")
    half.replace(facts)
    return found


def fingerprint(variant: Variant) -> str:
    """A short hash of what the picture is made from."""
    files = [Path(__file__), *sorted((Path(minitf.__file__).parent / "viz").glob("*.py"))]
    parts = [variant.source.encode(), *(file.read_bytes() for file in files)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def draw(study: viz.Study, file: Path) -> None:
    """The pattern of a study without its cost: small maps above, if it has any, and the matrix."""
    strip = strip_of(study)
    # Position schemes have a second panel, against distance.
    alone = study.pattern in ("mixing", "channels")
    # Inches
    middle, low = (0.0 if strip is None else 2.5 if len(strip) <= 4 else 1.7), 4.6
    # Margins by hand: to find them, the layout of the library takes as long as all the rest.
    picture = Picture(9.6 if strip or not alone else 5.8, middle + low, layout="none")
    heights = (middle, low) if strip else (low,)
    rows: Any = picture.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    if strip:
        draw_strip(rows[0], strip)
        rows[0].subplots_adjust(left=0.06, right=0.89, bottom=0.12, top=0.86, wspace=0.12)
    axes = rows[-1].subplots(1, 1 if alone else 2, squeeze=False)[0]
    draw_pattern(axes[0], study)
    rows[-1].subplots_adjust(left=0.11, right=0.82 if alone else 0.98, bottom=0.12, top=0.88, wspace=0.6)
    if not alone:
        draw_distance(axes[1], study)
    picture.savefig(file, dpi=110)
