"""The whole runtime in one process: from messages with pictures to streamed answers."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from vitrail.answer import collect
from vitrail.core import Delta
from vitrail.decoder import Decoder, Request, Settings
from vitrail.errors import OptionError, VitrailError
from vitrail.features import DEFAULT_LIMIT_BYTES, FeatureCache
from vitrail.look import Seen, look
from vitrail.machine import share_threads
from vitrail.manifest import load_manifest
from vitrail.options import read_options
from vitrail.pictures import Pictures
from vitrail.plan.check import check_load
from vitrail.prompt import render
from vitrail.providers import as_provider
from vitrail.session.open import open_decoder, open_vision
from vitrail.settings import require_whole
from vitrail.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from vitrail.core import Completion, Prompt, PromptOptions, Uint8
    from vitrail.decoder import Statistics
    from vitrail.machine import Shares
    from vitrail.manifest import Manifest
    from vitrail.messages import Messages
    from vitrail.providers import Provider
    from vitrail.sequence import Sink
    from vitrail.session import VisionSession
    from vitrail.tokenizer import Tokenizer

CLOSED = "this engine is closed; load another and ask again"


class Engine:
    """Answers questions about pictures, in-process, many at once; safe to call from several threads.

        with Engine.load("artifacts") as engine:
            print(engine.chat(messages, max_tokens=64).text)

    Made from its parts, it starts the decoder, and closes it with itself. tiles_per_look: tiles that are encoded
    between two looks at the clock.
    """

    def __init__(
        self,
        *,
        manifest: Manifest,
        tokenizer: Tokenizer,
        vision: VisionSession,
        decoder: Decoder,
        tiles_per_look: int = 8,
        feature_cache_bytes: int = DEFAULT_LIMIT_BYTES,
    ) -> None:
        self.manifest = manifest
        self._tokenizer = tokenizer
        self._vision = FeatureCache(vision, limit_bytes=feature_cache_bytes)
        self._pictures = Pictures()
        self._vision_lock = threading.Lock()
        self._tiles_per_look = tiles_per_look
        self._decoder = decoder
        decoder.start()

    @classmethod
    def load(
        cls,
        directory: str | Path,
        *,
        slots: int = Settings.slots,
        context_tokens: int | None = Settings.context_tokens,
        prefill_chunk: int = Settings.prefill_chunk,
        queue_limit: int = Settings.queue_limit,
        default_deadline_s: float = Settings.default_deadline_s,
        prefix_cache: bool = Settings.prefix_cache,
        tpot_slowdown: float = Settings.tpot_slowdown,
        tpot_target_ms: float | None = Settings.tpot_target_ms,
        threads: int = 0,
        vision_threads: int = 0,
        provider: Provider | str = "cpu",
        tiles_per_run: int = 8,
        feature_cache_bytes: int = DEFAULT_LIMIT_BYTES,
    ) -> Self:
        """The engine of an export, with the decoder's `Settings`.

        threads of all sessions together, 0 for every physical core; vision_threads: see share_threads; provider: what
        computes, such as cuda:0, see `vitrail.providers`; tiles_per_run bounds the vision encoder's memory,
        feature_cache_bytes what is kept of tiles that it has seen. Raises ArtifactError for a directory that is no
        whole export, OptionError for a setting, or for a provider that cannot run here.
        """
        settings = Settings(
            slots=slots,
            context_tokens=context_tokens,
            prefill_chunk=prefill_chunk,
            queue_limit=queue_limit,
            default_deadline_s=default_deadline_s,
            prefix_cache=prefix_cache,
            tpot_slowdown=tpot_slowdown,
            tpot_target_ms=tpot_target_ms,
        )
        require_whole(
            threads=threads,
            vision_threads=vision_threads,
            tiles_per_run=tiles_per_run,
            feature_cache_bytes=feature_cache_bytes,
        )
        provider = as_provider(provider)
        shares = share_threads(provider, threads, vision_threads)
        path = _directory(directory)
        manifest = load_manifest(path, contents=True)
        check_load(
            manifest,
            settings,
            provider,
            tiles_per_run=tiles_per_run,
            feature_cache_bytes=feature_cache_bytes,
            server=False,
        )
        return cls._open(
            path,
            manifest,
            settings,
            shares,
            tiles_per_run=tiles_per_run,
            feature_cache_bytes=feature_cache_bytes,
        )

    @classmethod
    def _open(
        cls,
        directory: Path,
        manifest: Manifest,
        settings: Settings,
        shares: Shares,
        *,
        tiles_per_run: int,
        feature_cache_bytes: int,
    ) -> Self:
        """What was found to fit, loaded."""
        tokenizer = load_tokenizer(directory, manifest.tokenizer)
        capacity = settings.capacity(manifest.decoder.context_tokens)
        session = open_decoder(directory, manifest, shares.decoder, slots=settings.slots, capacity=capacity)
        vision = open_vision(directory, manifest, shares.vision, tiles_per_run=tiles_per_run)
        return cls(
            manifest=manifest,
            tokenizer=tokenizer,
            vision=vision,
            decoder=Decoder(session, tokenizer, manifest.tokenizer, settings),
            tiles_per_look=tiles_per_run,
            feature_cache_bytes=feature_cache_bytes,
        )

    @property
    def statistics(self) -> Statistics:
        return self._decoder.statistics

    def prompt(self, messages: Messages, **options: object) -> Prompt:
        """What the model would be asked: prompt text, token ids and uint8 tiles. Runs nothing.

        Raises InvalidInput (ImageError, OptionError) for what cannot be asked.
        """
        prompt_options, _ = read_options(**options)
        return self._prompt(messages, prompt_options)

    def chat(self, messages: Messages, **options: object) -> Completion:
        """The whole answer. Raises what `stream` raises."""
        with self.stream(messages, **options) as deltas:
            return collect(deltas)

    def stream(self, messages: Messages, **options: object) -> DeltaStream:
        """The answer as it grows; closing the iterator cancels it.

        Raises InvalidInput (ImageError, OptionError, PromptTooLong), Busy, or ServerError once closed, here, not at
        the first delta.
        """
        self._decoder.require_open()
        prompt_options, generate_options = read_options(**options)
        began_s = time.monotonic()
        prompt = self._prompt(messages, prompt_options)
        self._decoder.answer_limit(len(prompt.token_ids), generate_options)
        prepared_s = time.monotonic()
        request = Request(
            id=uuid.uuid4().hex,
            token_ids=np.array(prompt.token_ids, np.int32),
            options=generate_options,
            images=prompt.images,
            preprocess_ms=1000 * (prepared_s - began_s),
        )

        def begin(sink: Sink) -> None:
            pictured = self._look(request, prompt.tiles, sink, since_s=prepared_s)
            if pictured is not None:
                self._decoder.submit(pictured, sink)

        return DeltaStream(begin, lambda: self._decoder.abort(request.id))

    def close(self) -> None:
        """Stop; answers that are being written end in an error."""
        self._decoder.close(why=CLOSED)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prompt(self, messages: Messages, options: PromptOptions) -> Prompt:
        vision = self.manifest.vision
        prompt = render(
            messages,
            contract=self.manifest.prompt,
            tile_size=vision.tile_size,
            tokens_per_tile=vision.tokens_per_tile,
            options=options,
            cut=self._pictures.cut,
        )
        self._decoder.require_text_room(prompt.segments)
        ids = self._tokenizer.encode(prompt.segments, vision.tokens_per_tile)
        return replace(prompt, token_ids=tuple(ids.tolist()))

    def _look(self, request: Request, tiles: Uint8, sink: Sink, *, since_s: float) -> Request | None:
        """The request with its pictures' embeds; None where its deadline ended it before."""
        if not len(tiles):
            return request
        return look(
            request,
            tiles,
            see=lambda part, _: self._see(part),
            tiles_per_look=self._tiles_per_look,
            since_s=since_s,
            dismiss=lambda current: self._decoder.dismiss(current, sink),
        )

    def _see(self, tiles: Uint8) -> Seen:
        """One thread after the other, since the session uses every core."""
        with self._vision_lock:
            embeds, known = self._vision.see(tiles)
        return Seen(embeds, int(known.sum()))


def _directory(directory: str | Path) -> Path:
    try:
        return Path(directory)
    except TypeError as error:
        raise OptionError(
            f"the artifact directory is of type {type(directory).__name__}; give the path of one that "
            "`vitrail export` wrote"
        ) from error


class DeltaStream(Iterator[Delta]):
    """The deltas of one request, in order; threads that share it get some each. `close`, or being forgotten, cancels what
    is left of it.
    """

    def __init__(self, begin: Callable[[Sink], None], abort: Callable[[], object]) -> None:
        self._events: SimpleQueue[Delta | VitrailError | None] = SimpleQueue()  # None: the end was read
        self._abort = abort
        self._ended = True
        begin(self._events.put)
        self._ended = False

    def __next__(self) -> Delta:
        if self._ended:
            raise StopIteration
        event = self._events.get()
        if not isinstance(event, Delta) or event.report is not None:
            self._ended = True
            self._events.put(None)  # for another thread that waits
        if event is None:
            raise StopIteration
        if isinstance(event, VitrailError):
            raise event
        return event

    def close(self) -> None:
        if not self._ended:
            self._ended = True
            self._abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
