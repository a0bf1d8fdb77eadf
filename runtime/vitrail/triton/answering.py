"""From a request's tensors to a request of the decoder, by way of the vision models where it brings tiles. Pure of
Triton: the adapter gives the tensors, the reply and the way to the vision models.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import replace

from vitrail.decoder import Decoder, Request
from vitrail.manifest import Manifest
from vitrail.metrics import REQUEST_TILES, TILES, Observer
from vitrail.tokenizer import Tokenizer
from vitrail.triton.arrivals import Arrivals
from vitrail.triton.looking import Looking
from vitrail.triton.outbox import Done, Reply, failing
from vitrail.triton.question import Question, Tensors, read_abort, read_announcement, read_question


class Answering:
    """Accepts requests without waiting for anything. Every reply gets exactly one last event.

    `looking` is what takes tiles to the vision models; it is closed with this.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        tokenizer: Tokenizer,
        manifest: Manifest,
        looking: Looking,
        observer: Observer,
    ) -> None:
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._manifest = manifest
        self._looking = looking
        self._observer = observer
        self._arrivals = Arrivals()

    def accept(
        self, read: Callable[[], Tensors], reply: Reply, *, request_id: str, timeout_s: float | None
    ) -> None:
        """Read the tensors and submit; whatever goes wrong is the reply's last event.

        request_id "" makes one up. timeout_s is the deadline of a request whose options have none.
        """
        arrived_s = time.monotonic()
        with failing(reply):
            tensors = read()
            if self._is_notice(tensors):
                reply.send(Done())
                return
            question = read_question(tensors, manifest=self._manifest)
            request = self._request(question, reply, request_id or uuid.uuid4().hex, timeout_s)
            self._decoder.answer_limit(request.token_ids.size, request.options)
            self._count_tiles(question)
            if question.tiles is None:
                self._decoder.submit(request, reply.send)
            else:
                self._looking.enter(request, question.tiles, reply, arrived_s=arrived_s)

    def close(self) -> None:
        """Take no more tiles to the vision models."""
        self._looking.close()

    def _is_notice(self, tensors: Tensors) -> bool:
        """Take a word about another request, which has no answer; False for a question."""
        aborted, announced = read_abort(tensors), read_announcement(tensors)
        if aborted is not None:
            self._arrivals.take_ms(aborted)
            self._decoder.abort(aborted)
        if announced is not None:
            self._arrivals.note(announced)
        return aborted is not None or announced is not None

    def _count_tiles(self, question: Question) -> None:
        pictures = question.image_embeds if question.tiles is None else question.tiles
        if pictures is not None:
            self._observer.add(TILES, len(pictures))
            self._observer.add(REQUEST_TILES, len(pictures))

    def _request(self, question: Question, reply: Reply, request_id: str, timeout_s: float | None) -> Request:
        self._decoder.require_text_room(question.segments)
        options = question.options
        if options.deadline_s is None and timeout_s is not None:
            options = replace(options, deadline_s=timeout_s)
        return Request(
            id=request_id,
            token_ids=self._tokenizer.encode(question.segments, self._manifest.vision.tokens_per_tile),
            image_embeds=question.image_embeds,
            options=options,
            images=question.images,
            preprocess_ms=question.preprocess_ms,
            vision_ms=max(question.vision_ms, self._arrivals.take_ms(request_id)),
            reused_tiles=question.reused_tiles,
            cancelled=reply.cancelled,
        )
