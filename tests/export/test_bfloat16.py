"""Exports in bfloat16, which ONNX Runtime computes on GPUs alone: their graphs, and what they answer in emulation."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tests.conftest import CHECKPOINTS, REFERENCE, case_messages, case_options, expected_cases
from tests.export.layouts import copy_checkpoint, edit_tensors
from tests.export.test_graphs import cosine, feed

from vitrail.engine import Engine
from vitrail.errors import ExportError, OptionError
from vitrail.manifest import FILENAME, load_manifest
from vitrail.providers import Cpu
from vitrail.session.inference import open_session
from vitrail.session.ort import OrtDecoder, OrtVision
from vitrail.splice import splice
from vitrail_export import reference
from vitrail_export.emulation import emulated
from vitrail_export.engine.cases import Case
from vitrail_export.engine.gate import Gate
from vitrail_export.engine.graphs import Prepared
from vitrail_export.engine.sources import Source
from vitrail_export.exporter import ExportOptions, export_checkpoint
from vitrail_export.verify import FLOORS, check

TINY = REFERENCE / "internvl2-tiny"
ALL = {"precision": "bfloat16", "vision_precision": "bfloat16"}
FORMS = [
    ALL,
    {**ALL, "dialect": "standard"},
    {"precision": "int4", "activations": "bfloat16"},
    {"precision": "int8", "activations": "bfloat16", "dialect": "standard"},
]
GRAPHS = ("vision_encoder", "projector", "decoder")
INTEGERS = ("uint8", "int32", "int64")
STEP = 2**14
"""A power of two, by which nothing is rounded: the activations behind it leave float16, and not bfloat16."""


def files(directory):
    return [directory / f"{graph}.onnx" for graph in GRAPHS]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_onnxruntime_takes_every_type_of_the_graphs_and_lacks_kernels_on_a_cpu_alone(exported, form):
    """Types are checked before kernels are looked for."""
    directory = exported("internvl3-tiny", **form)
    with pytest.raises(Exception, match="NOT_IMPLEMENTED : Could not find an implementation"):
        ort.InferenceSession(directory / "decoder.onnx")
    if form.get("dialect") == "standard":
        for file in files(directory):
            onnx.checker.check_model(file, full_check=True)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_caches_are_bfloat16_and_what_passes_through_the_host_is_float32(exported, form):
    directory = exported("internvl3-tiny", **form)
    found = {}
    with emulated(directory, load_manifest(directory), GRAPHS) as manifest:
        for graph in GRAPHS:
            session = open_session(directory / manifest.artifacts[graph].path, Cpu(1), optimize=False)
            found |= {each.name: each.type for each in (*session.get_inputs(), *session.get_outputs())}
    caches = {name for name in found if name.startswith(("past.", "present."))}
    assert {found.pop(name) for name in caches} == {"tensor(bfloat16)"}
    floats = {"features", "embeds", "inputs_embeds", "logits"}
    assert {name for name, kind in found.items() if kind == "tensor(float)"} == floats
    assert {found[name] for name in found.keys() - floats} <= {f"tensor({each})" for each in INTEGERS}


def test_every_weight_is_bfloat16_but_the_statistics_of_pixels(exported):
    wide = set()
    for file in files(exported("internvl3-tiny", **ALL)):
        for weight in onnx.load(file, load_external_data=False).graph.initializer:
            if weight.data_type == onnx.TensorProto.FLOAT:
                wide.add(weight.name)
            assert weight.data_type != onnx.TensorProto.FLOAT16
    assert wide == {"vision.pixel_mean", "vision.pixel_std"}


def test_artifacts_take_the_room_of_float16(exported):
    halves = (exported("internvl2-tiny", **ALL), exported("internvl2-tiny", precision="float16"))
    of_bfloat16, of_float16 = ((each / "decoder.onnx.data").stat().st_size for each in halves)
    assert of_bfloat16 == of_float16


def test_the_embedding_table_holds_the_checkpoint_s_own_numbers(exported):
    """In float16, which is exact for a bfloat16 from 2^-17 on."""
    tables = [
        np.load(exported("internvl2-tiny", **form) / "token_embeddings.npy").astype(np.float32)
        for form in (ALL, {})
    ]
    assert tables[0].dtype == tables[1].dtype
    np.testing.assert_allclose(*tables, rtol=0, atol=2**-25)


@pytest.fixture(scope="module")
def answers(exported):
    """(checkpoint, form, case) -> embeds of its pictures and logits of the known answer, float ones once for every form."""

    def answer(checkpoint, form, case):
        expected, exact = expected_cases(checkpoint)[case], exported(checkpoint)
        directory = exported(checkpoint, **form)
        with Engine.load(exact, slots=1, context_tokens=4096) as engine:
            prompt = engine.prompt(case_messages(expected), max_tiles=case_options(expected)["max_tiles"])
            context = engine.manifest.tokenizer.image_context_id
        ids = np.array(prompt.token_ids, np.int32)
        with emulated(directory, load_manifest(directory), GRAPHS) as manifest:
            vision = OrtVision(directory, manifest, optimize=False)
            optimize = manifest.decoder.precision in ("int8", "int4")
            decoder = OrtDecoder(directory, manifest, slots=1, capacity=4096, optimize=optimize)
            embeds = vision.see(prompt.tiles) if len(prompt.tiles) else None
            given = decoder.embed(ids)
            if embeds is not None:
                given = splice(given, ids, embeds, context)
            return embeds, known_answer(decoder, given, expected["greedy_ids"])

    return answer


def known_answer(session, given, tokens):
    """Logits [n, vocab] of every step."""
    found = [feed(session, given)]
    for i, token in enumerate(tokens[:-1]):
        found.append(feed(session, session.embed(np.array([token])), past=len(given) + i))
    return np.concatenate(found)


@pytest.mark.parametrize("case", ["astronaut", "text_only"])
@pytest.mark.parametrize("dialect", ["ort", "standard"])
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_every_reference_case_is_answered_as_in_float32(answers, checkpoint, dialect, case):
    embeds, logits = answers(checkpoint, {**ALL, "dialect": dialect}, case)
    exact_embeds, exact = answers(checkpoint, {"dialect": dialect}, case)
    if embeds is not None:
        assert cosine(embeds, exact_embeds) >= FLOORS["bfloat16"]
    assert np.isfinite(logits).all()
    assert cosine(logits, exact) >= FLOORS["bfloat16"]


def scaled(tensors):
    """What the MLPs' up projections give is STEP times as large, and their down projections make up for it."""
    factors = {"w3.weight": STEP, "up_proj.weight": STEP, "w2.weight": 1 / STEP, "down_proj.weight": 1 / STEP}
    return {
        name: tensor * next((by for end, by in factors.items() if name.endswith(end)), 1)
        for name, tensor in tensors.items()
    }


