"""A client over TLS: the right authority, the wrong one, none."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc

from vitrail.client import TLS, Client
from vitrail.client.fake import FakeServer
from vitrail.errors import OptionError, ServerError


class SecureServer(FakeServer):
    """The same behind TLS, with the certificate in `folder`."""

    folder = None

    def __enter__(self):
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        files = ["-keyout", "key.pem", "-out", "cert.pem"]
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *files, *subject]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)
        pair = [(self.folder / name).read_bytes() for name in ("key.pem", "cert.pem")]
        self.server = grpc.server(ThreadPoolExecutor(4))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self.server)
        self.port = self.server.add_secure_port("localhost:0", grpc.ssl_server_credentials([pair]))
        self.server.start()
        return self


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl to make a certificate")
def test_tls_works_with_the_right_authority_only(kind, tmp_path):
    secure = SecureServer()
    secure.folder = tmp_path
    with secure as server:
        url = f"grpcs://localhost:{server.port}"
        with kind(url, tls=TLS(ca=tmp_path / "cert.pem")) as client:
            assert client.chat("hi").text == "Hello there"
        with kind(url, retries=0) as client, pytest.raises(ServerError, match=r"by TLS; .*TLS\(ca="):
            client.chat("hi")
        with (
            kind(f"localhost:{server.port}", retries=0) as client,
            pytest.raises(ServerError, match="grpcs://"),
        ):
            client.chat("hi")


def test_a_server_without_tls_that_is_asked_by_tls_is_called_so(kind):
    with (
        FakeServer() as server,
        kind(f"grpcs://{server.url}", retries=0) as client,
        pytest.raises(ServerError, match="cannot be reached by TLS; ask a server without TLS by grpc://"),
    ):
        client.chat("hi")


def test_a_tls_file_that_is_no_pem_is_named(tmp_path):
    (tmp_path / "ca.pem").write_bytes(b"\x89PNG")
    with (
        Client("localhost", tls=TLS(ca=tmp_path / "ca.pem")) as client,
        pytest.raises(OptionError, match=r"ca\.pem' is no PEM file"),
    ):
        client.info()


def test_a_missing_tls_file_is_named():
    with (
        Client("localhost", tls=TLS(ca="/nowhere.pem")) as client,
        pytest.raises(OptionError, match=r"/nowhere\.pem"),
    ):
        client.info()
