"""What TensorRT sessions refuse before they run, and the command that each message has."""

import pytest
from tests.runtime.engine_fakes import FakePlan, fake_machine

from vitrail.errors import ArtifactError, OptionError
from vitrail.session.trt import TrtVision


def test_too_little_memory_is_refused_before_weights_are_read(decoder, monkeypatch):
    machine = fake_machine(free_bytes=1 << 19)
    monkeypatch.setattr(machine.library, "read", None)
    with pytest.raises(OptionError) as refused:
        decoder(machine=machine)
    for words in (
        "of GPU memory are needed",
        "weights of decoder",
        "KV cache 0.50 MiB",
        "Fake GPU",
        "smaller --context",
    ):
        assert words in str(refused.value)


def test_too_little_memory_for_activations_is_refused_before_anything_is_allocated(decoder, monkeypatch):
    monkeypatch.setattr(FakePlan, "activation_bytes", 3 << 30)
    machine = fake_machine()
    with pytest.raises(OptionError, match=r"6\.00 GiB of GPU memory are needed \(activations 6.00 GiB"):
        decoder(machine=machine)
    assert not machine.driver.held


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"slots": 5},
            "slots is 5, the decoder's engine was built for 4; lower it to that, or build one with: .* --slots 5",
        ),
        (
            {"capacity": 513},
            "context_tokens is 513, the decoder's engine was built for 512; .* --decoder .*--context 513",
        ),
    ],
)
def test_more_than_the_engine_was_built_for_is_refused_with_the_command_that_builds_it(decoder, asked, words):
    with pytest.raises(OptionError, match=words):
        decoder(**asked)


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (
            {"target": "sm_90"},
            "decoder has engines for tensorrt on sm_89.* tensorrt on sm_90 is needed; build one with: vitrail engine",
        ),
        (
            {"version": "10.17.1"},
            "was built by tensorrt 10.16.0, 10.17.1 is installed; build one with: vitrail engine",
        ),
    ],
)
def test_an_engine_for_another_gpu_or_version_is_refused_with_the_command_that_builds_it(
    decoder, machine, words
):
    with pytest.raises(ArtifactError, match=words):
        decoder(machine=fake_machine(**machine))


def without_sampler(manifest):
    return manifest.model_copy(
        update={"engines": tuple(each for each in manifest.engines if each.stage != "sampler")}
    )


def test_a_decoder_s_engine_without_its_sampler_is_refused_with_the_command_that_builds_both(
    decoder, manifest
):
    with pytest.raises(
        ArtifactError,
        match=r"no engine of sampler for tensorrt on sm_89; build one with: vitrail engine .* --decoder",
    ):
        decoder(manifest=without_sampler(manifest))
    older = changed(manifest, "sampler", builder_version="10.15.1")
    with pytest.raises(
        ArtifactError,
        match=r"engine of sampler was built by tensorrt 10\.15\.1, 10\.16\.0 is installed; build",
    ):
        decoder(manifest=older)


def test_a_sampler_for_fewer_rows_than_the_decoder_computes_is_refused(decoder, manifest):
    sampler = next(each for each in manifest.engines if each.stage == "sampler")
    inputs = {
        name: shapes.model_copy(update={"max": (2, *shapes.max[1:])})
        for name, shapes in sampler.profile("rows").inputs.items()
    }
    narrow = (sampler.profile("rows").model_copy(update={"inputs": inputs}),)
    with pytest.raises(OptionError, match=r"slots is 4, the sampler's engine was built for 2; .* --decoder"):
        decoder(manifest=changed(manifest, "sampler", profiles=narrow))


def changed(manifest, stage, **update):
    """The manifest with another record of one stage's engine."""
    engines = tuple(
        engine.model_copy(update=update) if (engine.stage, engine.builder) == (stage, "tensorrt") else engine
        for engine in manifest.engines
    )
    return manifest.model_copy(update={"engines": engines})


def test_an_engine_that_its_record_does_not_describe_is_refused(opened, decoder, manifest):
    other = changed(manifest, "projector", dtype="float32")
    with pytest.raises(ArtifactError, match="'embeds' should be float32, in the engine it is float16; build"):
        opened(TrtVision, manifest=other, stages=("projector",))
    with pytest.raises(
        ArtifactError, match=r"differ in dtype \(vision_encoder float16, projector float32\); build"
    ):
        opened(TrtVision, manifest=other)
    decode = changed(manifest, "decoder", profiles=manifest.engines[2].profiles[::-1])
    with pytest.raises(
        ArtifactError, match="profile 'prefill' of the engine of decoder takes 'inputs_embeds'"
    ):
        decoder(manifest=decode)
    fewer = changed(manifest, "vision_encoder", profiles=manifest.engines[0].profiles * 2)
    with pytest.raises(ArtifactError, match="the engine of vision_encoder has 1 profiles, its record 2"):
        opened(TrtVision, manifest=fewer)


def test_an_engine_that_does_not_write_its_cache_in_place_is_refused(decoder, monkeypatch):
    monkeypatch.setattr(FakePlan, "get_aliased_input_tensor", lambda *_: None)
    with pytest.raises(
        ArtifactError, match=r"writes present\.0\.key elsewhere than in past\.0\.key; build it again"
    ):
        decoder()
