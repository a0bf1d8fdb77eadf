"""How the decoder finds the vision models: what they are called is fixed, what they take and give depends on the target."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from vitrail.client.wire import IMAGE_EMBEDS
from vitrail.errors import OptionError

PARAMETER = "vision_models"
BATCH_TILES = 128
"""max_batch_size of our own adapters, and the most tiles of one request."""


@dataclass(frozen=True, slots=True)
class VisionModels:
    """batch_tiles: the most tiles that one request may bring them. embeds: the projector's output. reports: whether the
    vision encoder tells when it began and which tiles it knew; Triton's own backends give a graph's outputs only.
    """

    batch_tiles: int = BATCH_TILES
    embeds: str = IMAGE_EMBEDS
    reports: bool = True

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def vision_models_from_json(text: str) -> VisionModels:
    """Raises OptionError for what `to_json` did not write."""
    try:
        return VisionModels(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise OptionError(
            f"the model parameter '{PARAMETER}' is malformed ({error}); write the repository again"
        ) from error
