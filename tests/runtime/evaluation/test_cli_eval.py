"""`vitrail eval` from end to end: against a scripted server, and once with a real engine."""

import json
import signal
import subprocess
import sys
import threading

import pytest
from typer.testing import CliRunner

from vitrail.cli import app
from vitrail.cli import eval as evaluation
from vitrail.client.fake import END, FakeServer, inputs
from vitrail.core import Delta
from vitrail.evaluation.results import read_results


def answer(text):
    return (Delta(text=text, token_ids=(1,)), END)


def vitrail(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def asked(docvqa, tmp_path):
    """asked(url, *more): the DocVQA fixture, one sample at a time."""

    def run(url, *more):
        arguments = ("--task", "docvqa", "--data", docvqa, "--url", url, "--concurrency", 1, "--max-tiles", 4)
        return vitrail("eval", *arguments, "--out", tmp_path / "out.jsonl", *more)

    return run


ANSWERS = (answer("1/8/93"), answer("Ann Leo"), answer("nothing"))


def test_a_table_and_one_json_line_on_stdout_every_sample_in_the_file(asked, tmp_path):
    with FakeServer(*ANSWERS) as server:
        result = asked(server.url, "--precision", "fp32")
    assert result.exit_code == 0, result.stderr
    *table, last = result.stdout.splitlines()
    assert table[-1].split()[:3] == ["all", "3", "61.9"]
    fields = json.loads(last)
    assert (fields["score"], fields["n"], fields["precision"]) == (0.619048, 3, "fp32")
    assert list(fields["skills"]) == ["handwritten", "layout"]
    records = {each.id: each for each in read_results(tmp_path / "out.jsonl").records}
    assert (records["101"].prediction, records["101"].score) == ("Ann Leo", pytest.approx(6 / 7))
    assert records["102"].score == 0


def test_the_authors_prompt_and_limits_are_sent(asked):
    with FakeServer(*ANSWERS) as server:
        asked(server.url)
    sent = inputs(server.requests[0])
    text = "".join(part.get("text", "") for part in sent["prompt"]["segments"])
    assert "What is the date? Answer the question using a single word or phrase." in text
    assert sent["options"]["max_tokens"] == 100


def test_json_alone_is_one_line(asked):
    with FakeServer(*ANSWERS) as server:
        result = asked(server.url, "--json")
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout)["planned"] == 3


def test_a_missing_picture_is_counted_named_and_does_not_shrink_the_count_silently(asked, docvqa):
    (docvqa / "val/documents/xnbl0037_2.png").write_bytes(b"no picture")
    with FakeServer(*ANSWERS) as server:
        result = asked(server.url, "--json")
    assert result.exit_code == 0
    assert "skipped: 102: " in result.stderr
    fields = json.loads(result.stdout)
    assert (fields["n"], fields["skipped"], fields["planned"]) == (2, 1, 3)
    assert fields["score"] == pytest.approx((1 + 6 / 7) / 2, abs=1e-6)
    assert fields["score_of_all"] == pytest.approx((1 + 6 / 7) / 3, abs=1e-6)


def test_when_every_picture_is_damaged_there_is_no_result(asked, docvqa):
    for path in (docvqa / "val/documents").iterdir():
        path.write_bytes(b"")
    with FakeServer() as server:
        result = asked(server.url)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "none of 3 samples was answered" in result.stderr


def test_when_the_model_can_answer_nothing_there_is_no_result_either(asked):
    with FakeServer(("[prompt_too_long] 9000 tokens",)) as server:
        result = asked(server.url)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "failed: 100: prompt_too_long" in result.stderr


def test_a_server_that_dies_halfway_keeps_the_results_and_the_run_goes_on_later(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "RETRIES", 0)
    with FakeServer(ANSWERS[0], ("[server] the decoder has died",)) as server:
        died = asked(server.url)
    assert (died.exit_code, died.stdout) == (5, "")
    assert "error: " in died.stderr
    assert "1 of 3 samples are in" in died.stderr
    assert [each.id for each in read_results(tmp_path / "out.jsonl").records] == ["100"]
    with FakeServer(*ANSWERS[1:]) as server:
        resumed = asked(server.url, "--resume", "--json")
    assert len(server.requests) == 2
    fields = json.loads(resumed.stdout)
    assert (fields["n"], fields["score"]) == (3, 0.619048)
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["id"] for line in lines[1:]) == ["100", "101", "102"]


def test_resuming_a_whole_run_asks_nothing_and_reports_the_same(asked):
    with FakeServer(*ANSWERS) as server:
        first = asked(server.url)
        second = asked(server.url, "--resume")
    assert len(server.requests) == 3
    assert first.stdout == second.stdout


