"""`vitrail bench`, against a scripted server and small artifacts."""

import csv
import json
import signal
import subprocess
import sys
import threading
import time

import pytest
from tests.runtime.benchmark.fakes import Answers, FakeClock, asks
from typer.testing import CliRunner

from vitrail.benchmark.load import Load, Stage
from vitrail.cli import app
from vitrail.cli.bench import progress_line
from vitrail.client import exchange
from vitrail.client.fake import ANSWER, CONTRACT, FakeServer, inputs
from vitrail.errors import Busy

SMALL = ["--requests", "4", "--concurrency", "1", "--tiles", "1", "--output-tokens", "2"]


def bench(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def card(result):
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def test_help_shows_an_example():
    result = bench("--help")
    assert (result.exit_code, "Example: vitrail bench " in result.stdout) == (0, True)


def test_json_is_one_line_with_device_versions_workload_and_stages():
    with FakeServer() as server:
        result = bench("--url", server.url, *SMALL, "--concurrency", "1,2", "--repeat-share", 0.5, "--json")
    assert result.exit_code == 0, result.stderr
    found = card(result)
    assert {"cpu", "cores", "vitrail", "commit", "numpy", "started"} <= set(found)
    assert (found["workload"]["tiles"], found["workload"]["repeat_share"]) == ([1], 0.5)
    assert (found["target"]["target"], found["target"]["slots"]) == ("server", 2)
    assert [stage["concurrency"] for stage in found["stages"]] == [1, 2]
    assert [stage["request_count"] for stage in found["stages"]] == [4, 4]
    figures = found["stages"][0]["metrics"]["time_to_first_token"]
    assert set(figures) == {"unit", "avg", "min", "max", "std", "p50", "p90", "p99", "count"}


@pytest.mark.parametrize(("given", "shown"), [(["--name", "2b, our best"], "2b, our best"), ([], "tiny")])
def test_a_report_calls_the_model_as_it_is_told(given, shown):
    with FakeServer() as server:
        asked_of = card(bench("--url", server.url, *SMALL, *given, "--json"))["target"]
    assert (shown in asked_of["name"], asked_of["target"]) == (True, "server")


def test_warm_up_is_asked_but_not_measured():
    with FakeServer() as server:
        result = bench("--url", server.url, *SMALL, "--warmup", 3, "--json")
        assert len(server.requests) == 7
    assert card(result)["stages"][0]["request_count"] == 4


def test_the_route_reaches_the_server():
    with FakeServer() as server:
        bench("--url", server.url, *SMALL, "--route", "direct", "--warmup", 0)
    assert {request.model_name for request in server.requests} == {"decoder"}
    assert {inputs(request)["options"]["max_tokens"] for request in server.requests} == {2}
    assert all(inputs(request)["options"]["ignore_eos"] for request in server.requests)


def test_the_progress_line_tells_answers_speed_and_failures():
    clock = FakeClock()
    answers = Answers(clock, [0.5, 0.5], Busy("full"))
    tally = Stage(answers, asks(), Load(concurrency=1, requests=6), clock=clock).run()
    line = progress_line("concurrency 1", tally)
    assert line == "concurrency 1: 3/6 answered, 2.0 tokens/s, TTFT p50 500 ms, 3 busy"


def test_an_open_loop_is_reported_as_one():
    with FakeServer() as server:
        result = bench(
            "--url",
            server.url,
            "--rate",
            "200",
            "--requests",
            5,
            "--tiles",
            0,
            "--output-tokens",
            2,
            "--json",
        )
    (stage,) = card(result)["stages"]
    assert (stage["mode"], stage["rate"], stage["request_count"]) == ("open", 200, 5)


def test_tables_go_to_stdout():
    with FakeServer() as server:
        result = bench("--url", server.url, *SMALL, "--slo-ttft-ms", 60000)
    assert "time_to_first_token" in result.stdout
    assert "100.0% within the objective" in result.stdout


def test_results_are_written_beside_each_other(tmp_path):
    out = tmp_path / "new" / "run-0.5.json"
    with FakeServer() as server:
        bench("--url", server.url, *SMALL, "--out", out, "--plots", tmp_path / "plots")
    assert json.loads(out.read_text(encoding="utf-8"))["stages"][0]["request_count"] == 4
    rows = list(csv.DictReader((tmp_path / "new" / "run-0.5.requests.csv").open(encoding="utf-8")))
    assert [row["stage"] for row in rows] == ["concurrency 1"] * 4
    assert (tmp_path / "new" / "run-0.5.csv").stat().st_size > 0
    assert len(list((tmp_path / "plots").glob("*.png"))) == 2


def test_a_server_that_refuses_connections_ends_with_a_report():
    result = bench("--url", "127.0.0.1:9", *SMALL, "--json")
    assert result.exit_code == 5
    assert "cannot be reached" in card(result)["failure"]


def test_a_server_that_is_not_ours_ends_with_a_report():
    with FakeServer(contract=None) as server:
        result = bench("--url", server.url, *SMALL, "--json")
    assert (result.exit_code, "vitrail serve" in card(result)["failure"]) == (5, True)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (["[busy] the queue is full"], "busy"),
        (["a stack trace"], "server"),
        (ANSWER[:1], "server"),
        ((ANSWER[0], ANSWER[2]), "server"),
    ],
    ids=["busy", "error", "breaks off", "tokens do not add up"],
)
def test_a_server_that_answers_nonsense_ends_with_a_report(answer, code):
    with FakeServer(answer) as server:
        result = bench("--url", server.url, *SMALL, "--warmup", 0, "--json")
    assert result.exit_code == 5
    assert card(result)["stages"][0]["errors"] == {code: 4}


