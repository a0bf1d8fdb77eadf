"""The sessions of provider cuda beside those of provider cpu: the same code, with the host's memory as the device's.

Their graphs run on the CPU here, so that bindings, addresses, blocks of slots and copies are what is tested; the fake driver
runs what is queued only when it is waited for, and its fresh memory is NaN.
"""

from functools import partial

import numpy as np
import onnx
import pytest
from tests.runtime.engine_fakes import HostDriver
from tests.runtime.trt.steps import a_conversation, step

from vitrail.answer import collect
from vitrail.decoder import Decoder, Settings
from vitrail.engine import Engine
from vitrail.errors import InvalidInput, OptionError
from vitrail.manifest import load_manifest
from vitrail.providers import Cpu
from vitrail.sample import Draw, draw
from vitrail.session import inference
from vitrail.session.cuda import OrtCudaDecoder, OrtCudaVision
from vitrail.session.cuda_buffers import Device
from vitrail.session.ort import OrtDecoder, OrtVision
from vitrail.tokenizer import load_tokenizer

SLOTS, CAPACITY = 4, 256
FORMS = [
    {"precision": "float32"},
    {"precision": "int4", "activations": "float16"},
    {"precision": "float32", "dialect": "standard"},
]


def device(*, graphs=True, **memory):
    return Device(Cpu(threads=1), HostDriver(**memory), graphs=graphs, name="cpu")


def open_pair(directory, *, slots=SLOTS, capacity=CAPACITY, graphs=True):
    manifest = load_manifest(directory)
    host = OrtDecoder(directory, manifest, provider=Cpu(1), slots=slots, capacity=capacity)
    there = device(graphs=graphs)
    return host, OrtCudaDecoder(directory, manifest, device=there, slots=slots, capacity=capacity)


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_logits_on_the_device_are_those_on_the_host(exported, form, graphs):
    host, device = open_pair(exported("internvl2-tiny", **form), graphs=graphs)
    for expected, found in zip(a_conversation(host), a_conversation(device), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)


@pytest.fixture
def graph_ids(monkeypatch):
    """The CUDA graph of every run since, in order."""
    ids, run_options = [], inference.run_options

    def watched(graph, **options):
        ids.append(graph)
        return run_options(graph, **options)

    monkeypatch.setattr(inference, "run_options", watched)
    return ids


def test_decode_steps_are_one_graph_for_each_block_of_slots_and_prefill_is_none(exported, graph_ids):
    _, session = open_pair(exported("internvl2-tiny"), slots=6)
    for first, past, graph in [
        (0, [0], 1),
        (0, [1], 1),
        (3, [0], 2),
        (0, [2, 0], 3),  # slots 0 and 1
        (1, [0, 0], 4),  # in slots 0 to 3
        (0, [3, 0, 0, 1], 4),
        (4, [0, 0], 5),
        (3, [2, 1], 6),  # all six
        (0, [4], 1),
    ]:
        session.forward(step(session, first, past, wanted=[0]))
        assert graph_ids.pop() == graph
    session.forward(step(session, 5, [0], new=9, wanted=[8]))
    assert graph_ids == [-1]


def test_rows_beside_a_step_keep_what_they_cached(exported):
    host, device = open_pair(exported("internvl2-tiny"))
    for session in (host, device):
        session.forward(step(session, 1, [0], new=40))
        for i in range(3):
            session.forward(step(session, 0, [i], wanted=[0]))
            session.forward(step(session, 2, [i], wanted=[0]))
            session.forward(step(session, 2, [i + 1, 0], wanted=[0]))
    expected, found = (each.forward(step(each, 1, [40], wanted=[0])) for each in (host, device))
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)


def test_a_slot_that_is_full_is_not_written_by_its_neighbours(exported):
    host, device = open_pair(exported("internvl2-tiny"), slots=4, capacity=16)
    for session in (host, device):
        session.forward(step(session, 1, [0], new=15))
        session.forward(step(session, 1, [15], wanted=[0]))
        session.forward(step(session, 0, [0], wanted=[0]))
        session.forward(step(session, 2, [0, 0], wanted=[0, 1]))
    expected, found = (each.forward(step(each, 1, [15], wanted=[0])) for each in (host, device))
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("form", FORMS[:2], ids=str)
def test_a_copied_prefix_answers_as_its_source(exported, form):
    _, session = open_pair(exported("internvl2-tiny", **form))
    session.forward(step(session, 0, [0], new=30))
    session.copy(0, 3, 20)
    again = step(session, 0, [20], wanted=[0])
    expected = session.forward(again)
    found = session.forward(
        again.__class__(3, again.inputs_embeds, again.past_lengths, again.logit_positions)
    )
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)


def test_more_logits_than_slots_come_in_parts(exported):
    host, device = open_pair(exported("internvl2-tiny"), slots=2)
    expected, found = (
        each.forward(step(each, 1, [0], new=21, wanted=range(1, 21))) for each in (host, device)
    )
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)


