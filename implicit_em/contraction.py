"""Sums of products in the dtype of their operands."""

from __future__ import annotations

import torch
from torch import Tensor


def contract(equation: str, *operands: Tensor) -> Tensor:
    """`torch.einsum`, of which `torch.autocast` would make a product in 16 bits.

    bfloat16 numbers near 100 are ½ apart: an energy of a hundred nats would be off by up to ¼, and its responsibility
    by a factor of 1.28. So the reductions here keep the dtype of their operands, as softmax and logsumexp do.
    """
    with torch.autocast(operands[0].device.type, enabled=False):
        return torch.einsum(equation, *operands)
