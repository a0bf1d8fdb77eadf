"""The command line, against a scripted server and small artifacts."""

from __future__ import annotations

import inspect
import io
import json
import signal
import subprocess
import sys
import threading
from typing import get_args

import pytest
from PIL import Image
from typer.testing import CliRunner

from vitrail.__main__ import main
from vitrail.cli import app
from vitrail.cli.make import FloatPrecision, PrecisionName, VisionPrecisionName
from vitrail.cli.report import report_lines
from vitrail.cli.serve import serve
from vitrail.client.fake import ANSWER, FakeServer, inputs
from vitrail.core import Choice, Completion, Delta, Grid, ImageReport, Report, Timings, TokenLogprob
from vitrail.dtypes import Arithmetic
from vitrail.manifest import Precision, VisionPrecision
from vitrail.settings import Settings

TWO_ANSWERS = (
    Delta(index=1, text="two", token_ids=(2,), logprobs=(TokenLogprob(2, -0.5, ((2, -0.5),)),)),
    Delta(index=0, text="one", token_ids=(1,), finish_reason="stop"),
    Delta(index=1, finish_reason="length", report=Report(3, 2)),
)
COMMANDS = [
    "export",
    "verify",
    "sensitivity",
    "synthesize",
    "plan",
    "engine",
    "repository",
    "serve",
    "ask",
    "eval",
    "bench",
    "info",
]


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (60, 40), "red").save(path)
    return path