def test_a_step_beyond_the_slot_is_refused(exported):
    _, session = open_pair(exported("internvl2-tiny"), capacity=16)
    with pytest.raises(InvalidInput, match="10 cached and 7 new tokens exceed the slot's capacity of 16"):
        session.forward(step(session, 0, [10], new=7))


@pytest.mark.parametrize("kind", ["decoder", "vision"])
def test_too_little_memory_is_told_with_all_that_is_to_be_loaded_before_a_graph_is_opened(
    exported, monkeypatch, kind
):
    directory, there = exported("internvl2-tiny"), device(free_bytes=1 << 20)
    manifest = load_manifest(directory)
    monkeypatch.setattr("vitrail.session.cuda.open_session", None)
    decoder = partial(OrtCudaDecoder, slots=64, capacity=256)
    session = {"decoder": decoder, "vision": OrtCudaVision}[kind]
    with pytest.raises(OptionError) as refused:
        session(directory, manifest, device=there)
    stages = {"decoder": ["decoder"], "vision": ["vision_encoder", "projector"]}[kind]
    parts = [f"{what} of {stage}" for what in ("weights", "activations") for stage in stages]
    for words in (
        "of GPU memory are needed (",
        *parts,
        "inputs and outputs",
        "1.00 MiB are free",
        "fewer slots",
    ):
        assert words in str(refused.value)
    assert not there.driver.held


def test_a_step_answers_with_tokens_and_with_logits_where_a_row_asks_for_them(exported):
    host, device = open_pair(exported("internvl2-tiny"))
    draws = [Draw(), None, Draw(0.9, top_k=50, top_p=0.8, uniform=0.7)]
    for session in (host, device):
        session.forward(step(session, 0, [0], new=9))
    given = step(host, 0, [9, 0, 0, 0], wanted=[0, 2, 3])
    logits, found = host.forward(given), device.sample(given, draws)
    assert found[0] == logits[0].argmax()
    np.testing.assert_allclose(found[1], logits[1], atol=2e-5, rtol=0)
    assert found[2] == draw(logits[2], draws[2], 0.7)
    assert device.sample(step(device, 3, [1], new=5), []) == []
    assert device.sample(step(device, 3, [6], new=5, wanted=[4]), [Draw()]) == [
        device.forward(step(device, 3, [6], new=5, wanted=[4]))[0].argmax()
    ]


def test_an_engine_says_on_a_device_what_it_says_on_the_host(exported):
    """Sampled, penalized and greedy answers at once, by the same seeds."""
    directory, manifest = exported("internvl2-tiny"), load_manifest(exported("internvl2-tiny"))
    options = [
        {"temperature": 0},
        {"temperature": 1.0, "top_k": 20, "seed": 5, "n": 2},
        {"temperature": 0.8, "repetition_penalty": 1.2, "seed": 6},
        {"temperature": 0, "logprobs": 2},
    ]

    def answers(session):
        tokenizer = load_tokenizer(directory, manifest.tokenizer)
        decoder = Decoder(session, tokenizer, manifest.tokenizer, Settings(slots=SLOTS))
        vision = OrtVision(directory, manifest, provider=Cpu(1))
        with Engine(manifest=manifest, tokenizer=tokenizer, vision=vision, decoder=decoder) as engine:
            streams = [engine.stream("Say it.", max_tokens=12, ignore_eos=True, **each) for each in options]
            return [[choice.token_ids for choice in collect(stream).choices] for stream in streams]

    host, device = open_pair(directory)
    assert answers(device) == answers(host)


@pytest.mark.parametrize("form", [{}, {"vision_precision": "float16"}, {"vision_precision": "int8"}], ids=str)
def test_vision_on_the_device_is_that_on_the_host(exported, form):
    directory = exported("internvl2-tiny", **form)
    manifest = load_manifest(directory)
    tiles = np.random.default_rng(0).integers(0, 256, (5, 3, *[manifest.vision.tile_size] * 2), np.uint8)
    host = OrtVision(directory, manifest, provider=Cpu(1), tiles_per_run=2)
    there = OrtCudaVision(directory, manifest, device=device(), tiles_per_run=2)
    features, expected = there.encode(tiles), host.encode(tiles)
    assert features.dtype == expected.dtype
    np.testing.assert_allclose(features, expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(there.project(features), host.project(expected), atol=1e-5, rtol=0)
    np.testing.assert_allclose(there.see(tiles), host.see(tiles), atol=1e-5, rtol=0)
    assert there.project(there.encode(tiles[:0])).shape == host.project(host.encode(tiles[:0])).shape


@pytest.mark.parametrize("form", FORMS[:2], ids=str)
def test_nothing_in_a_decoder_of_dialect_ort_is_computed_on_the_host(exported, form):
    """A CUDA graph holds no copies from and to it; onnxruntime refuses to capture what has some."""
    graph = onnx.load(exported("internvl2-tiny", **form) / "decoder.onnx", load_external_data=False).graph
    assert not {node.op_type for node in graph.node} & {
        "Shape",
        "Size",
        "Range",
        "NonZero",
        "ConstantOfShape",
    }
