"""`vitrail ask`: a question about pictures, to a server or to artifacts in this process."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from vitrail.answer import collect
from vitrail.cli.report import report_lines, tokens_per_s
from vitrail.cli.terminal import PROVIDER_HELP, command, hush_grpc, stderr
from vitrail.errors import OptionError, VitrailError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from types import FrameType

    from vitrail.core import Completion, Delta


class Deltas(Protocol):
    """An answer as it grows; closing it cancels."""

    def __iter__(self) -> Iterator[Delta]: ...

    def close(self) -> None: ...


class Asked(Protocol):
    """What an engine and a client have in common."""

    def stream(self, messages: Any, **options: Any) -> Deltas: ...


DEFAULT_URL = "localhost:8001"
TERMINATED = 143


@command(extra="runtime")
def ask(
    *,
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Pictures, in order; - is a picture on stdin.", show_default=False),
    ] = None,
    question: Annotated[str, typer.Option("--question", "-q", help="What to ask.")],
    url: Annotated[
        str | None,
        typer.Option(help=f"The server's gRPC address. [default: {DEFAULT_URL}]", show_default=False),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Run these artifacts here instead of asking a server.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among so many tokens.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Sample above this share of the likeliest.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1 discourages repetition.")] = None,
    presence_penalty: Annotated[float | None, typer.Option(help="Against tokens that were said.")] = None,
    frequency_penalty: Annotated[float | None, typer.Option(help="Against tokens, each time.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End the answer here; may be repeated.")] = None,
    ignore_eos: Annotated[
        bool | None, typer.Option("--ignore-eos", help="Go on past the model's own end.")
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", help="Independent answers; shown when all are done.")
    ] = None,
    logprobs: Annotated[
        int | None, typer.Option(help="With --json: each token's log-probability and the k most likely.")
    ] = None,
    keep_special_tokens: Annotated[
        bool | None, typer.Option("--keep-special-tokens", help="Keep grounding marks in the answer.")
    ] = None,
    max_tiles: Annotated[int | None, typer.Option(help="Tiles per picture, 1 to 40.")] = None,
    thumbnail: Annotated[bool | None, typer.Option(help="Show the whole picture beside its tiles.")] = None,
    rotate: Annotated[bool | None, typer.Option("--rotate", help="Follow the EXIF orientation.")] = None,
    system: Annotated[str | None, typer.Option(help="System message instead of the model's own.")] = None,
    deadline: Annotated[float | None, typer.Option(help="Seconds after which the answer is cut off.")] = None,
    priority: Annotated[
        int | None, typer.Option(help="Where requests wait: 0 (first) to 9. [default: 5]", show_default=False)
    ] = None,
    user: Annotated[
        str | None, typer.Option(help="Whose request this is; users take turns.", show_default=False)
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            help="With --model: tokens of prompt and answer together. [default: the export's, at most 8192]",
            show_default=False,
        ),
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(help=f"With --model. {PROVIDER_HELP} [default: cpu]", show_default=False),
    ] = None,
    route: Annotated[
        str | None,
        typer.Option(help="auto, ensemble or direct (see docs). [default: auto]", show_default=False),
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option(help="NAME: VALUE for the server; may be repeated.")
    ] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(help="PEM file of the authority of a grpcs:// server.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Ask a question about pictures. The answer streams to stdout, the report goes to stderr.

    An answer that --deadline cut off is printed as far as it came, and ends with exit code 0 as a short one does:
    the report (--json: finish_reason) tells.
    """
    options = _given(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        stop=stop or None,
        ignore_eos=ignore_eos,
        n=n,
        logprobs=logprobs,
        keep_special_tokens=keep_special_tokens,
        max_tiles=max_tiles,
        thumbnail=thumbnail,
        rotate=rotate,
        system=system,
        deadline_s=deadline,
        priority=priority,
        user=user,
    )
    if logprobs is not None and not as_json:
        raise OptionError(f"--logprobs {logprobs} shows nothing without --json; add --json")
    messages = [{"role": "user", "content": _content(images or [], question)}]
    for_server = _given(url=url, route=route, header=header or None, tls_ca=tls_ca)
    for_model = _given(context=context, provider=provider)
    answering = _answering(model, slots=max(1, n or 1), for_model=for_model, for_server=for_server)
    signal.signal(signal.SIGTERM, _terminate)
    with answering as asked, closing(asked.stream(messages, **options)) as deltas:
        completion = collect(deltas if as_json or (n or 1) > 1 else _shown(deltas))
    _print(completion, as_json=as_json)


