"""Pictures: training curves, attention maps, masks, the graph behind a tensor, a page about each variant.

    mt.viz.loss_curve("runs/demo/log.csv", save="loss.png")
    mt.viz.attention_map(model.attention_maps(tokens), tokens="Call me Ishmael")
    mt.viz.variant_picture(mt.viz.study("gla"), save="gla.png")
    mt.viz.mixing_matrix(layer, x)               # numbers: who influences whom, (N, N)

Every function that draws returns a matplotlib figure, writes it if `save` is given, and leaves
the state of matplotlib alone.
"""

from .attention import attention_map, mask_picture
from .curves import loss_curve
from .graph import graph
from .mixing import Cost, cost_against_length, mixing_matrix
from .picture import Picture
from .studies import Study, study
from .variant import variant_picture

__all__ = [
    "Cost", "Picture", "Study", "attention_map", "cost_against_length", "graph", "loss_curve", "mask_picture",
    "mixing_matrix", "study", "variant_picture",
]  # fmt: skip