def test_a_model_whose_activations_leave_float16_is_refused_there_and_exact_in_bfloat16(tmp_path, exported):
    """It is the same function as before it was scaled, and so it is in bfloat16, to the last bit."""
    source = edit_tensors(copy_checkpoint("internvl3-tiny", tmp_path / "scaled"), scaled)
    half, brain = (tmp_path / precision for precision in ("float16", "bfloat16"))
    for out in (half, brain):
        export_checkpoint(source, out, options=ExportOptions(precision=out.name))
    with pytest.raises(
        ExportError, match=r"decoder: .* not finite; export this stage in fp32, or in bf16 for"
    ):
        check(half, source)
    logits = []
    for directory in (brain, exported("internvl3-tiny", precision="bfloat16")):
        with emulated(directory, load_manifest(directory), ["decoder"]) as manifest:
            session = OrtDecoder(directory, manifest, slots=1, capacity=64, optimize=False)
            logits.append(feed(session, session.embed(np.arange(3, 40)), wanted=range(37)))
    assert np.isfinite(logits[0]).all()
    np.testing.assert_array_equal(*logits)


def test_an_engine_s_decoder_that_leaves_float16_is_found_before_it_is_built(tmp_path):
    source = edit_tensors(copy_checkpoint("internvl3-tiny", tmp_path / "scaled"), scaled)
    directory = tmp_path / "out"
    export_checkpoint(source, directory, options=ExportOptions(precision="float32", dialect="standard"))
    manifest, scratch = load_manifest(directory), tmp_path / "scratch"
    scratch.mkdir()
    gate = Gate(directory, manifest)
    cases = [Case("a prompt", {"prompt": gate.token_rows(list(range(3, 67)))})]
    prepared = Prepared.of(Source("decoder", directory / "decoder.onnx"), scratch, "fp16", cases)
    graphs = prepared.lower("decoder", "fp16", capacity=64)
    with pytest.raises(
        ExportError, match=r"decoder in fp16, given a prompt: .* not finite; build with .* bf16"
    ):
        gate.check("decoder", cases, exact=graphs.exact, lowered=graphs.tried, precision="fp16")


def exported_to(out, **options):
    export_checkpoint(TINY, out, options=ExportOptions(**options))
    return out


@pytest.mark.parametrize("form", FORMS[::2], ids=str)
def test_the_check_of_an_export_emulates_it_and_leaves_nothing_behind(tmp_path, form):
    out = exported_to(tmp_path / "out", **form)
    before = sorted(each.name for each in out.iterdir())
    found = check(out, TINY)
    assert [each.stage for each in found] == list(GRAPHS)
    assert all(each.cosine >= 0.999 for each in found[:2])
    assert sorted(each.name for each in out.iterdir()) == before
    assert load_manifest(out).parity == found


def test_a_checkpoint_that_pytorch_finds_too_coarse_in_bfloat16_is_refused(tmp_path, monkeypatch):
    out = exported_to(tmp_path / "out", precision="bfloat16")
    vocab = load_manifest(out).decoder.vocab_size
    monkeypatch.setattr(reference.Bfloat16, "logits", lambda *_, **__: np.ones((48, vocab), np.float32))
    with pytest.raises(ExportError, match=r"decoder in bf16, in PyTorch, has cosine .* below 0\.999; export"):
        check(out, TINY)
    assert not (out / FILENAME).exists()


def test_a_graph_that_computes_something_else_is_refused(tmp_path):
    out = exported_to(tmp_path / "out", precision="bfloat16")
    data = out / "decoder.onnx.data"
    held = np.fromfile(data, np.uint16)
    held[len(held) // 2 :] ^= 0x8000  # signs, behind the rotary tables
    held.tofile(data)
    with pytest.raises(ExportError, match=r"decoder in bfloat16 has cosine .*below 0\.99;"):
        check(out, TINY)


@pytest.mark.parametrize("form", FORMS[1::2], ids=str)
def test_an_engine_s_graph_is_made_of_it_in_float32(exported, form):
    directory = exported("internvl2-tiny", **form)
    for graph in GRAPHS:
        model = Source(graph, directory / f"{graph}.onnx").load()
        held = [*model.graph.initializers.values(), *model.graph.inputs, *model.graph.outputs]
        made = [value for node in model.graph for value in node.outputs]
        assert not {value.name for value in [*held, *made] if value.dtype == ir.DataType.BFLOAT16}


def test_int8_products_beside_bfloat16_are_refused():
    with pytest.raises(OptionError, match=r"w8a8 is for CPUs: .* not ort with bfloat16"):
        ExportOptions(precision="int4", prefill="w8a8", activations="bfloat16")
