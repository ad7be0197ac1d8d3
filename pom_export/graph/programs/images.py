"""Programs of our image models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pom_export.errors import InputError
from pom_export.graph.exported_model import BATCH, InputLimits
from pom_export.graph.options import GraphOptions
from pom_export.graph.program import Axes, Program, build_program
from pom_export.models import JiT


class _ImageModelProgram(nn.Module):
    def __init__(self, image_model: JiT) -> None:
        super().__init__()
        self.model = image_model

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.model(x, t, y)


def image_model_program(model: JiT, options: GraphOptions) -> Program:
    """Return the program of an image model: inputs x, t and y; output image. Only the batch is dynamic.

    Raises:
        InputError: an option does not fit.
    """
    config = model.config
    if options.static is not None and options.static[1] != config.side**2:
        batch, tokens = options.static
        raise InputError(
            f"the image model has {config.side**2} tokens, the patches of an image; `static=({batch}, {tokens})` pins "
            f"{tokens}",
            f"Give `static=({batch}, {config.side**2})`",
        )
    size = config.input_size
    axes: Axes = {
        "x": ((BATCH, config.channels, size, size), torch.float32),
        "t": ((BATCH,), torch.float32),
        "y": ((BATCH,), torch.int64),
    }
    # The last label stands for "no class".
    limits = InputLimits({"y": (config.num_classes + 1,)}, ranges={"t": (0.0, 1.0)})
    return build_program(_ImageModelProgram(model), axes, ("image",), options, limits)
