"""Vision encoder and projector on fake engines, beside ONNX Runtime."""

import numpy as np
import pytest
from tests.runtime.trt.steps import launches

from vitrail.errors import InvalidInput
from vitrail.session.ort import OrtVision
from vitrail.session.trt import TrtVision


def test_pictures_have_onnxruntimes_features_and_embeds(opened, directory, manifest):
    vision, machine = opened(TrtVision)
    other = OrtVision(directory, manifest)
    tiles = np.random.default_rng(0).integers(0, 256, (4, 3, 448, 448), np.uint8)
    features = other.encode(tiles)
    embeds = other.project(features)
    for count in (0, 2, 4, 4, 4):
        found = vision.encode(tiles[:count])
        assert found.dtype == np.float16
        np.testing.assert_allclose(found, features[:count], atol=2e-2)
        np.testing.assert_allclose(vision.project(features[:count]), embeds[:count], atol=2e-2)
        np.testing.assert_allclose(vision.see(tiles[:count]), embeds[:count], atol=2e-2)
    assert launches(machine) > 0


def test_one_stage_alone_loads_one_engine(opened):
    vision, machine = opened(TrtVision, stages=("projector",))
    assert vision.project(np.zeros((1, 256, vision.contract.feature_size), np.float16)).shape[0] == 1
    assert {context.plan.record.stage for context in machine.library.contexts} == {"projector"}


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 3, 224, 224), np.uint8), ((1, 3, 448, 448), np.float32), ((3, 448, 448), np.uint8)],
)
def test_tiles_of_another_form_are_refused(opened, shape, dtype):
    vision, _ = opened(TrtVision, stages=("vision_encoder",))
    with pytest.raises(InvalidInput, match=r"this model takes uint8 \[n, 3, 448, 448\]"):
        vision.encode(np.zeros(shape, dtype))


def test_features_of_another_form_are_refused(opened):
    vision, _ = opened(TrtVision, stages=("projector",))
    with pytest.raises(InvalidInput, match=r"this model takes \[n, 256, "):
        vision.project(np.zeros((1, 255, vision.contract.feature_size), np.float16))
