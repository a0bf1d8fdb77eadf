"""The checkpoint that the tree ships, exported, served and asked about the picture in the README: it reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vitrail.client import Client
from vitrail.decoder import Settings
from vitrail.triton.options import ServerOptions
from vitrail.triton.repository import ServingSettings
from vitrail.triton.serve import serving

ROOT = Path(__file__).parents[2]
CHECKPOINT, PICTURE = ROOT / "demo" / "checkpoint", ROOT / "demo" / "receipt.png"
ANSWERS = json.loads((ROOT / "demo" / "receipt.json").read_text(encoding="utf-8"))

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    from vitrail_export.exporter import ExportOptions, export_checkpoint

    directory = tmp_path_factory.mktemp("demo")
    export_checkpoint(CHECKPOINT, directory, options=ExportOptions(precision="float32"))
    return directory


@pytest.fixture(scope="module")
def url(demo):
    settings = ServingSettings(decoder=Settings(slots=2), threads=1)
    options = ServerOptions(grpc_port=0, http_port=0, metrics_port=0, exit_timeout_s=5)
    with serving(demo, options=options, settings=settings) as server:
        yield server.grpc_url


def asked(question):
    content = [{"type": "image", "image": PICTURE}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("question", ANSWERS)
def test_the_receipt_is_read(url, question):
    with Client(url) as client:
        assert client.chat(asked(question), max_tokens=24).text == ANSWERS[question]


def test_a_second_turn_is_answered_from_the_same_picture(url):
    (first, answer), (second, expected) = list(ANSWERS.items())[:2]
    turns = [
        *asked(first),
        {"role": "assistant", "content": answer},
        {"role": "user", "content": second},
    ]
    with Client(url) as client:
        assert client.chat(turns, max_tokens=24).text == expected


def test_the_answers_are_those_of_the_torch_reference(url, demo):
    """Greedy tokens of the float32 export equal those of the checkpoint in PyTorch."""
    torch = pytest.importorskip("torch")
    from vitrail_export.checkpoint import Checkpoint
    from vitrail_export.reference import Reference

    question = next(iter(ANSWERS))
    with Client(url) as client:
        prompt = client.prompt(asked(question))
        answer = list(client.chat(asked(question), max_tokens=24).choices[0].token_ids)
    from vitrail.manifest import load_manifest
    from vitrail.tokenizer import load_tokenizer

    contract = load_manifest(demo).tokenizer
    ids = load_tokenizer(demo, contract).encode(prompt.segments, 64).tolist()
    reference = Reference(Checkpoint.open(CHECKPOINT))
    embeds = reference.embeds(reference.features(prompt.tiles))
    with torch.no_grad():
        written = []
        while len(written) < len(answer):
            inputs = reference.inputs_embeds(
                ids + written, embeds, image_context_id=contract.image_context_id
            )
            written.append(int(reference.logits(inputs)[-1].argmax()))
    assert written == answer
