"""Attention as two matrix products, which on a CPU in bfloat16 is more than twice as fast as the fused kernel below
a thousand positions, backward pass included.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LONGEST = 512


def attend(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """[n, heads, P, size] each -> [n, heads, P, size]."""
    length = query.shape[-2]
    if length > LONGEST:
        return functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    flat_query, flat_key, flat_value = (each.flatten(0, 1) for each in (query, key, value))
    scores = torch.bmm(flat_query * query.shape[-1] ** -0.5, flat_key.transpose(1, 2))
    if causal:
        later = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    shares = scores.softmax(-1).to(flat_value.dtype)
    return torch.bmm(shares, flat_value).view(query.shape)
