"""What leads up to a server, without starting one: options, binaries, its log, leftovers of earlier ones."""

import errno
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vitrail.errors import OptionError, ServerError
from vitrail.manifest import load_manifest
from vitrail.triton import installation, log, workspace
from vitrail.triton.control import Control
from vitrail.triton.installation import Installation, compose_backends, find_installation
from vitrail.triton.options import ServerOptions, Tls, check_log, check_tls, command, settle_ports
from vitrail.triton.processes import find_stubs, is_alive, kill_all, wait_until
from vitrail.triton.server import Server
from vitrail.triton.workspace import Workspace, sweep

TUNABLES = "GLIBC_TUNABLES"


def words_of(options):
    return command(
        options,
        binary=Path("tritonserver"),
        backends=(),
        repository=Path("models"),
        region_prefix="r",
        admin_key="k",
    )


def flags(options):
    return dict(word.split("=", 1) for word in words_of(options)[1:] if "=" in word)


def test_everything_listens_on_the_loopback_address_unless_told_otherwise():
    addresses = ("--grpc-address", "--http-address", "--metrics-address")
    assert {flags(ServerOptions())[name] for name in addresses} == {"127.0.0.1"}
    assert {flags(ServerOptions(host="0.0.0.0"))[name] for name in addresses} == {"0.0.0.0"}


def test_arrays_of_a_large_tile_s_size_are_given_back_when_they_are_freed(tmp_path, exported, monkeypatch):
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    small = load_manifest(exported("internvl2-tiny")).vision
    large = small.model_copy(update={"tokens_per_tile": 256, "feature_size": 4096})
    here = Installation(tmp_path)
    kept = [
        int(installation.environment(here, artifacts=tmp_path, vision=each)["MALLOC_MMAP_THRESHOLD_"])
        for each in (small, large)
    ]
    assert kept[0] > kept[1] == 4 * large.tokens_per_tile * large.feature_size


def test_fresh_memory_comes_in_huge_pages_where_tiles_are_quick_unless_it_is_told_otherwise(
    tmp_path, exported, monkeypatch
):
    small = load_manifest(exported("internvl2-tiny")).vision
    large = small.model_copy(update={"tokens_per_tile": 256, "feature_size": 4096})

    def told(vision):
        return installation.environment(Installation(tmp_path), artifacts=tmp_path, vision=vision).get(
            TUNABLES
        )

    monkeypatch.delenv(TUNABLES, raising=False)
    assert (told(small), told(large)) == ("glibc.malloc.hugetlb=1", None)
    monkeypatch.setenv(TUNABLES, "glibc.malloc.hugetlb=0")
    assert told(small) == "glibc.malloc.hugetlb=0"


def test_an_ipv6_address_is_written_as_each_port_wants_it():
    options = ServerOptions(host="::1", grpc_port=1, http_port=2)
    words = flags(options)
    assert words["--grpc-address"] == "[::1]"
    assert words["--http-address"] == words["--metrics-address"] == "ipv6:::1"
    assert (options.grpc_url, options.http_url, options.connect_host) == ("[::1]:1", "[::1]:2", "::1")
    assert options.is_local


def test_every_address_is_reached_over_the_loopback_one():
    reached = {host: ServerOptions(host=host).grpc_url for host in ("0.0.0.0", "::", "localhost", "10.0.0.1")}
    assert reached == {
        "0.0.0.0": "127.0.0.1:8001",
        "::": "[::1]:8001",
        "localhost": "localhost:8001",
        "10.0.0.1": "10.0.0.1:8001",
    }


@pytest.mark.parametrize(
    ("argument", "cure"),
    [
        ("--grpc-port=5", "give --grpc-port of `vitrail serve` instead"),
        ("--http-address", "give --host of `vitrail serve` instead"),
        ("--log-file=/tmp/log", "give --log of `vitrail serve` instead"),
        ("--model-repository=models", "give the directory of artifacts of `vitrail serve` instead"),
        ("--model-control-mode=poll", "leave it out"),
    ],
)
def test_an_argument_of_triton_s_that_vitrail_gives_is_refused_with_vitrail_s_own(argument, cure):
    name = argument.partition("=")[0]
    with pytest.raises(OptionError, match=f"--triton-arg {argument}: vitrail sets .* {name} itself; {cure}"):
        ServerOptions(extra_args=("--log-verbose=1", argument))


def test_other_arguments_of_triton_s_come_last():
    given = ("--log-verbose=1", "--trace-config=opentelemetry,bsp_schedule_delay=200")
    assert tuple(words_of(ServerOptions(extra_args=given))[-2:]) == given