def test_errors_may_be_allowed():
    with FakeServer(ANSWER, ["[busy] the queue is full"], ANSWER) as server:
        arguments = ("--url", server.url, *SMALL, "--warmup", 0, "--json")
        assert bench(*arguments, "--max-error-share", 0.25).exit_code == 0


def test_a_server_that_fails_the_whole_warm_up_ends_the_sweep():
    with FakeServer(["broken"]) as server:
        result = bench("--url", server.url, "--concurrency", "1,2,4", "--tiles", 0, "--json")
        assert len(server.requests) == 1
    (stage,) = card(result)["stages"]
    assert (stage["is_warmup"], stage["errors"], result.exit_code) == (True, {"server": 1}, 5)


def test_a_server_that_hangs_ends_with_a_report(monkeypatch):
    monkeypatch.setattr(exchange, "DEADLINE_MARGIN_S", 0.05)
    released = threading.Event()
    with FakeServer([ANSWER[0], released]) as server:
        result = bench("--url", server.url, *SMALL, "--timeout", 0.2, "--json")
        released.set()
    assert result.exit_code == 5
    assert card(result)["stages"][0]["error_request_count"] == 1


def stop_after(server, requests):
    deadline_s = time.monotonic() + 60
    while len(server.requests) < requests and time.monotonic() < deadline_s:
        time.sleep(0.005)
    server.server.stop(0)


def test_a_server_that_dies_ends_with_a_report():
    with FakeServer() as server:
        threading.Thread(target=stop_after, args=(server, 6)).start()
        result = bench("--url", server.url, *SMALL, "--requests", 100_000, "--json")
    (stage,) = card(result)["stages"]
    assert (result.exit_code, stage["ending"], set(stage["errors"])) == (5, "gave up", {"server"})
    assert stage["request_count"] > 0


def test_ctrl_c_ends_with_the_report_so_far():
    released = threading.Event()
    with FakeServer(*[ANSWER] * 3, [ANSWER[0], released]) as server:
        command = [sys.executable, "-c", "from vitrail.cli import app; app()", "bench", "--url", server.url]
        process = subprocess.Popen(
            [*command, *SMALL, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        while len(server.requests) < 4 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
        released.set()
    (stage,) = json.loads(out)["stages"]
    assert (process.returncode, stage["ending"]) == (130, "interrupted")
    assert (stage["request_count"], stage["errors"]) == (2, {"cancelled": 1})


def test_artifacts_in_this_process_are_measured_end_to_end(exported, tmp_path):
    arguments = ["--model", exported("internvl2-tiny"), "--concurrency", 2, "--requests", 4, "--tiles", "0,1"]
    more = ["--output-tokens", 3, "--turns", 0.5, "--seed", 3, "--json", "--plots", tmp_path]
    result = bench(*arguments, *more)
    assert result.exit_code == 0, result.stderr
    (stage,) = card(result)["stages"]
    assert (stage["request_count"], stage["errors"]) == (4, {})
    metrics = stage["metrics"]
    assert (metrics["tiles"]["min"], metrics["tiles"]["max"]) == (0, 1)
    assert (metrics["output_sequence_length"]["min"], metrics["visual_tokens"]["max"]) == (3, 256)
    assert metrics["vision_ms"]["max"] > 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--url", "x:1", "--model", "y"], 2, "exclude each other"),
        (["--concurrency", "1", "--rate", "1"], 2, "exclude each other"),
        (["--tiles", "1", "--image-size", "2x2"], 2, "exclude each other"),
        (["--tiles", "one"], 2, "--tiles is 'one'"),
        (["--image-size", "896"], 2, "--image-size is '896'"),
        (["--concurrency", "0"], 2, "0 requests at once"),
        (["--timeout", "0"], 2, "--timeout is 0"),
        (["--route", "sideways"], 2, "route is 'sideways'"),
        (["--tiles", "2"], 2, "no picture is cut into 2 tiles"),
        (["--url", "http://localhost:8000"], 2, "HTTP address"),
        (["--model", "/nowhere"], 3, "no artifact directory at '/nowhere'"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(arguments, code, words):
    with FakeServer(contract=CONTRACT) as server:
        if not {"--url", "--model"} & set(arguments):
            arguments = [*arguments, "--url", server.url]
        result = bench(*arguments)
        assert not server.requests
    assert (result.exit_code, words in result.stderr) == (code, True), result.stderr


def test_a_missing_matplotlib_is_said_before_the_measurement(monkeypatch, tmp_path):
    monkeypatch.setattr("vitrail.cli.bench.find_spec", lambda _name: None)
    with FakeServer() as server:
        result = bench("--url", server.url, *SMALL, "--plots", tmp_path)
        assert not server.requests
    assert "pip install 'vitrail[bench" in result.stderr