def vitrail(*arguments, stdin=None):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def shell(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", "from vitrail.cli import app; app()", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_s_help_shows_an_example(command):
    result = vitrail(command, "--help")
    assert result.exit_code == 0
    assert f"Example: vitrail {command} " in result.stdout


def test_the_answer_streams_to_stdout_and_the_report_to_stderr(picture):
    with FakeServer() as server:
        result = vitrail(
            "ask", picture, "-q", "What?", "--url", server.url, "--max-tokens", 5, "--no-thumbnail"
        )
    assert (result.exit_code, result.stdout) == (0, "Hello there\n")
    assert "prompt 5 tokens" in result.stderr
    (request,) = server.requests
    assert request.model_name == "internvl"
    assert inputs(request)["options"]["max_tokens"] == 5
    assert inputs(request)["prompt"]["images"][0]["width"] == 60


def test_a_question_needs_no_picture():
    with FakeServer() as server:
        assert vitrail("ask", "-q", "Why?", "--url", server.url).stdout == "Hello there\n"
    assert server.requests[0].model_name == "decoder"


def test_json_is_one_object_on_stdout(picture):
    with FakeServer() as server:
        result = vitrail("ask", picture, "-q", "What?", "--url", server.url, "--json")
    fields = json.loads(result.stdout)
    assert (fields["text"], fields["finish_reason"], fields["prompt_tokens"]) == ("Hello there", "stop", 5)
    assert result.stdout.count("\n") == 1


def test_a_picture_may_come_on_stdin(picture):
    with FakeServer() as server:
        result = vitrail("ask", "-", "-q", "What?", "--url", server.url, stdin=picture.read_bytes())
    assert result.exit_code == 0, result.stderr
    assert inputs(server.requests[0])["prompt"]["images"][0]["height"] == 40


def test_headers_reach_the_server():
    with FakeServer() as server:
        vitrail("ask", "-q", "Why?", "--url", server.url, "--header", "X-Key: a:b")
    assert server.headers["x-key"] == "a:b"


def test_every_option_of_an_answer_can_be_given():
    given = ["--min-p", 0.1, "--presence-penalty", 0.5, "--frequency-penalty", 0.25, "--ignore-eos", "--n", 2]
    given += ["--priority", 0, "--user", "Ada"]
    with FakeServer(TWO_ANSWERS) as server:
        result = vitrail("ask", "-q", "?", "--url", server.url, *given, "--keep-special-tokens")
    options = inputs(server.requests[0])["options"]
    del options["deadline_s"]
    assert options == {
        "min_p": 0.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "ignore_eos": True,
        "n": 2,
        "keep_special_tokens": True,
        "priority": 0,
        "user": "Ada",
    }
    assert (result.exit_code, result.stdout) == (0, "[1] one\n[2] two\n")
    assert "(stop, length)" in result.stderr


def test_json_has_every_answer_and_its_log_probabilities():
    with FakeServer(TWO_ANSWERS) as server:
        result = vitrail("ask", "-q", "?", "--url", server.url, "--n", 2, "--logprobs", 1, "--json")
    first, second = json.loads(result.stdout)["choices"]
    assert (first["text"], second["text"]) == ("one", "two")
    assert second["logprobs"] == [{"token_id": 2, "logprob": -0.5, "top": [[2, -0.5]]}]


def test_an_answer_that_the_deadline_cut_off_is_printed_and_no_failure():
    cut = [Delta(text="Hel"), Delta(finish_reason="deadline", report=Report(3, 1))]
    with FakeServer(cut) as server:
        result = vitrail("ask", "-q", "?", "--url", server.url, "--deadline", 1)
    assert (result.exit_code, result.stdout) == (0, "Hel\n")
    assert "(deadline)" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["ask", "/nowhere.png", "-q", "?"], 2, "/nowhere.png"),
        (["ask", "-", "-", "-q", "?"], 2, "'-' is given twice"),
        (["ask", "-q", "?", "--max-tiles", "41"], 2, "'max_tiles' is 41"),
        (["ask", "-q", "?", "--header", "nothing"], 2, "header 'nothing' has no value"),
        (["ask", "-q", "?", "--url", "http://localhost:8000"], 2, "HTTP address"),
        (["ask", "-q", "?", "--url", "localhost:9", "--model", "x"], 2, "exclude each other"),
        (["ask", "-q", "?", "--model", "x", "--route", "foo"], 2, "--route and --model exclude each other"),
        (
            ["ask", "-q", "?", "--model", "x", "--header", "a: b"],
            2,
            "--header and --model exclude each other",
        ),
        (["ask", "-q", "?", "--model", "x", "--tls-ca", "y"], 2, "--tls-ca and --model exclude each other"),
        (["ask", "-q", "?", "--route", "foo"], 2, "route is 'foo'"),
        (["ask", "-q", "?", "--context", "99"], 2, "--context 99 is for --model"),
        (["ask", "-q", "?", "--deadline", "1e15"], 2, "'deadline_s' is 1000000000000000.0"),
        (["ask", "-q", "?", "--logprobs", "2"], 2, "add --json"),
        (["ask", "-q", "?", "--url", "127.0.0.1:9"], 5, "cannot be reached"),
        (["ask", "-q", "?", "--model", "/nowhere"], 3, "no artifact directory at '/nowhere'"),
        (["info", "/nowhere"], 2, "no directory '/nowhere'"),
        (["info", "pyproject.toml"], 2, "'pyproject.toml' is a file"),
        (["info", "nowhere"], 5, "there is no directory 'nowhere', and nowhere:8001: "),
        (["info", "127.0.0.1:9"], 5, "cannot be reached"),
        (["serve", "/nowhere"], 3, "no artifact directory at '/nowhere'"),
        (["serve", "/nowhere", "--slots", "0"], 2, "slots is 0"),
        (["serve", "/nowhere", "--tls-key", "/key"], 2, "both --tls-cert and --tls-key"),
        (["export", "/nowhere", "--out", "/tmp/never-written"], 3, "/nowhere"),
        (
            [
                "export",
                "/nowhere",
                "--out",
                "/tmp/never-written",
                "--precision",
                "fp32",
                "--activations",
                "fp16",
            ],
            2,
            "activations in float16 are for int8 and int4 weights",
        ),
        (
            ["export", "/nowhere", "--out", "/tmp/never-written", "--calibration", "/pictures"],
            2,
            "--calibration /pictures would not be used",
        ),
        (["verify", "/nowhere", "--against", "/nowhere"], 3, "/nowhere"),
        (["synthesize", "internvl9", "--out", "/tmp/never-written"], 2, "internvl9"),
    ],
)
def test_a_failure_is_one_line_on_stderr_and_an_exit_code(arguments, code, words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    with FakeServer() as server:
        if arguments[0] == "ask" and "--url" not in arguments and "--model" not in arguments:
            arguments = [*arguments, "--url", server.url]
        result = vitrail(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert words in line
    assert "Traceback" not in result.stderr


def test_debugging_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("VITRAIL_DEBUG", "1")
    result = vitrail("info", "/nowhere")
    assert "no directory" in str(result.exception)


def test_a_missing_extra_is_named_with_its_cure():
    program = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "onnxscript":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
sys.meta_path.insert(0, Blocked())
from vitrail.cli import app
app(["export", "x", "--out", "y"])
"""
    result = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert (
        result.stderr
        == "error: this needs onnxscript, which is not installed; pip install 'vitrail[export]'\n"
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_question_is_cancelled_on_the_server(number, code):
    released = threading.Event()
    with FakeServer([Delta(text="Hello"), released]) as server:
        process = shell("ask", "-q", "Why?", "--url", server.url)
        assert process.stdout.read(5) == "Hello"
        process.send_signal(number)
        process.communicate(timeout=120)
        assert process.returncode == code
        assert server.aborted == [server.requests[0].id]
        released.set()


def test_an_interrupted_line_is_ended_before_anything_else_is_said():
    released = threading.Event()
    with FakeServer([Delta(text="Hello"), released]) as server:
        process = shell("ask", "-q", "Why?", "--url", server.url)
        assert process.stdout.read(5) == "Hello"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=120) == ("\n", "interrupted\n")
        released.set()


def test_an_answer_that_fails_before_its_first_word_leaves_stdout_empty():
    with FakeServer([Delta(), "[server] broken"]) as server:
        result = vitrail("ask", "-q", "?", "--url", server.url)
    assert (result.exit_code, result.stdout) == (5, "")


def test_a_failed_handshake_is_one_line_without_grpc_s_own():
    with FakeServer() as server:
        process = shell("info", f"grpcs://{server.url}")
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 5
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1


def test_ctrl_c_while_the_command_line_is_imported_leaves_no_traceback(monkeypatch, capsys):
    class Interrupted:
        @property
        def app(self):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "vitrail.cli", Interrupted())
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capsys.readouterr().err) == (130, "interrupted\n")


def test_a_checkpoint_that_is_refused_has_no_progress_bar(tmp_path):
    result = vitrail("export", "/nowhere", "--out", tmp_path / "artifacts")
    assert result.stderr.startswith("error: no checkpoint directory")


def test_a_reader_that_leaves_ends_the_question_quietly():
    left = threading.Event()
    with FakeServer([left, *ANSWER]) as server:
        process = shell("ask", "-q", "Why?", "--url", server.url)
        process.stdout.close()
        left.set()
        assert process.stderr.read() == ""
        assert process.wait(60) == 1


def test_info_of_a_server():
    with FakeServer() as server:
        assert json.loads(vitrail("info", server.url, "--json").stdout)["kind"] == "server"
        assert "prompt.template    internlm2-chat" in vitrail("info", server.url).stdout


def test_info_of_a_checkpoint():
    fields = json.loads(vitrail("info", "tests/data/reference/internvl2-tiny", "--json").stdout)
    assert (fields["kind"], fields["template"]) == ("checkpoint", "internlm2-chat")


def test_info_of_artifacts_and_an_answer_from_them(exported, picture):
    artifacts = exported("internvl2-tiny")
    fields = json.loads(vitrail("info", artifacts, "--json").stdout)
    assert (fields["kind"], fields["decoder"]["precision"]) == ("artifacts", "float32")
    result = vitrail("ask", picture, "-q", "What?", "--model", artifacts, "--max-tokens", 3, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["completion_tokens"] <= 3
    result = vitrail("ask", "-q", "What?", "--model", artifacts, "--context", 8)
    assert result.exit_code == 2
    assert "room for 7; shorten the text" in result.stderr
    assert "--context" in result.stderr


def test_every_precision_of_a_manifest_has_a_name_of_its_own():
    assert tuple(each.precision for each in PrecisionName) == get_args(Precision)
    assert tuple(each.precision for each in VisionPrecisionName) == get_args(VisionPrecision)
    assert tuple(each.dtype for each in FloatPrecision) == get_args(Arithmetic)


def test_export_writes_what_info_reads(tmp_path):
    out = tmp_path / "artifacts"
    result = vitrail("export", "tests/data/reference/internvl3-tiny", "--out", out, "--precision", "int8")
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"wrote {out}" in result.stderr.replace("\n", "")
    assert json.loads(vitrail("info", out, "--json").stdout)["decoder"]["precision"] == "int8"


def test_a_directory_that_is_nothing_of_ours_says_so(tmp_path):
    result = vitrail("info", tmp_path)
    assert result.exit_code == 3
    assert "manifest.json" in result.stderr


def test_the_report_tells_pictures_tokens_and_time():
    image = ImageReport(width=1024, height=768, grid=Grid(4, 3), tiles=13, visual_tokens=3328)
    timings = Timings(vision_ms=900, prefill_ms=300, decode_ms=2000, ttft_ms=1250, total_ms=3250)
    report = Report(prompt_tokens=3400, completion_tokens=41, images=(image,), timings=timings)
    assert report_lines(Completion((Choice(0, "x", (1,), "stop"),), report)) == [
        "picture 1: 1024x768, grid 4x3, 13 tiles, 3328 visual tokens",
        "prompt 3400 tokens (3328 visual), answer 41 tokens (stop)",
        "first token after 1.25 s, 20.0 tokens/s, total 3.25 s (vision 900 ms, prefill 300 ms, decode 2.00 s)",
    ]


def test_the_report_of_an_answer_without_tokens_tells_no_times_of_tokens():
    image = ImageReport(width=9, height=9, grid=Grid(1, 1), tiles=1, visual_tokens=64)
    times = Timings(preprocess_ms=5, total_ms=5)
    lines = report_lines(Completion((Choice(0, "", (), "deadline"),), Report(70, 0, (image,), times)))
    assert "grid 1x1, 1 tile, 64" in lines[0]
    assert lines[2] == "no token, total 5 ms (preprocess 5 ms)"


def test_the_report_of_one_token_tells_no_speed():
    times = Timings(decode_ms=5, ttft_ms=20, total_ms=25)
    lines = report_lines(Completion((Choice(0, "x", (1,), "stop"),), Report(7, 1, (), times)))
    assert lines[1] == "first token after 20 ms, total 25 ms (decode 5 ms)"


def test_a_terminal_gets_no_control_characters(monkeypatch):
    from vitrail.cli import ask

    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdout", terminal)
    list(ask._shown([Delta(text="a\x1b[31m\nb\té")]))
    assert terminal.getvalue() == "a[31m\nb\té\n"


def test_serve_takes_the_settings_of_an_engine_unless_told_otherwise():
    told = inspect.signature(serve).parameters
    names = {name: name for name in ("slots", "prefill_chunk", "prefix_cache", "tpot_slowdown")}
    names |= {"context": "context_tokens", "queue": "queue_limit", "deadline": "default_deadline_s"}
    assert {names[name]: told[name].default for name in names} == {
        name: getattr(Settings(), name) for name in names.values()
    }
