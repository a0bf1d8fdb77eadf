"""A real server over raw gRPC: batching across requests, every kind of bad input, aborts and deadlines."""

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc as triton
from tests.repository.bad_inputs import BAD_INPUTS
from tests.repository.raw import Answer, ask, ints, tensor, text
from tests.repository.watching import waiting
from tritonclient.utils import InferenceServerException

from vitrail.client.wire import delta_from_json
from vitrail.manifest import load_manifest
from vitrail.providers import Cpu
from vitrail.session.ort import OrtVision
from vitrail.triton.processes import wait_until

pytestmark = pytest.mark.server

FOREVER = {"options": text(json.dumps({"ignore_eos": True, "max_tokens": 7000}))}
# Triton's own checks of what config.pbtxt declares.
REFUSED_BY_TRITON = {
    "tiles of floats": ({"tiles": np.zeros((1, 3, 448, 448), np.float32)}, "expects 'UINT8'"),
    "tiles without a batch": ({"tiles": np.zeros((3, 448, 448), np.uint8)}, "unexpected shape"),
    "tiles of four colours": ({"tiles": np.zeros((1, 4, 448, 448), np.uint8)}, "unexpected shape"),
    "two questions in one": ({"text_input": np.array([b"a", b"b"], np.object_)}, "unexpected shape"),
    "wide max_tokens": ({"max_tokens": np.array([4], np.int64)}, "expects 'INT32'"),
    "unknown input": ({"colour": text("red")}, "colour"),
}


@pytest.fixture
def tiles():
    return np.random.default_rng(7).integers(0, 256, (12, 3, 448, 448), np.uint8)


def describe(server, tiles, model="internvl", **tensors):
    return ask(
        server.grpc_url,
        model,
        text_input="What is this?",
        tiles=tiles,
        max_tokens=ints(12),
        patience_s=90.0,
        **tensors,
    )


def vision_counts(server):
    """Tiles, executions and requests of the vision encoder so far."""
    with triton.InferenceServerClient(server.grpc_url) as client:
        stats = client.get_inference_statistics("vision_encoder").model_stats[0]
    return np.array([stats.inference_count, stats.execution_count, stats.inference_stats.success.count])


def vision_batches(server):
    """How often the vision encoder ran how many tiles at once, so far."""
    with triton.InferenceServerClient(server.grpc_url) as client:
        stats = client.get_inference_statistics("vision_encoder").model_stats[0]
    return Counter({batch.batch_size: batch.compute_infer.count for batch in stats.batch_stats})


def infer(server, model, name, array, *, output):
    with triton.InferenceServerClient(server.grpc_url) as client:
        return client.infer(model, [tensor(name, array)]).as_numpy(output)


def test_tiles_of_concurrent_requests_share_a_run_and_every_answer_is_its_solo_one(server, tiles):
    pictures = [
        tiles[:1],
        tiles[1:4],
        tiles[4:6],
        tiles[6:7],
        tiles[7:12],
        tiles[3:5],
        tiles[5:6],
        tiles[2:7],
    ]
    solo = [describe(server, picture).text for picture in pictures]
    before = vision_counts(server)
    # While the encoder works on tiles that no cache knows, the others wait for it together.
    unknown = np.random.default_rng(9).integers(0, 256, (40, 3, 448, 448), np.uint8)
    with ThreadPoolExecutor(2 + len(pictures)) as pool:
        busy = [
            pool.submit(infer, server, "vision_encoder", "tiles", half, output="features")
            for half in np.split(unknown, 2)
        ]
        assert wait_until(lambda: waiting(server, "vision_encoder"), within_s=60, every_s=0.01)
        together = [answer.text for answer in pool.map(lambda picture: describe(server, picture), pictures)]
        for each in busy:
            each.result()
    counted, executions, requests = vision_counts(server) - before
    assert together == solo
    assert len(set(solo)) > 1
    assert counted == sum(map(len, pictures)) + len(unknown)
    assert requests == len(pictures) + 2
    assert executions < len(pictures) + 2, "no two requests shared a run"


def test_a_backlog_is_no_single_run_while_a_large_picture_runs_whole(server):
    pictures = np.random.default_rng(8).integers(0, 256, (60, 3, 448, 448), np.uint8)
    parts = [pictures[:20], *np.split(pictures[20:], 8)]
    before = vision_batches(server)
    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(lambda part: infer(server, "vision_encoder", "tiles", part, output="features"), parts))

    def runs():
        return vision_batches(server) - before

    # A run is counted a moment after its answers.
    assert wait_until(lambda: sum(runs().elements()) == len(pictures), within_s=60)
    assert runs()[20] == 1
    assert max(size for size in runs() if size != 20) <= 16


def test_more_tiles_than_one_run_holds_are_split_and_none_is_lost(server, tiles):
    vision = OrtVision(
        server.artifacts, load_manifest(server.artifacts), provider=Cpu(threads=1), tiles_per_run=12
    )
    features = infer(server, "vision_encoder", "tiles", tiles, output="features")
    np.testing.assert_allclose(features, vision.encode(tiles), atol=1e-4)
    embeds = infer(server, "projector", "features", features, output="image_embeds")
    np.testing.assert_allclose(embeds, vision.project(features), atol=1e-4)


