"""A backbone and a trained probe as one module: images in, outputs of the task out.

`predict`, `Classifier` and `export` run this module and nothing else, so they give the same outputs. Tokens are rounded to the
storage dtype as stage one rounds them, so a test image gets the outputs that the probe was tested with.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import RequestError
from ..models.backbone import Backbone
from ..models.rounding import round_on_device
from .probe_spec import ProbeSpec
from .tokens.token_source import join_tokens


class ProbeModule(nn.Module):
    """images [B, 3, H, W] -> outputs [B, C] float32, on the backbone's device; class scores, for a task with classes.

    Images are uint8 at the model's size: normalisation is part of the module. Of a model whose transform could not be split
    (`Backbone.normalisation` is None) they are float32, the output of the transform. No block after the last level that the
    probe reads is run. Threads wait for each other; gradients are not kept.

    Args:
        backbone: the model.
        probe: the levels and kinds that the head reads, and how their tokens are joined.
        head: tokens [B, T, D] or [B, F] -> [B, C]; moved to the backbone's device.
        dtype_of: the storage dtype of a kind.
    """

    def __init__(self, backbone: Backbone, probe: ProbeSpec, head: nn.Module, dtype_of: Callable[[str], str]) -> None:
        super().__init__()
        self.backbone, self.head = backbone.tower.model, head.to(backbone.device).eval()
        self.requires_grad_(False)
        self.tokens_of = backbone.compile(probe.levels, probe.kinds)
        self._probe, self._dtypes = probe, {kind: dtype_of(kind) for kind in probe.kinds}
        self.input_dtype = torch.float32 if backbone.normalisation is None else torch.uint8
        self.input_shape = (3, *backbone.image_size)

    def forward(self, images: Tensor) -> Tensor:
        """Outputs of a batch.

        Raises:
            RequestError: images of another dtype or size.
        """
        if torch.compiler.is_compiling():  # a graph has neither locks nor settings
            return self._outputs(images)
        if images.dtype != self.input_dtype or images.shape[1:] != self.input_shape:
            expected = f"{self.input_dtype} {['B', *self.input_shape]}".replace("'", "")
            raise RequestError("probing.other_images", expected=expected, got=f"{images.dtype} {list(images.shape)}")
        with self.tokens_of.exclusive():
            return self._outputs(images)

    def _outputs(self, images: Tensor) -> Tensor:
        tokens = self.tokens_of.forward(self.tokens_of.normalise(images))
        parts = [
            round_on_device(tokens[level][kind], self._dtypes[kind], look_first=False).values
            for level in self._probe.levels
            for kind in self._probe.kinds
        ]
        outputs: Tensor = self.head(join_tokens(self._probe, parts))
        return outputs
