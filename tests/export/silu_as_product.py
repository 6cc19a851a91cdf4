"""A rewrite from outside the package, for test_rewrites.py.

silu(x) = x·sigmoid(x)
"""

import torch
from torch import nn

from sdturbo_export.rewrites import Rewrite


class SiluAsProduct(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.sigmoid()


def silu_as_product(stage: nn.Module) -> None:
    for module in list(stage.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.SiLU):
                setattr(module, name, SiluAsProduct())


REWRITE = Rewrite(("decoder",), silu_as_product)
