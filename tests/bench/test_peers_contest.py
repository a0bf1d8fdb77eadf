"""The contest's own parts: who takes part, what a stage is, the machine's limits, the one checkpoint of all, the card."""

import json
import sys

import numpy as np
import pytest
from bench.peers import __main__ as contest_command
from bench.peers import card as cards
from bench.peers.contest import CONTESTANTS, EXPORTS, OURS, STAGES, Stage
from bench.peers.install import HERE
from bench.peers.limits import least_seconds
from bench.peers.prepare import copy_tensors, write_inputs
from bench.peers.rounds import Sample, Turns
from safetensors.numpy import load_file, save_file
from typer.main import get_command

from vitrail.cli import app
from vitrail_export.published import PUBLISHED

CONFIG = PUBLISHED["internvl2-2b"].config
DECODE = Stage("language", "decode", 4, past=100, steps=16)


@pytest.mark.parametrize("part", CONTESTANTS)
def test_every_contestant_has_a_name_of_its_own_a_module_and_an_environment(part):
    entries = CONTESTANTS[part]
    assert len({entry.name for entry in entries}) == len(entries)
    for entry in entries:
        assert (HERE / "workers" / f"{entry.module}.py").is_file()
        assert entry.ours or (HERE / "requirements" / f"{entry.environment}.txt").is_file()
        assert (entry.environment == OURS) == entry.name.startswith("vitrail ")
        assert not entry.ours or entry.extra["artifacts"] in EXPORTS


@pytest.mark.parametrize("environment", sorted(HERE.glob("requirements/*.txt")), ids=lambda path: path.stem)
def test_requirements_are_pinned(environment):
    lines = [line for line in environment.read_text().splitlines() if not line.startswith("--")]
    assert lines
    assert all("==" in line for line in lines)


@pytest.mark.parametrize("name", EXPORTS)
def test_our_exports_are_commands_of_ours(name):
    command = get_command(app).commands["export"]
    taken = command.make_context("export", ["checkpoint", "--out", "out", *EXPORTS[name]]).params
    assert taken["precision"] == EXPORTS[name][1]


def test_a_speed_is_time_for_a_tile_and_tokens_in_a_second():
    assert Stage("vision", "vision", 7).speed(1.4) == pytest.approx(200)
    assert Stage("language", "prefill", 512).speed(2.0) == 256
    assert DECODE.speed(2.0) == 32


def test_rows_that_grow_are_asked_for_room_for_every_round_and_the_warm_up():
    assert DECODE.request(rounds=3) == {"stage": "decode", "rows": 4, "past": 100, "steps": 16, "room": 64}


def test_the_stages_have_names_of_their_own():
    assert len({stage.what for stage in STAGES}) == len(STAGES)


def test_a_tile_is_0_73_tflop_and_a_token_of_a_prompt_3_gflop():
    entry = CONTESTANTS["vision"][0]
    rates = {"matrix_tflop_s": 1.0, "read_gb_s": 17.5}
    assert least_seconds(CONFIG, Stage("vision", "vision", 1), entry, **rates) == pytest.approx(
        0.73, rel=0.03
    )
    prompt = least_seconds(CONFIG, Stage("language", "prefill", 1900), entry, **rates)
    assert 3.0e-3 < prompt / 1900 < 3.4e-3


def test_decoding_reads_weights_once_a_step_and_the_cache_once_a_row():
    by_name = {entry.name: entry for entry in CONTESTANTS["language"]}
    rates = {"matrix_tflop_s": 1.0, "read_gb_s": 10.0}
    one, four = (Stage("language", "decode", rows, past=2000) for rows in (1, 4))
    wide, narrow = by_name["onnxruntime-genai int4"], by_name["OpenVINO GenAI int4"]
    cache = 2 * 24 * 1024 * 2000
    grown = least_seconds(CONFIG, four, wide, **rates) - least_seconds(CONFIG, one, wide, **rates)
    assert grown == pytest.approx(3 * 4 * cache / 10e9)
    saved = least_seconds(CONFIG, one, wide, **rates) - least_seconds(CONFIG, one, narrow, **rates)
    assert saved == pytest.approx(3 * cache / 10e9)


