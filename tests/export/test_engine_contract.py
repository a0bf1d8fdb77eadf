"""What TensorRT's parser makes of the graphs that engines are built from, beside what the sessions bind."""

import shutil
from pathlib import Path

import pytest

from vitrail.manifest import load_manifest
from vitrail.session.trt_library import DTYPES
from vitrail.session.trt_ports import decoder_tensors, vision_ports
from vitrail.session.trt_sampler import sampler_ports
from vitrail_export.engine import build, compile  # noqa: A004
from vitrail_export.engine.options import EngineOptions

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")


@pytest.fixture(scope="module", params=["fp16", "bf16"])
def parsed(request, exported, tmp_path_factory):
    """(manifest with records, stage -> network), everything done but the compiling itself."""
    networks, kept = {}, []

    def parse_only(builder, graph, engine, **_):
        journal = compile.Journal(builder.trt)
        logger = journal.logger()
        maker = builder.trt.Builder(logger)
        network = maker.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        compile.parse(builder.trt, network, graph, logger, journal)
        networks[graph.name.partition(".")[0]] = network
        kept.append((logger, maker))
        engine.write_bytes(b"")

    export = exported("internvl3-tiny", precision="float16", vision_precision="float16", dialect="standard")
    directory = Path(shutil.copytree(export, tmp_path_factory.mktemp("engines") / request.param))
    options = EngineOptions(targets=("sm_89",), decoder=True, precision=request.param, context_tokens=512)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "compile_graph", parse_only)
        build.build_engines(directory, options)
    return load_manifest(directory), networks


def tensors(network):
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    return {
        each.name: each for each in [*inputs, *(network.get_output(i) for i in range(network.num_outputs))]
    }


def dtypes(network):
    return {name: DTYPES[each.dtype.name] for name, each in tensors(network).items()}


def record(manifest, stage):
    return next(each for each in manifest.engines if each.stage == stage)


def test_the_session_binds_exactly_the_tensors_of_the_decoder(parsed):
    manifest, networks = parsed
    ports, resident = decoder_tensors(manifest, record(manifest, "decoder"))
    assert dtypes(networks["decoder"]) == {port.name: port.dtype for port in ports} | resident


def test_the_session_binds_exactly_the_tensors_of_the_sampler_whose_logits_are_the_decoder_s(parsed):
    manifest, networks = parsed
    ports = sampler_ports(record(manifest, "decoder").slots, manifest.decoder.vocab_size)
    assert dtypes(networks["sampler"]) == {port.name: port.dtype for port in ports}
    assert ports[0] in decoder_tensors(manifest, record(manifest, "decoder"))[0]


@pytest.mark.parametrize("stage", ["vision_encoder", "projector"])
def test_the_session_binds_exactly_the_tensors_of_a_vision_stage(parsed, stage):
    manifest, networks = parsed
    ports = vision_ports(manifest, record(manifest, stage))
    assert dtypes(networks[stage]) == {port.name: port.dtype for port in ports}


def test_every_cache_is_updated_in_place(parsed):
    manifest, networks = parsed
    network = networks["decoder"]
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    updates = [each for each in layers if each.type.name == "KV_CACHE_UPDATE"]
    pairs = {(each.get_input(0).name, each.get_output(0).name) for each in updates}
    names = [f"{i}.{kind}" for i in range(manifest.decoder.layers) for kind in ("key", "value")]
    assert pairs == {(f"past.{name}", f"present.{name}") for name in names}


def test_no_tensor_has_to_lie_in_host_memory(parsed):
    for network in parsed[1].values():
        assert not [name for name, each in tensors(network).items() if each.is_shape_tensor]
