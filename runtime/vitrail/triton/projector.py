"""Triton model `projector`: features to embeddings that the decoder splices into its prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from vitrail.client.wire import FEATURES, IMAGE_EMBEDS, PROJECTOR
from vitrail.core import Float
from vitrail.session.open import open_vision
from vitrail.triton.backend import loading, read_input, read_served, response
from vitrail.triton.batched import run_batch
from vitrail.triton.pulse import Work
from vitrail.triton.question import check_features
from vitrail.triton.telemetry import Telemetry


class TritonPythonModel:
    """`features` float32 [n, T, f] -> `image_embeds` float32 [n, T, d]."""

    def initialize(self, args: Mapping[str, str]) -> None:
        with loading(args):
            served = read_served(args)
            self._check = partial(check_features, vision=served.manifest.vision)
            self._session = open_vision(
                served.artifacts,
                served.manifest,
                served.settings.shares.vision,
                tiles_per_run=served.settings.tiles_per_run,
                stages=(PROJECTOR,),
            )
            self._work = Work()
            self._telemetry = Telemetry(
                pb_utils, PROJECTOR, served.manifest, metered_s=None, progress=self._work.progress
            )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        features = [read_input(request, FEATURES) for request in requests]
        with self._work:
            results = run_batch(features, check=self._check, run=self._project)
        return [
            response(result, lambda outputs: {IMAGE_EMBEDS: outputs[0].astype(np.float32, copy=False)})
            for result in results
        ]

    def _project(self, features: Float) -> tuple[Float]:
        return (self._session.project(features),)

    def finalize(self) -> None:
        self._telemetry.close()
