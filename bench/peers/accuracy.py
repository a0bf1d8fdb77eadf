"""How close a contestant comes to float32 of the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Arrays = Mapping[str, Any]


def accuracy(found: Arrays, truth: Arrays) -> dict[str, float]:
    """Cosines of embeds or logits, the mean over tiles or prompts; the share of prompts whose first token is the same."""
    shares = {
        f"{name}_cosine": float(np.mean(cosines(found[name], truth[name])))
        for name in ("embeds", "logits")
        if name in found
    }
    if "first" in found:
        shares["first_token_share"] = float(np.mean(found["first"] == truth["first"]))
    return shares


def cosines(found: Any, expected: Any) -> Any:
    """Of each row, flattened, in float64."""
    one, other = (np.asarray(each, np.float64).reshape(len(each), -1) for each in (found, expected))
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