def test_both_routes_and_embeds_made_by_the_client_give_the_same_answer(server, tiles):
    expected = describe(server, tiles[:5], num_tiles=ints(2, 3))
    assert expected.texts
    assert describe(server, tiles[:5], "decoder", num_tiles=ints(2, 3)).text == expected.text
    features = infer(server, "vision_encoder", "tiles", tiles[:5], output="features")
    embeds = infer(server, "projector", "features", features, output="image_embeds")
    own = ask(
        server.grpc_url,
        "decoder",
        text_input="What is this?",
        image_embeds=embeds,
        num_tiles=ints(2, 3),
        max_tokens=ints(12),
    )
    assert own.text == expected.text


def test_the_report_tells_the_time_that_pictures_took_on_both_routes(server, tiles):
    for model in ("internvl", "decoder"):
        report = delta_from_json(describe(server, tiles, model).deltas[-1]).report
        assert report.timings.vision_ms > 1
        assert report.timings.total_ms > report.timings.vision_ms
        assert report.prompt_tokens > 12 * 256


def test_bad_inputs_are_refused_by_name_while_another_stream_goes_on(server):
    running = threading.Event()
    answers = []

    def stream():
        running.set()
        answers.append(ask(server.grpc_url, "decoder", text_input="hi", options=options))

    options = text(json.dumps({"ignore_eos": True, "max_tokens": 400}))
    solo = ask(server.grpc_url, "decoder", text_input="hi", options=options)
    thread = threading.Thread(target=stream)
    thread.start()
    running.wait()
    for name, (tensors, words) in {**BAD_INPUTS, **REFUSED_BY_TRITON}.items():
        answer = ask(server.grpc_url, "decoder", **tensors)
        assert answer.error is not None, name
        assert words in answer.error, name
        assert not answer.texts, name
        assert "Traceback" not in answer.error, name
        assert "site-packages" not in answer.error, name
    thread.join()
    assert answers[0].text == solo.text


def test_a_bad_picture_fails_alone_in_the_ensemble(server, tiles):
    expected = describe(server, tiles[:2]).text
    bad = np.zeros((1, 3, 224, 224), np.uint8)
    with ThreadPoolExecutor(4) as pool:
        good = [pool.submit(describe, server, tiles[:2]) for _ in range(3)]
        refused = pool.submit(describe, server, bad).result()
    assert "[invalid_input] input 'tiles' is uint8 [1, 3, 224, 224]; this model takes" in refused.error
    assert [future.result().text for future in good] == [expected] * 3


def test_more_tiles_than_a_request_may_have_are_refused_on_both_routes(server):
    tiles = np.zeros((129, 3, 448, 448), np.uint8)
    assert "batch-size must be <= 128" in describe(server, tiles).error
    assert "[prompt_too_long]" in describe(server, tiles, "decoder").error


def test_no_tiles_is_text_alone_for_the_decoder_and_an_error_for_the_ensemble(server):
    none = np.zeros((0, 3, 448, 448), np.uint8)
    assert describe(server, none, "decoder").texts
    assert "tiles" in describe(server, none).error


def test_the_projector_refuses_features_of_another_model(server):
    with pytest.raises(
        InferenceServerException, match=r"\[invalid_input\] input 'features' is \[1, 256, 128\]"
    ):
        infer(server, "projector", "features", np.zeros((1, 256, 128), np.float32), output="image_embeds")


def abort(server, request_id):
    answer = ask(server.grpc_url, "decoder", abort=request_id)
    assert answer.error is None
    assert not answer.texts
    return answer


@pytest.mark.parametrize("model", ["internvl", "decoder"])
def test_an_abort_ends_a_running_request_and_keeps_what_it_has(server, tiles, model):
    answer = Answer()
    question = {"text_input": "hi", "tiles": tiles[:1], **FOREVER}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(
            ask, server.grpc_url, model, request_id=f"long-{model}", answer=answer, **question
        )
        answer.wait_until_begun()
        abort(server, f"long-{model}")
        asked.result(60)
    last = delta_from_json(answer.deltas[-1])
    assert last.finish_reason == "cancelled"
    assert 0 < last.report.completion_tokens < 7000


def test_an_abort_that_overtakes_its_request_cancels_it_on_arrival(server, tiles):
    abort(server, "on-its-way")
    answer = ask(
        server.grpc_url, "internvl", request_id="on-its-way", text_input="hi", tiles=tiles[:1], **FOREVER
    )
    assert delta_from_json(answer.deltas[-1]).finish_reason == "cancelled"


def test_an_id_in_use_is_refused(server):
    answer = Answer()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(
            ask, server.grpc_url, "decoder", request_id="mine", text_input="hi", answer=answer, **FOREVER
        )
        answer.wait_until_begun()
        second = ask(server.grpc_url, "decoder", request_id="mine", text_input="hi")
        abort(server, "mine")
        first.result(60)
    assert "'mine'" in second.error


@pytest.mark.parametrize("model", ["internvl", "decoder"])
def test_triton_s_own_timeout_is_the_deadline_of_a_request_without_one(server, tiles, model):
    answer = ask(server.grpc_url, model, timeout_us=1_000_000, text_input="hi", tiles=tiles[:1], **FOREVER)
    assert delta_from_json(answer.deltas[-1]).finish_reason == "deadline"
