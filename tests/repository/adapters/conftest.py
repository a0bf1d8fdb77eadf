"""The parts of the decoder's adapter, without Triton."""

import pytest
from tests.repository.adapters.sending import seen

from vitrail.decoder import Decoder, Settings
from vitrail.manifest import load_manifest
from vitrail.providers import Cpu
from vitrail.session.ort import OrtDecoder
from vitrail.tokenizer import load_tokenizer
from vitrail.triton.answering import Answering
from vitrail.triton.looking import Looking
from vitrail.triton.metering import Unmetered
from vitrail.triton.outbox import Outbox


@pytest.fixture(scope="module")
def artifacts(exported):
    return exported("internvl2-tiny")


@pytest.fixture(scope="module")
def manifest(artifacts):
    return load_manifest(artifacts)


@pytest.fixture
def outbox():
    outbox = Outbox(lambda sender, event, final: sender.deliver(event, final), poll_interval_s=0.01)
    yield outbox
    outbox.close()


@pytest.fixture
def answering(artifacts, manifest):
    """Real parts but for the way to the vision models, which `see` replaces."""
    session = OrtDecoder(artifacts, manifest, slots=1, capacity=2000, provider=Cpu(threads=1))
    tokenizer = load_tokenizer(artifacts, manifest.tokenizer)
    decoder = Decoder(session, tokenizer, manifest.tokenizer, Settings(slots=1, queue_limit=1))
    decoder.start()
    made = Answering(
        decoder,
        tokenizer=tokenizer,
        manifest=manifest,
        looking=Looking(decoder, see=lambda tiles, *_: seen(tiles), tiles_per_look=1),
        observer=Unmetered(),
    )
    yield made
    made.close()
    decoder.close()