def test_with_tls_http_and_metrics_which_have_none_stay_at_home():
    words = flags(ServerOptions(host="0.0.0.0", tls=Tls(Path("c"), Path("k"))))
    assert words["--grpc-address"] == "0.0.0.0"
    assert words["--http-address"] == words["--metrics-address"] == "127.0.0.1"
    assert words["--grpc-use-ssl"] == "true"


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({}, True),
        ({"host": "localhost"}, True),
        ({"host": "0.0.0.0"}, False),
        ({"host": "0.0.0.0", "shared_memory": True}, True),
        ({"shared_memory": False}, False),
    ],
)
def test_shared_memory_is_for_clients_of_this_machine(options, allowed):
    words = flags(ServerOptions(**options))
    for restricted in (words["--grpc-restricted-protocol"], words["--http-restricted-api"]):
        assert restricted.startswith("model-repository,logging,trace")
        assert ("shared-memory" not in restricted) == allowed


def test_free_ports_are_three_different_ones():
    options = settle_ports(ServerOptions(grpc_port=0, http_port=0, metrics_port=0))
    assert len({options.grpc_port, options.http_port, options.metrics_port} - {0}) == 3


@pytest.mark.parametrize(
    ("ports", "words"),
    [({"grpc_port": 70000}, "grpc_port 70000 is no port"), ({"http_port": 8001}, "8001 is given twice")],
)
def test_impossible_ports_are_refused(ports, words):
    with pytest.raises(OptionError, match=words):
        settle_ports(replace(ServerOptions(), **ports))


@pytest.mark.parametrize("host", ["192.0.2.1", "no host"])
def test_an_address_that_is_not_this_machine_s_is_named(host):
    with pytest.raises(
        ServerError, match=rf"grpc_port 0 on {host} cannot be used .*of this machine with --host"
    ):
        settle_ports(ServerOptions(host=host, grpc_port=0, http_port=0, metrics_port=0))


def test_a_port_for_the_administrator_alone_is_named_with_those_that_are_free(monkeypatch):
    def denied(_socket, _address):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("socket.socket.bind", denied)
    with pytest.raises(ServerError, match=r"grpc_port 80 .*Permission denied\); give a --grpc-port of 1024"):
        settle_ports(ServerOptions(grpc_port=80))


def test_a_port_that_somebody_listens_on_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=rf"grpc_port {port} .*stop what listens there"):
            settle_ports(ServerOptions(grpc_port=port))


def test_a_missing_certificate_is_named(tmp_path):
    with pytest.raises(OptionError, match=r"no\.pem"):
        check_tls(Tls(tmp_path / "no.pem", tmp_path / "no.key"))


def test_a_certificate_and_a_key_that_are_none_are_named(tmp_path):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_bytes(b"\x89PNG")
    key.write_text("-----BEGIN CERTIFICATE-----\n")
    with pytest.raises(OptionError, match=r"cert\.pem' holds no CERTIFICATE"):
        check_tls(Tls(certificate, key))
    certificate.write_text("-----BEGIN CERTIFICATE-----\n")
    with pytest.raises(OptionError, match=r"key\.pem' holds no PRIVATE KEY"):
        check_tls(Tls(certificate, key))
    key.write_text("-----BEGIN RSA PRIVATE KEY-----\n")
    check_tls(Tls(certificate, key))


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    for path in (tmp_path / "none" / "server.log", tmp_path):
        with pytest.raises(OptionError, match=f"cannot write the log '{path}'.*directory that exists"):
            check_log(path)
    check_log(tmp_path / "server.log")
    check_log(None)


def test_a_given_binary_comes_first_then_path_then_the_wheel(tmp_path, monkeypatch):
    binary = tmp_path / "bin" / "tritonserver"
    binary.parent.mkdir()
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    wheel = find_installation()
    assert wheel.wheel is not None
    assert find_installation(binary) == Installation(binary)
    monkeypatch.setenv("PATH", str(binary.parent))
    assert find_installation() == Installation(binary)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(installation, "_in_wheel", lambda: None)
    with pytest.raises(ServerError, match=r"pip install 'vitrail\[runtime,server\]'"):
        find_installation()


def test_what_is_no_executable_is_no_server(tmp_path):
    with pytest.raises(ServerError, match="is no executable"):
        find_installation(tmp_path)