def completion_fields(completion: Completion) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "token_ids": completion.choices[0].token_ids,
        "choices": [asdict(choice) for choice in completion.choices],
        **asdict(completion.report),
        "visual_tokens": completion.report.visual_tokens,
        "tokens_per_s": round(tokens_per_s(completion.report), 3),
    }


def _print(completion: Completion, *, as_json: bool) -> None:
    """What was not shown as it came: several answers, or one JSON object; and the report, on stderr."""
    if as_json:
        typer.echo(json.dumps(completion_fields(completion), ensure_ascii=False))
    elif len(completion.choices) > 1:
        for choice in completion.choices:
            typer.echo(f"[{choice.index + 1}] {_printable(choice.text)}")
    for line in report_lines(completion):
        stderr.print(line)


def _shown(deltas: Deltas) -> Iterator[Delta]:
    """Pass deltas on as they are printed. A line that was begun is ended, whatever ends the answer."""
    begun = False
    try:
        for delta in deltas:
            sys.stdout.write(_printable(delta.text))
            sys.stdout.flush()
            begun = begun or bool(delta.text)
            yield delta
    except (VitrailError, KeyboardInterrupt, SystemExit):
        sys.stdout.write("\n" * begun)
        sys.stdout.flush()
        raise
    sys.stdout.write("\n")
    sys.stdout.flush()


def _printable(text: str) -> str:
    """A terminal gets no control characters that a model may have written."""
    if not sys.stdout.isatty():
        return text
    return "".join(char for char in text if char.isprintable() or char in "\n\t")


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _content(images: list[str], question: str) -> list[dict[str, Any]]:
    if images.count("-") > 1:
        raise OptionError("'-' is given twice; stdin holds one picture")
    pictures: list[str | bytes] = [sys.stdin.buffer.read() if image == "-" else image for image in images]
    return [
        *({"type": "image", "image": picture} for picture in pictures),
        {"type": "text", "text": question},
    ]


def _headers(headers: Sequence[str]) -> dict[str, str]:
    found = dict(header.partition(":")[::2] for header in headers)
    if wrong := [name for name, value in found.items() if not name.strip() or not value.strip()]:
        raise OptionError(f"header '{wrong[0]}' has no value; give NAME: VALUE")
    return {name.strip(): value.strip() for name, value in found.items()}


def _answering(
    model: Path | None, *, slots: int, for_model: dict[str, Any], for_server: dict[str, Any]
) -> AbstractContextManager[Asked]:
    """Who is to answer. Raises OptionError for what the other one would be given."""
    if model is None:
        for name, value in for_model.items():
            raise OptionError(f"--{name} {value} is for --model; a server's is set by `vitrail serve`")
        return _client(**for_server)
    if for_server:
        name = next(iter(for_server)).replace("_", "-")
        raise OptionError(f"--{name} is for a server, so --{name} and --model exclude each other; give one")
    return _engine(model, slots=slots, **for_model)


@contextmanager
def _engine(model: Path, *, slots: int, context: int | None = None, provider: str = "cpu") -> Iterator[Asked]:
    """One slot for each answer: more would take memory that nobody uses."""
    from vitrail.engine import Engine  # noqa: PLC0415

    with stderr.status(f"loading {model}"):
        engine = Engine.load(model, slots=slots, context_tokens=context, provider=provider)
    with engine:
        yield engine


@contextmanager
def _client(
    *, url: str = DEFAULT_URL, route: Any = "auto", header: Sequence[str] = (), tls_ca: Path | None = None
) -> Iterator[Asked]:
    hush_grpc()
    from vitrail.client import TLS, Client  # noqa: PLC0415

    tls = TLS(ca=tls_ca) if tls_ca else False
    with Client(url, route=route, headers=_headers(header), tls=tls) as client:
        yield client


def _terminate(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM (of `timeout`, say) leaves by the same way as Ctrl-C: the request is cancelled first."""
    raise SystemExit(TERMINATED)
