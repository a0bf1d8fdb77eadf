"""How a server starts, fails to start, and ends: bounded, in its own words, leaving nothing behind."""

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tritonclient.grpc as triton
from tests.repository.raw import Answer, ask, ints, text
from tritonclient.utils import InferenceServerException

from vitrail.errors import ArtifactError, ServerError
from vitrail.triton.options import ServerOptions, Tls
from vitrail.triton.processes import find_stubs, shared_memory, wait_until
from vitrail.triton.repository import ServingSettings
from vitrail.triton.server import Server
from vitrail.triton.workspace import sweep

pytestmark = pytest.mark.server

SETTINGS = ServingSettings(threads=1)
SERVE = """
import sys
from pathlib import Path
from vitrail.triton.options import ServerOptions
from vitrail.triton.serve import serve
options = ServerOptions(grpc_port=0, http_port=0, metrics_port=0, exit_timeout_s=5)
serve(Path(sys.argv[1]), options=options, on_ready=lambda server: print(server.grpc_url, server.pid, server.log_path, flush=True))
"""


def any_ports(**options):
    return ServerOptions(
        **{"grpc_port": 0, "http_port": 0, "metrics_port": 0, "exit_timeout_s": 5, **options}
    )


class Launcher:
    """`serve` in a process of its own, ready."""

    def __init__(self, artifacts):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, artifacts], stdout=subprocess.PIPE, text=True
        )
        self.url, pid, log = self.process.stdout.readline().split()
        self.server_pid, self.workspace = int(pid), Path(log).parent

    def remains(self):
        return [
            *find_stubs(self.workspace.name),
            *shared_memory(self.workspace.name),
            *self.workspace.glob("*"),
        ]


@pytest.fixture
def launcher(exported):
    launcher = Launcher(exported("internvl2-tiny"))
    yield launcher
    launcher.process.kill()
    launcher.process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_ends_with_a_signal_in_time_and_leaves_nothing(launcher, number):
    assert ask(launcher.url, "decoder", text_input="hi", max_tokens=ints(4)).texts
    assert len(find_stubs(launcher.workspace.name)) == 3
    launcher.process.send_signal(number)
    assert launcher.process.wait(60) == 0
    assert not launcher.remains()
    assert not Path(f"/proc/{launcher.server_pid}").exists()


def test_a_killed_launcher_takes_its_server_along_and_the_next_start_sweeps_up(launcher):
    launcher.process.kill()
    assert wait_until(lambda: not Path(f"/proc/{launcher.server_pid}").exists(), within_s=60)
    assert launcher.workspace in sweep()
    assert not launcher.remains()


def test_stopping_lets_a_stream_finish_and_a_sweep_spares_the_living(exported):
    server = Server(exported("internvl2-tiny"), options=any_ports(exit_timeout_s=120), settings=SETTINGS)
    with server, ThreadPoolExecutor(1) as pool:
        assert server.log_path.parent not in sweep()
        options, answer = text('{"ignore_eos": true, "max_tokens": 1500}'), Answer()
        asked = pool.submit(ask, server.grpc_url, "decoder", answer=answer, text_input="hi", options=options)
        answer.wait_until_begun()
        assert not asked.done()
        server.stop()
        asked.result()
    assert answer.error is None
    assert answer.deltas[-1].count('"finish_reason":"length"') == 1


def test_a_model_that_cannot_load_ends_the_start_with_its_own_reason(exported, tmp_path):
    artifacts = shutil.copytree(exported("internvl2-tiny"), tmp_path / "damaged")
    graph = artifacts / "projector.onnx"
    graph.write_bytes(b"\0" * graph.stat().st_size)
    with pytest.raises(ArtifactError, match=r"projector\.onnx.*export again") as caught:
        Server(artifacts, options=any_ports(), settings=SETTINGS).__enter__()
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flag_that_tritonserver_refuses_ends_the_start_with_its_words(exported):
    options = any_ports(extra_args=("--colour=red",))
    with pytest.raises(ServerError, match="colour"):
        Server(exported("internvl2-tiny"), options=options, settings=SETTINGS).__enter__()


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_a_server_listens_on_an_ipv6_address(exported):
    options = any_ports(host="::1")
    with Server(exported("internvl2-tiny"), options=options, settings=SETTINGS) as server:
        assert ask(server.grpc_url, "decoder", text_input="hi", max_tokens=ints(2)).texts


def test_a_port_in_use_is_named_before_anything_starts(exported):
    before = set(Path(tempfile.gettempdir()).iterdir())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ServerOptions(grpc_port=0, http_port=port, metrics_port=0)
        with pytest.raises(
            ServerError, match=f"http_port {port} on 127.0.0.1 cannot be used .* give another --http-port"
        ):
            Server(exported("internvl2-tiny"), options=options).start()
    left = set(Path(tempfile.gettempdir()).iterdir()) - before
    assert not [path for path in left if path.name.startswith("vitrail-server-")]


def test_models_are_loaded_and_unloaded_by_the_supervisor_only(server):
    with triton.InferenceServerClient(server.grpc_url) as client:
        with pytest.raises(InferenceServerException, match="restricted"):
            client.unload_model("decoder")
        with pytest.raises(InferenceServerException, match="restricted"):
            client.update_log_settings({"log_file": "/tmp/x"})
        assert client.is_model_ready("decoder")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_tls_is_for_grpc_and_the_supervisor_still_reaches_its_server(exported, tmp_path):
    tls = Tls(certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "1",
                "-subj",
                "/CN=localhost",
            ),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", tls.key, "-out", tls.certificate),
        ],
        check=True,
        capture_output=True,
    )
    with Server(exported("internvl2-tiny"), options=any_ports(tls=tls), settings=SETTINGS) as server:
        server.reload("projector")
        url = f"localhost:{server.options.grpc_port}"
        with triton.InferenceServerClient(url, ssl=True, root_certificates=str(tls.certificate)) as client:
            assert client.is_model_ready("internvl")