def test_a_file_of_another_seed_is_refused(asked):
    with FakeServer(*ANSWERS) as server:
        asked(server.url)
        result = asked(server.url, "--resume", "--seed", 5)
    assert result.exit_code == 2
    assert "is of another run: seed 0 and 5" in result.stderr


def test_a_server_with_another_model_is_refused(asked):
    from vitrail.client.fake import CONTRACT

    with FakeServer(*ANSWERS) as server:
        asked(server.url)
    with FakeServer(*ANSWERS, contract=CONTRACT.replace('"tiny"', '"other"')) as server:
        result = asked(server.url, "--resume")
    assert result.exit_code == 2
    assert "is of another run: model 'tiny " in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "give --task (demo, docvqa"),
        (["--task", "docvqa", "--out", "x"], 2, "give either --model DIR or --url"),
        (["--task", "docvqa", "--out", "x", "--model", "a", "--url", "b"], 2, "give either"),
        (["--task", "none", "--out", "x", "--url", "b"], 2, "task is 'none'"),
        (["--task", "docvqa", "--out", "x", "--url", "b"], 2, "give --data DIR"),
        (["--task", "docvqa", "--out", "x", "--url", "b", "--prompt", "hi"], 2, "must hold {question}"),
        (
            ["--task", "docvqa", "--out", "x", "--url", "127.0.0.1:9", "--data", "DATA"],
            5,
            "cannot be reached",
        ),
        (
            ["--task", "docvqa", "--out", "x", "--model", "/nowhere", "--data", "DATA"],
            3,
            "no artifact directory",
        ),
    ],
)
def test_a_wrong_command_is_one_line_of_error(arguments, code, words, docvqa, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = vitrail("eval", *(str(docvqa) if each == "DATA" else each for each in arguments))
    assert (result.exit_code, result.stdout) == (code, "")
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert words in line
    assert not (tmp_path / "x").exists()


def test_wrong_options_end_the_run_at_once(asked):
    with FakeServer() as server:
        result = asked(server.url, "--max-tiles", 41)
    assert (result.exit_code, server.requests) == (2, [])
    assert "'max_tiles' is 41" in result.stderr


def test_help_shows_an_example():
    assert "Example: vitrail eval --task demo" in vitrail("eval", "--help").stdout
    assert "Example: vitrail eval compare" in vitrail("eval", "compare", "--help").stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_keeps_what_was_answered(docvqa, tmp_path, number, code):
    out, never = tmp_path / "out.jsonl", threading.Event()
    with FakeServer(ANSWERS[0], (Delta(text="1"), never)) as server:
        arguments = ("eval", "--task", "docvqa", "--data", docvqa, "--url", server.url, "--out", out)
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from vitrail.cli import app; app()",
                *map(str, arguments),
                "--concurrency",
                "1",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None:
            if out.exists() and len(out.read_text().splitlines()) == 2 and len(server.requests) == 2:
                break
            never.wait(0.05)
        process.send_signal(number)
        _, told = process.communicate(timeout=120)
        never.set()
    assert process.returncode == code
    assert "1 of 3 samples are in" in told
    assert [each.id for each in read_results(out).records] == ["100"]


def test_a_client_installation_loads_nothing_heavy():
    program = "import sys, vitrail.cli.eval; print(*(name for name in sys.modules if '.' not in name))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert not {"onnxruntime", "torch", "tokenizers", "sentencepiece", "onnx", "grpc"} & set(loaded.split())


def test_a_real_engine_is_judged_in_process_resumed_and_compared(exported, docvqa, tmp_path):
    artifacts = exported("internvl2-tiny")
    common = ("--task", "docvqa", "--data", docvqa, "--model", artifacts, "--max-tokens", 3, "--json")
    outs = tmp_path / "one.jsonl", tmp_path / "four.jsonl"
    results = [
        vitrail("eval", *common, "--max-tiles", tiles, "--out", out)
        for tiles, out in zip((1, 4), outs, strict=True)
    ]
    assert [result.exit_code for result in results] == [0, 0], results[0].stderr
    assert [json.loads(result.stdout)["n"] for result in results] == [3, 3]
    few, many = (read_results(out) for out in outs)
    assert {record.tiles for record in few.records} == {1}
    assert all(record.tiles > 1 and 1 <= record.tokens <= 3 for record in many.records)
    assert few.run.model == many.run.model
    again = vitrail("eval", *common, "--max-tiles", 1, "--out", outs[0], "--resume")
    assert again.stdout == results[0].stdout
    compared = vitrail("eval", "compare", *outs, "--json")
    assert json.loads(compared.stdout)["n"] == 3
