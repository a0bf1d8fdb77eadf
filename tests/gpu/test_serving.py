"""Many streams on one GPU: none changes another, what is cancelled frees its place, and memory comes back."""

import gc
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import REFERENCE, case_messages, expected_cases
from tests.gpu.agreement import assert_same_answer
from tests.gpu.engines import BUILDERS, FAKE, build, provider_of

from vitrail.engine import Engine
from vitrail.providers import Cpu, Cuda
from vitrail.session.cuda_driver import LibCuda

CHECKPOINT = "internvl3-tiny"
STREAMS = 16
CONTEXT_TOKENS = 2048
PICTURE = {"type": "image", "image": REFERENCE / "images" / "coffee.png"}
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module", params=[None, *BUILDERS], ids=lambda each: each or "onnxruntime")
def builder(request):
    """Whose engines are served; None for ONNX Runtime's graphs."""
    return request.param


@pytest.fixture(scope="module")
def provider(builder, provider):
    return provider if builder is None else provider_of(builder)


@pytest.fixture(scope="module")
def directory(builder, exported, tmp_path_factory):
    half = {"precision": "float16", "vision_precision": "float16"}
    if builder is None:
        return exported(CHECKPOINT, **half)
    shape = {"slots": STREAMS, "context_tokens": CONTEXT_TOKENS, "max_tiles": 5, "chunk": 256}
    export = exported(CHECKPOINT, dialect="standard", **half)
    return build(export, tmp_path_factory.mktemp("engines"), builder=builder, **shape)


def load(directory, provider, **settings):
    settings = {"slots": STREAMS, "context_tokens": 1024, "prefix_cache": False, **settings}
    return Engine.load(directory, provider=provider, **settings)


@pytest.fixture(scope="module")
def engine(directory, provider):
    with load(directory, provider) as loaded:
        yield loaded


def question(number):
    """Every other one with a picture; prompts and answers of many lengths."""
    text = f"Question {number}: " + "what is in the cup? " * (1 + number % 5)
    content = [PICTURE, {"type": "text", "text": text}] if number % 2 else text
    return [{"role": "user", "content": content}]


def options(number):
    return {"max_tokens": 5 + 3 * (number % 6), "max_tiles": 1, "ignore_eos": True, "logprobs": 20}


def answer(engine, number):
    return engine.chat(question(number), **options(number)).choices[0]


def in_time(condition):
    """Whether it comes true soon: a slot is free a moment after the last token of its answer is told."""
    end_s = time.monotonic() + 10
    while not condition() and time.monotonic() < end_s:
        time.sleep(0.01)
    return condition()


def test_sixteen_streams_at_once_answer_as_each_alone(engine):
    with ThreadPoolExecutor(STREAMS) as pool:
        together = list(pool.map(lambda number: answer(engine, number), range(STREAMS)))
    assert engine.statistics.totals.decode_steps < sum(len(each.token_ids) for each in together)
    for number, found in enumerate(together):
        assert_same_answer(found, answer(engine, number))


