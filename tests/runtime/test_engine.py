"""The engine on fakes: from messages to completions, several threads, cancelling by closing."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

import vitrail
from vitrail import Delta, Engine, OptionError, PromptTooLong, ServerError
from vitrail.answer import collect
from vitrail.core import Report
from vitrail.decoder import Decoder, Settings
from vitrail.manifest import DecoderContract, Manifest, PromptContract, TokenizerContract, VisionContract
from vitrail.session.fake import IMAGE_CONTEXT_ID, STOP_ID, ByteTokenizer, FakeDecoder, FakeVision

MANIFEST = Manifest(
    name="fake",
    vitrail="0",
    vision=VisionContract(
        precision="float32", dtype="float32", dialect="ort", tile_size=28, tokens_per_tile=2, feature_size=1
    ),
    decoder=DecoderContract(
        precision="float32",
        dtype="float32",
        dialect="ort",
        chunked_batch=False,
        layers=1,
        kv_heads=1,
        head_dim=8,
        hidden_size=8,
        vocab_size=300,
        context_tokens=400,
    ),
    tokenizer=TokenizerContract(
        kind="tokenizers",
        file="none",
        special={"<IMG_CONTEXT>": IMAGE_CONTEXT_ID},
        added={},
        bos_id=None,
        stop_ids=(STOP_ID,),
    ),
    prompt=PromptContract(template="internvl2_5", system="Be brief.", max_tiles=6),
    artifacts={},
)


def picture(color, size=(56, 28)):
    return Image.new("RGB", size, color)


def ask(color="red", text="What is it?"):
    parts = [{"type": "image", "image": picture(color)}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


def make(session=None, *, vision=None, **settings):
    tokenizer = ByteTokenizer()
    decoder = Decoder(
        session or FakeDecoder(capacity=400), tokenizer, MANIFEST.tokenizer, Settings(**settings)
    )
    vision = vision or FakeVision()
    return Engine(manifest=MANIFEST, tokenizer=tokenizer, vision=vision, decoder=decoder, tiles_per_look=1)


@pytest.fixture
def engine():
    with make() as made:
        yield made


def wait_idle(engine, timeout_s=60.0):
    until_s = time.monotonic() + timeout_s
    while engine.statistics.live_requests:
        assert time.monotonic() < until_s
        time.sleep(0.002)


def test_a_chat_answers_and_reports_pictures_tokens_and_times(engine):
    completion = engine.chat(ask(), max_tokens=5, ignore_eos=True)
    assert completion.finish_reason == "length"
    assert len(completion.choices[0].token_ids) == 5
    (image,) = completion.images
    assert (image.width, image.height, image.grid, image.tiles, image.visual_tokens) == (56, 28, (2, 1), 3, 6)
    assert completion.report.prompt_tokens == len(engine.prompt(ask()).token_ids)
    timings = completion.report.timings
    parts = (timings.preprocess_ms, timings.vision_ms, timings.prefill_ms, timings.decode_ms)
    assert all(part > 0 for part in parts)
    assert sum(parts) + timings.queue_ms == pytest.approx(timings.total_ms)
    assert timings.ttft_ms < timings.total_ms


def test_the_answer_depends_on_the_picture_and_on_nothing_else(engine):
    red, white, again = (
        engine.chat(ask(color), max_tokens=8, ignore_eos=True).choices[0].token_ids
        for color in ("red", "white", "red")
    )
    assert red == again != white


def test_a_stream_spells_the_chat(engine):
    deltas = list(engine.stream(ask(), max_tokens=8, ignore_eos=True))
    assert [delta.report is None for delta in deltas] == [True] * 7 + [False]
    assert collect(deltas).choices == engine.chat(ask(), max_tokens=8, ignore_eos=True).choices


def test_a_prompt_shows_text_ids_and_tiles_and_runs_nothing():
    session = FakeDecoder(capacity=400)
    with make(session) as engine:
        prompt = engine.prompt(ask(), max_tiles=1, temperature=1.0)
        assert engine.prompt(ask()).tiles.shape == (3, 3, 28, 28)
    assert prompt.tiles.shape == (1, 3, 28, 28)
    assert prompt.token_ids.count(IMAGE_CONTEXT_ID) == 2
    assert "Be brief." in prompt.text
    assert "What is it?" in prompt.text
    assert session.steps == []


def test_text_alone_needs_no_vision(engine):
    engine._vision = None
    completion = engine.chat("Hello", max_tokens=3, ignore_eos=True)
    assert completion.report.timings.vision_ms == 0
    assert completion.images == ()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_token": 3}, OptionError),
        ({"temperature": -1}, OptionError),
        ({"n": 5}, OptionError),
        ({"max_tokens": 1000}, PromptTooLong),
    ],
)
def test_what_cannot_be_asked_is_refused_at_once_and_before_vision(engine, options, error):
    engine._vision = None
    with pytest.raises(error):
        engine.stream(ask(), **options)


def test_a_text_beyond_any_context_is_refused_before_its_tokens_are_counted(engine):
    engine._tokenizer = None
    for ask_it in (engine.prompt, engine.chat):
        with pytest.raises(
            PromptTooLong, match=r"text has 5000\d+ bytes, .* 399 tokens, at most 12768 bytes"
        ):
            ask_it("word " * 1_000_000)


def test_answers_of_many_threads_are_their_solo_answers(engine):
    colors = ["red", "yellow", "white", "black", "gray", "pink"]
    options = {"max_tokens": 12, "ignore_eos": True}
    alone = {color: engine.chat(ask(color), **options).choices for color in colors}
    found = {}
    threads = [
        threading.Thread(target=lambda c=color: found.update({c: engine.chat(ask(c), **options).choices}))
        for color in colors
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == alone


class Slow(FakeDecoder):
    def forward(self, step):
        time.sleep(0.002)
        return super().forward(step)


class SlowVision(FakeVision):
    encoded = 0

    def encode(self, tiles):
        self.encoded += len(tiles)
        time.sleep(0.1)
        return super().encode(tiles)


@pytest.mark.parametrize(("deadline_s", "encoded"), [(1e-6, 0), (0.15, 2)])
def test_a_deadline_ends_a_request_before_its_next_tiles_are_encoded(deadline_s, encoded):
    with make(vision=SlowVision()) as engine:
        vision = engine._vision._session
        many = Image.radial_gradient("L").resize((168, 28)).convert("RGB")
        messages = [{"role": "user", "content": [{"type": "image", "image": many}]}]
        assert engine.prompt(messages).tiles.shape[0] == 7
        completion = engine.chat(messages, deadline_s=deadline_s, n=2, temperature=1.0)
    assert [choice.finish_reason for choice in completion.choices] == ["deadline"] * 2
    assert completion.text == ""
    assert vision.encoded <= encoded
    assert completion.images[0].tiles == 7


@pytest.mark.parametrize("leave", ["close", "forget", "raise"])
def test_a_stream_that_is_left_is_cancelled(leave):
    with make(Slow(capacity=400)) as engine:
        deltas = engine.stream("Hello", max_tokens=200, ignore_eos=True)
        next(deltas)
        if leave == "close":
            deltas.close()
            assert list(deltas) == []
        elif leave == "forget":
            del deltas
        else:
            with pytest.raises(KeyboardInterrupt), deltas:
                raise KeyboardInterrupt
        wait_idle(engine)
        assert engine.statistics.totals.completion_tokens < 200


def test_threads_that_share_a_stream_all_come_to_its_end(engine):
    deltas, found = engine.stream("Hello", max_tokens=8, ignore_eos=True), []
    threads = [threading.Thread(target=lambda: found.extend(deltas), daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert sum(len(delta.token_ids) for delta in found) == 8


def test_closing_the_engine_ends_its_streams_with_an_error():
    engine = make(Slow(capacity=400))
    deltas = engine.stream("Hello", max_tokens=200, ignore_eos=True)
    next(deltas)
    engine.close()
    with pytest.raises(ServerError, match="this engine is closed; load another"):
        list(deltas)
    assert list(deltas) == []


def test_a_closed_engine_says_so_before_it_looks_at_a_picture(engine):
    engine.close()
    engine._vision = None
    with pytest.raises(ServerError, match="this engine is closed; load another"):
        engine.chat(ask())


def test_a_completion_is_not_made_of_half_an_answer():
    with pytest.raises(ServerError, match="without its report"):
        collect([Delta(text="half")])
    with pytest.raises(ServerError, match="answer 0 broke off"):
        collect([Delta(0, "half"), Delta(1, "whole", finish_reason="stop", report=Report(1, 1))])


def test_a_completion_joins_interleaved_answers_by_their_index():
    deltas = [Delta(1, "b"), Delta(0, "a", (1,)), Delta(0, "c", (2,), finish_reason="stop")]
    completion = collect([*deltas, Delta(1, "d", finish_reason="length", report=Report(3, 4))])
    assert [(choice.text, choice.token_ids, choice.finish_reason) for choice in completion.choices] == [
        ("ac", (1, 2), "stop"),
        ("bd", (), "length"),
    ]


def test_a_cache_or_a_budget_of_threads_beyond_the_machine_is_refused(exported):
    with pytest.raises(OptionError, match=r"may take .* GiB of memory .*kv cache .*this machine has"):
        Engine.load(exported("internvl3-tiny"), slots=10**7, context_tokens=4096)
    with pytest.raises(OptionError, match="threads is 10000, but this process may use"):
        Engine.load(exported("internvl3-tiny"), threads=10000)


@pytest.mark.parametrize("directory", [None, 5, b"artifacts", ["artifacts"]])
def test_a_directory_that_is_no_path_is_refused(directory):
    kind = type(directory).__name__
    with pytest.raises(
        OptionError, match=f"directory is of type {kind}; give the path of one that `vitrail export`"
    ):
        Engine.load(directory)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"threads": "2"}, "threads is '2'; it must be an integer"),
        ({"threads": 1.5}, r"threads is 1\.5; it must be an integer"),
        ({"vision_threads": "1"}, "vision_threads is '1'; it must be an integer"),
        ({"tiles_per_run": None}, "tiles_per_run is None; it must be an integer"),
        ({"tiles_per_run": 2.5}, r"tiles_per_run is 2\.5; it must be an integer"),
        ({"feature_cache_bytes": "1"}, "feature_cache_bytes is '1'; it must be an integer"),
        ({"provider": None}, "the provider is of type NoneType; give a name such as 'cpu'"),
        ({"provider": 0}, "the provider is of type int; give a name such as 'cpu'"),
    ],
)
def test_a_setting_of_a_wrong_type_is_refused_before_anything_is_loaded(settings, words):
    with pytest.raises(OptionError, match=words):
        Engine.load("no such directory", **settings)


def test_every_public_name_is_there_and_in_order():
    assert sorted(vitrail.__all__) == vitrail.__all__ == dir(vitrail)
    assert all(hasattr(vitrail, name) for name in vitrail.__all__)
    with pytest.raises(AttributeError, match="Enigne"):
        _ = vitrail.Enigne


def test_importing_vitrail_loads_no_engine_client_or_runtime():
    heavy = "{'onnxruntime', 'torch', 'PIL', 'tritonclient', 'pydantic', 'grpc'}"
    code = f"import sys, vitrail; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_engine_module_loads_no_onnxruntime():
    code = (
        "import sys, vitrail.engine; print(sorted({'onnxruntime', 'torch', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_image_embeds_reach_their_places():
    session = FakeDecoder(capacity=400)
    with make(session) as engine:
        engine.chat(ask(), max_tokens=1)
        ids = np.array(engine.prompt(ask()).token_ids)
        vision = engine._vision._session
        expected = vision.project(vision.encode(engine.prompt(ask()).tiles)).reshape(-1, 8)
    assert np.allclose(session.cache[0, : len(ids)][ids == IMAGE_CONTEXT_ID], expected)