def test_a_wheel_without_a_stub_for_this_python_names_those_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(installation, "PYTHON_VERSION", "2.7")
    with pytest.raises(ServerError, match=r"no stub for Python 2\.7 \(it has 3\.10, 3\.11"):
        compose_backends(find_installation(), tmp_path)


LOADED = """2026-01-01T00:00:00Z I 1 model_lifecycle.cc:839] "successfully loaded 'projector'"
2026-01-01T00:00:01Z I 1 model_lifecycle.cc:839] "successfully loaded 'decoder'"
"""
FAILED = (
    '2026-01-01T00:00:00Z E 1 server.cc:241] "CudaDriverHelper has not been initialized."\n'
    "2026-01-01T00:00:00Z E 1 model_lifecycle.cc:642] \"failed to load 'decoder' version 1: Internal: "
    'TritonModelException: [artifact] no table\\n\\nAt:\\n  /a/b.py(3): load\\n"\n'
    "error: creating server: Internal - failed to load all models\n"
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LOADED, None),
        (FAILED, "model 'decoder': [artifact] no table"),
        (
            "error: creating server: Internal - failed to stat file /models",
            "creating server: Internal - failed to stat file /models",
        ),
        (
            "/x/tritonserver: unrecognized option '--red'\nUsage: tritonserver [options]\n",
            "unrecognized option '--red'",
        ),
        ("Usage: tritonserver [options]\n", "it refuses one of its arguments; see those that were passed on"),
        (
            '2026-01-01T00:00:00Z E 1 main.cc:245] "failed to start HTTP service"',
            "failed to start HTTP service",
        ),
    ],
)
def test_the_log_gives_the_reason_of_a_failure(text, reason):
    assert log.failure(text) == reason


def test_the_log_tells_what_is_loaded():
    assert log.loaded_models(LOADED + LOADED) == ("projector", "decoder")


def test_a_sweep_removes_what_a_dead_launcher_left_and_spares_the_living(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace.tempfile, "tempdir", str(tmp_path))
    living = Workspace()
    left, young, foreign = (
        tmp_path / name for name in ("vitrail-server-dead", "vitrail-server-new", "other")
    )
    for path in (left, young, foreign):
        path.mkdir()
    (left / "lock").touch()
    region = Path("/dev/shm/vitrail-server-dead-region")
    region.touch()
    assert sweep() == (left,)
    assert not region.exists()
    assert sorted(tmp_path.iterdir()) == sorted([living.path, young, foreign])
    living.remove()
    assert not living.path.exists()


def test_a_child_dies_with_the_process_that_started_it():
    program = (
        "import os, subprocess, sys\n"
        "from vitrail.triton.processes import die_with_parent\n"
        "child = subprocess.Popen(['sleep', '60'], preexec_fn=die_with_parent())\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    parent = subprocess.run([sys.executable, "-c", program], check=False, stdout=subprocess.PIPE, text=True)
    assert wait_until(lambda: not is_alive(int(parent.stdout)), within_s=60)


def test_a_stub_is_known_by_its_command_line_and_a_killed_one_is_dead_before_it_is_reaped(tmp_path):
    model = tmp_path / "projector" / "1" / "model.py"
    model.parent.mkdir(parents=True)
    model.write_text("import time; time.sleep(600)")
    words = [tmp_path / "triton_python_backend_stub", model, "mine-1234"]
    process = subprocess.Popen(words, executable=sys.executable)
    assert wait_until(lambda: find_stubs("mine-"), within_s=60)
    (stub,) = find_stubs("mine-")
    assert (stub.pid, stub.model, stub.region) == (process.pid, "projector", "mine-1234")
    assert kill_all([stub.pid], within_s=60)
    assert not is_alive(process.pid)
    assert not find_stubs("mine-")
    assert process.wait() == -9


def test_the_log_may_outlive_the_workspace(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace.tempfile, "tempdir", str(tmp_path))
    made = Workspace()
    assert made.keep_log() is None
    made.log.write_text("why it failed")
    kept = made.keep_log()
    made.remove()
    assert kept.read_text() == "why it failed"
    assert sweep() == ()
    assert list(tmp_path.iterdir()) == [kept]


def test_a_reload_that_is_no_longer_wanted_touches_no_model(monkeypatch):
    asked = []
    monkeypatch.setattr(Control, "_manage", lambda self, model, verb, *, timeout_s: asked.append(verb))
    server = Server(Path("artifacts"))
    server.reload("projector", wanted=lambda: not asked)
    assert asked == ["unload"]
    server.reload("projector")
    assert asked == ["unload", "unload", "load"]