def test_a_cancelled_stream_leaves_its_slot_and_the_others_alone(engine):
    streams = [
        engine.stream(question(number), **{**options(number), "max_tokens": 60}) for number in range(STREAMS)
    ]
    first = [next(stream) for stream in streams]
    for stream in streams[::2]:
        stream.close()
    kept = [list(stream) for stream in streams[1::2]]
    assert all(deltas[-1].finish_reason == "length" for deltas in kept)
    lengths = [
        len(begun.token_ids) + sum(len(d.token_ids) for d in rest)
        for begun, rest in zip(first[1::2], kept, strict=True)
    ]
    assert lengths == [60] * (STREAMS // 2)
    assert_same_answer(answer(engine, 3), answer(engine, 3))
    assert in_time(lambda: (engine.statistics.live_requests, engine.statistics.slots_used) == (0, 0))


def test_a_request_that_fails_ends_alone(engine):
    with ThreadPoolExecutor(4) as pool:
        good = [pool.submit(answer, engine, number) for number in range(3)]
        bad = pool.submit(engine.chat, question(1), max_tokens=5000)
        assert "max_tokens" in str(bad.exception())
        assert all(each.result().finish_reason == "length" for each in good)


def used_bytes(provider):
    """Device memory in use, whoever uses it; this process's on a CPU."""
    if FAKE or isinstance(provider, Cpu):
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
    driver = LibCuda(provider.device_id)
    driver.activate()
    free, total = driver.memory_bytes()
    return total - free


def test_memory_comes_back_when_an_engine_is_closed(directory, provider):
    """The first engine leaves what the driver and the libraries keep; every further one must leave nothing."""
    left = []
    for _ in range(4):
        with load(directory, provider, slots=4) as engine:
            answer(engine, 1)
        del engine
        gc.collect()
        left.append(used_bytes(provider))
    assert max(left[2:]) - left[1] < (16 << 20)


def test_the_cache_takes_what_its_slots_hold(directory, provider):
    if not isinstance(provider, Cuda):
        pytest.skip(
            "a CPU's cache takes memory as tokens arrive, an engine's for the slots that it was built for"
        )
    taken = []
    for slots in (2, 34):
        before = used_bytes(provider)
        with load(directory, provider, slots=slots, context_tokens=4096) as engine:
            answer(engine, 1)
            taken.append(used_bytes(provider) - before)
            expected = 32 * 4096 * engine.manifest.decoder.kv_bytes_per_token
        del engine
        gc.collect()
    assert 0.9 * expected < taken[1] - taken[0] < 1.3 * expected + (64 << 20)


def test_the_reference_conversation_goes_on_from_what_is_cached(directory, provider):
    expected = expected_cases(CHECKPOINT)["multi_turn"]
    with load(directory, provider, context_tokens=CONTEXT_TOKENS, prefix_cache=True) as engine:
        asked = {"max_tiles": 4, "max_tokens": 8, "ignore_eos": True, "logprobs": 20}
        fresh = engine.chat(case_messages(expected), **asked)
        again = engine.chat(case_messages(expected), **asked)
    assert fresh.report.reused_tokens == 0
    assert again.report.reused_tokens == again.report.prompt_tokens - 1
    assert_same_answer(again.choices[0], fresh.choices[0])


def test_sampled_tokens_follow_the_models_probabilities(engine):
    """top_k 4 at temperature 2: shares of 320 draws within five standard deviations, and no fifth token."""
    top = answer_to_one_token(engine, logprobs=4).logprobs[0].top
    weights = np.exp(np.array([logprob for _, logprob in top]) / 2)
    shares = dict(zip([token for token, _ in top], weights / weights.sum(), strict=True))
    with ThreadPoolExecutor(STREAMS) as pool:
        ask = lambda seed: answer_to_one_token(engine, temperature=2.0, top_k=4, seed=seed)  # noqa: E731
        drawn = [each.token_ids[0] for each in pool.map(ask, range(320))]
    assert set(drawn) <= set(shares)
    for token, share in shares.items():
        assert abs(drawn.count(token) / 320 - share) < 5 * np.sqrt(share * (1 - share) / 320) + 0.01


def test_a_nucleus_leaves_the_least_likely_out(engine):
    top = answer_to_one_token(engine, logprobs=20).logprobs[0].top
    mass = np.cumsum([np.exp(logprob) for _, logprob in top])
    top_p = float(mass[2] - 1e-3)  # three tokens reach it
    drawn = {
        answer_to_one_token(engine, temperature=1.0, top_p=top_p, seed=seed).token_ids[0]
        for seed in range(40)
    }
    assert drawn <= {token for token, _ in top[:3]}


def answer_to_one_token(engine, **given):
    return engine.chat("Draw a letter.", max_tokens=1, ignore_eos=True, **given).choices[0]


def test_the_same_seed_draws_the_same_answer(engine):
    given = {"max_tokens": 12, "ignore_eos": True, "temperature": 1.5, "top_p": 0.9}
    first, again, other = (
        engine.chat("Write.", seed=seed, **given).choices[0].token_ids for seed in (7, 7, 8)
    )
    assert first == again != other


def test_graphs_change_no_answer(directory, provider):
    if isinstance(provider, Cpu):
        pytest.skip("CUDA graphs are a GPU's")
    answers = []
    for graphs in (True, False):
        with load(directory, replace(provider, graphs=graphs)) as engine:
            with ThreadPoolExecutor(5) as pool:
                batch = list(pool.map(lambda number: answer(engine, number), range(5)))
            answers.append([*batch, *(answer(engine, number) for number in range(3))])
    for captured, plain in zip(*answers, strict=True):
        assert_same_answer(captured, plain)
