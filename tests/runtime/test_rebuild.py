"""The command that a message gives builds what there was, not what `vitrail engine` builds by itself."""

import pytest
from typer.main import get_command

from vitrail.cli import app
from vitrail.manifest import EngineProfile, EngineRecord, Parity, Shapes
from vitrail.rebuild import DEFAULTS, engine_command


def profile(name, **inputs):
    shapes = {key: Shapes(min=most, opt=most, max=most) for key, most in inputs.items()}
    return EngineProfile(name=name, inputs=shapes)


def record(stage, *profiles, precision="fp16", builder="tensorrt-rtx", targets=("sm_86",)):
    return EngineRecord(
        stage=stage,
        builder=builder,
        builder_version="1.7",
        targets=targets,
        precision=precision,
        dtype="float16",
        profiles=profiles,
        artifact=stage,
        build_s=1.0,
        parity=Parity(stage=stage, cosine=1.0, max_abs_error=0.0),
    )


def vision(tiles, **form):
    return record("vision_encoder", profile("tiles", tiles=(tiles, 3, 448, 448)), **form)


def decoder(slots, context, chunk):
    decode = profile("decode", past_lengths=(slots,), **{"past.0.key": (slots, 2, context, 64)})
    return record("decoder", decode, profile("prefill", inputs_embeds=(1, chunk, 96)))


@pytest.mark.parametrize(
    ("like", "options"),
    [
        ([], ""),
        ([vision(13)], ""),
        ([vision(4)], " --max-tiles 4"),
        ([vision(4, builder="tensorrt")], ""),
        ([vision(4), vision(8, targets=("sm_120",))], " --max-tiles 4"),
        ([vision(8, targets=("sm_120",))], " --max-tiles 8"),
        ([vision(13, precision="bf16")], " --precision bf16"),
        ([vision(13, precision="int8")], " --precision int8 --pictures PICTURES"),
        ([vision(4), decoder(4, 4096, 512)], " --decoder --max-tiles 4 --context 4096"),
        ([decoder(16, 2048, 256)], " --decoder --context 2048 --slots 16 --prefill-chunk 256"),
    ],
)
def test_engines_are_built_again_as_they_are(like, options):
    command = engine_command("vision_encoder", "tensorrt-rtx", "sm_86", like=like)
    assert command == f"vitrail engine DIR --with tensorrt-rtx --targets sm_86{options}"


@pytest.mark.parametrize(
    ("stage", "unfit", "named"),
    [
        ("projector", {"vision_encoder", "projector"}, True),
        ("projector", {"decoder"}, False),
        ("sampler", {"decoder"}, True),
        ("decoder", {}, False),
    ],
)
def test_graphs_that_tensorrt_does_not_take_need_their_checkpoint(stage, unfit, named):
    command = engine_command(stage, "tensorrt-rtx", "sm_90", unfit=unfit)
    assert command.startswith("vitrail engine DIR --with tensorrt --targets current")
    assert (" --checkpoint CHECKPOINT" in command) == named


def test_what_is_to_be_larger_is_named_once():
    like = [decoder(4, 4096, 512)]
    command = engine_command("decoder", "tensorrt", "sm_90", like=like, changed={"--slots": 8})
    assert command.endswith("--with tensorrt --targets current --decoder --slots 8")
    rtx = engine_command("decoder", "tensorrt-rtx", "sm_89", like=like, changed={"--context": 8192})
    assert rtx.endswith(" --targets sm_89 --decoder --context 8192")


def test_what_is_not_said_is_what_the_command_takes_by_itself():
    options = get_command(app).get_command(None, "engine").params
    taken = {option.opts[0]: option.default for option in options}
    assert {option: getattr(taken[option], "value", taken[option]) for option in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize("target", ["sm_87", "sm_90"])
def test_a_gpu_that_tensorrt_for_rtx_does_not_run_on_is_sent_to_tensorrt(target):
    command = engine_command("vision_encoder", "tensorrt-rtx", target)
    assert command.startswith(
        "vitrail engine DIR --with tensorrt --targets current, and --provider tensorrt "
    )
    assert "tensorrt" not in engine_command("vision_encoder", "tensorrt-rtx", "sm_89").partition("rtx ")[2]