def test_a_part_of_a_checkpoint_is_copied_without_its_prefix(tmp_path):
    tensors = {"language.a": np.arange(6, dtype=np.float16).reshape(2, 3), "language.b": np.ones(4, np.int8)}
    save_file({"vision.a": np.zeros(5, np.float32), **tensors}, tmp_path / "all.safetensors")
    copy_tensors(tmp_path / "all.safetensors", tmp_path / "part.safetensors", prefix="language.")
    found = load_file(tmp_path / "part.safetensors")
    assert {name: array.tolist() for name, array in found.items()} == {
        "a": tensors["language.a"].tolist(),
        "b": [1, 1, 1, 1],
    }


def test_inputs_are_the_same_every_time(tmp_path):
    config = {"vision_config": {"image_size": 64}, "text_config": {"vocab_size": 50}}
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        write_inputs(tmp_path / name, config)
    one, other = (np.load(tmp_path / name / "inputs.npz") for name in ("one", "other"))
    assert one["tiles"].shape == (7, 3, 64, 64)
    assert one["prompt"].max() < 50
    assert all((one[name] == other[name]).all() for name in one.files)


class Ring:
    """What a ring leaves behind."""

    def __init__(self):
        self.part = "language"
        self.versions = {"vitrail int4": {"onnxruntime": "1"}}
        self.peaks_bytes = {"vitrail int4": 3 << 30}
        self.failures = {"llama.cpp Q4_0": "ended with SIGILL"}


@pytest.fixture
def opened(tmp_path):
    def opening():
        settings = {"name": "tiny", "layers": 1, "threads": 2, "config": CONFIG, "rounds": 2}
        return cards.Card(tmp_path / "peers-tiny.json", **settings)

    return opening


def turns(**seconds):
    return Turns({name: [Sample(each, 1.0, 10.0) for each in found] for name, found in seconds.items()})


def test_a_card_shows_who_won_and_who_could_not_be_measured(opened, tmp_path):
    entries, card = CONTESTANTS["language"], opened()
    card.add(DECODE_1, entries, turns(**{"vitrail int4": [2.0, 4.0], "onnxruntime-genai int4": [4.0, 6.0]}))
    card.note(Ring(), entries, {"vitrail int4": {"logits_cosine": 0.95, "first_token_share": 0.5}})
    card.finish(plots=tmp_path)
    text = card.text()
    assert (
        "met    decode, batch 1 behind 1900 tokens, 4 bits: vitrail int4 is 1.75x onnxruntime-genai int4"
        in text
    )
    assert "ended with SIGILL" in text
    line = next(line for line in text.splitlines() if "vitrail int4 " in line)
    assert "3.00 GiB" in line
    assert "0.9500, 50%" in line
    assert (tmp_path / "peers-tiny.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "peers-tiny.json").read_text())["table"][-1]["who"] == "llama.cpp Q4_0"
    assert not card.ours_failed


def test_a_run_of_one_stage_keeps_the_figures_of_the_others(opened):
    entries, first = CONTESTANTS["language"], opened()
    first.add(DECODE_1, entries, turns(**{"vitrail int4": [2.0]}))
    second = opened()
    second.add(PREFILL, entries, turns(**{"vitrail int8": [1.0]}))
    assert [row["what"] for row in second.fields["rows"]] == [PREFILL.what, DECODE_1.what]
    assert [run["stages"] for run in second.fields["runs"]] == [[DECODE_1.what], [PREFILL.what]]


DECODE_1 = next(stage for stage in STAGES if stage.kind == "decode" and stage.size == 1)
PREFILL = next(stage for stage in STAGES if stage.kind == "prefill")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--sizes", "3"], r"no stage has a size of \[3\]; give some of \[1, 4, 8\]"),
        (["--only", "nobody"], r"no contestant is called \['nobody'\]; there are vitrail int4"),
        (["--rounds", "0"], "--rounds is 0; give at least 1"),
    ],
)
def test_a_contest_of_nothing_is_told_before_anything_is_written(options, told, tmp_path, monkeypatch):
    where = [text for name in ("--work", "--out", "--plots") for text in (name, str(tmp_path))]
    monkeypatch.setattr(sys, "argv", ["bench.peers", "--stages", "decode", *where, *options])
    with pytest.raises(SystemExit, match=f"nothing measured: {told}"):
        contest_command.main()
    assert not list(tmp_path.iterdir())
