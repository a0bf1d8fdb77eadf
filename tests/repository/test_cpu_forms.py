"""What makes a CPU fast, served: int8 products for prompts beside int4, and vision on OpenVINO."""

from __future__ import annotations

import pytest
from tests.conftest import REFERENCE
from tests.runtime.test_openvino import missing

from vitrail.client import Client
from vitrail.decoder import Settings
from vitrail.engine import Engine
from vitrail.providers import Cpu, OpenVino
from vitrail.triton.options import ServerOptions
from vitrail.triton.repository import ServingSettings
from vitrail.triton.serve import serving

pytestmark = pytest.mark.server

PICTURE = REFERENCE / "images" / "rocket.jpg"
OPTIONS = {"max_tokens": 12, "ignore_eos": True, "max_tiles": 4}


def asking(text):
    return [
        {"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": text}]}
    ]


@pytest.mark.parametrize("provider", [Cpu(threads=1), OpenVino(threads=1)], ids=["cpu", "openvino"])
def test_both_graphs_answer_through_triton_as_in_process(exported, provider):
    if isinstance(provider, OpenVino) and missing():
        pytest.skip(missing())
    directory = exported("internvl2-tiny", precision="int8", prefill="w8a8")
    settings = ServingSettings(decoder=Settings(slots=2), provider=provider)
    options = ServerOptions(grpc_port=0, http_port=0, metrics_port=0, exit_timeout_s=5)
    first, second = asking("What is this?"), asking("And where does it go?")
    with Engine.load(directory, provider=str(provider), slots=2) as engine:
        expected = [engine.chat(messages, **OPTIONS) for messages in (first, second)]
    with (
        serving(directory, options=options, settings=settings) as server,
        Client(server.grpc_url) as client,
    ):
        answers = [client.chat(messages, **OPTIONS) for messages in (first, second)]
    assert [each.choices for each in answers] == [each.choices for each in expected]
    assert answers[1].report.reused_tokens >= 256 * answers[1].report.images[0].tiles
