"""Triton model `vision_encoder`: the tiles of all waiting requests to features."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from vitrail.client.wire import FEATURES, TILES, VISION_ENCODER
from vitrail.core import Float
from vitrail.features import FeatureCache
from vitrail.metrics import FEATURE_SERIES, feature_readings
from vitrail.session.open import open_vision
from vitrail.triton.backend import loading, read_input, read_served, response
from vitrail.triton.batched import run_batch
from vitrail.triton.pulse import Counted, Work
from vitrail.triton.question import TILES_REUSED, VISION_STARTED, check_tiles
from vitrail.triton.telemetry import Telemetry


class TritonPythonModel:
    """`tiles` uint8 [n, 3, S, S] -> `features` float32 [n, T, f], `vision_started` float64 and `tiles_reused` uint8 [n, 1]."""

    def initialize(self, args: Mapping[str, str]) -> None:
        with loading(args):
            served = read_served(args)
            self._check = partial(check_tiles, vision=served.manifest.vision)
            session = open_vision(
                served.artifacts,
                served.manifest,
                served.settings.shares.vision,
                tiles_per_run=served.settings.tiles_per_run,
                stages=(VISION_ENCODER,),
            )
            self._work = Work()
            counted = Counted(session, self._work, tiles_per_run=served.settings.tiles_per_run)
            self._session = FeatureCache(counted, limit_bytes=served.settings.feature_cache_bytes)
            self._telemetry = Telemetry(
                pb_utils,
                VISION_ENCODER,
                served.manifest,
                series=FEATURE_SERIES,
                read=partial(feature_readings, self._session),
                metered_s=None,
                progress=self._work.progress,
            )
            self._telemetry.publish()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        started_s = time.time()
        tiles = [read_input(request, TILES) for request in requests]
        with self._work:
            results = run_batch(tiles, check=self._check, run=self._session.encode)
        self._telemetry.publish()
        return [
            response(result, lambda recalled: _outputs(*recalled, started_s=started_s)) for result in results
        ]

    def finalize(self) -> None:
        self._telemetry.close()


def _outputs(
    features: Float, known: npt.NDArray[np.bool_], *, started_s: float
) -> Mapping[str, npt.NDArray[Any]]:
    return {
        FEATURES: features.astype(np.float32, copy=False),
        VISION_STARTED: np.full((len(features), 1), started_s),
        TILES_REUSED: known.astype(np.uint8)[:, None],
    }
