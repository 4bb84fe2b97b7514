"""Pictures: training curves, attention maps, masks, and the graph behind a tensor.

    mt.viz.loss_curve("runs/demo/log.csv", save="loss.png")
    mt.viz.attention_map(model.attention_maps(tokens), tokens="Call me Ishmael")

Every function returns a matplotlib figure, writes it if `save` is given, and leaves
the state of matplotlib alone.
"""

from .attention import attention_map, mask_picture
from .curves import loss_curve
from .graph import graph
from .picture import Picture

__all__ = ["Picture", "attention_map", "graph", "loss_curve", "mask_picture"]
