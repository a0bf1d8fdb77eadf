"""What tritonserver's log tells: which models are loaded, and why a start failed. Pure, except for reading the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from vitrail.client.wire import DECODER, ENSEMBLE, error_from_text, known_error
from vitrail.errors import ServerError, VitrailError

_LOADED = re.compile(r"successfully loaded '(?P<model>[^']+)'")
# The model's own words, up to the traceback that the python backend appends; within a log line breaks are escaped.
_FAILED = re.compile(
    r"failed to load '(?P<model>\w+)' version \d+: [\w ]+: (?P<reason>.*?)(?:(?:\\n|\n)+At:|\"?$)",
    re.MULTILINE,
)
# Lines of tritonserver's log, of its start-up and of the gRPC library.
_ERROR = re.compile(
    r'^(?:error: |\S+Z E \d+ \S+\] "?|E\d{4} [^\]]*\] +|\S*tritonserver: )(?P<reason>.+?)"?\s*$', re.MULTILINE
)
_HARMLESS = (
    "CudaDriverHelper",
    "unable to create stream",
    "creating server: Internal - failed to load all models",
)
_USAGE = "Usage: tritonserver [options]"
_SHOWN_ERRORS = 3


def read_from(path: Path, offset: int) -> str:
    """The log's text from byte `offset` on; empty where there is none yet."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def loaded_models(text: str) -> tuple[str, ...]:
    """In the order in which they became ready."""
    return tuple(dict.fromkeys(_LOADED.findall(text)))


def failed_models(text: str) -> dict[str, str]:
    """Why each model failed, in its own words, in the order in which they did; none that only needs one that failed."""
    found = reversed([(each["model"], _clean(each["reason"])) for each in _FAILED.finditer(text)])
    return dict(reversed(dict(found).items()))


def is_idle(text: str) -> bool:
    """Whether a server that was told to stop has answered every request and only unloads its models."""
    return "All models are stopped, unloading models" in text


def failure(text: str) -> str | None:
    """Why the decoder failed, or the first model that did, in its own words, else the server's last errors; None where it names none."""
    if failed := failed_models(text):
        model = DECODER if DECODER in failed else next(iter(failed))
        return f"model '{model}': {failed[model]}"
    errors = dict.fromkeys(_clean(found["reason"]) for found in _ERROR.finditer(text))
    telling = [error for error in errors if not any(words in error for words in _HARMLESS)]
    if not telling and _USAGE in text:
        return "it refuses one of its arguments; see those that were passed on"
    return "; ".join(telling[-_SHOWN_ERRORS:]) or None


def missing_models(text: str, models: Iterable[str], *, is_ready: Callable[[str], bool]) -> dict[str, str]:
    """Those that neither the log nor the server calls loaded, and why; the ensemble has what it needs for a reason."""
    loaded, reasons = loaded_models(text), failed_models(text)
    missing = [model for model in models if model not in loaded and not is_ready(model)]
    parts = " and ".join(model for model in missing if model != ENSEMBLE)
    told = {
        model: reasons.get(model, f"it needs {parts}" if parts else "no reason is given") for model in missing
    }
    return {model: str(known_error(reason) or reason) for model, reason in told.items()}


def start_error(text: str) -> VitrailError:
    """Of a server that ended while it started: the failed model's own error where it told one."""
    reason = failure(text)
    if reason is None:
        last = f"the end of its log:\n{tail(text)}" if text.strip() else "its log is empty"
        return ServerError(f"tritonserver ended without giving a reason; {last}")
    error = error_from_text(reason)
    if type(error) is ServerError:
        error = ServerError(f"tritonserver did not start: {reason}")
    failed = failed_models(text)
    if failed and DECODER not in failed:
        return type(error)(f"{error}; with --keep-going, what can be served is")
    return error


def tail(text: str, *, lines: int = 20) -> str:
    return "\n".join(text.rstrip().splitlines()[-lines:])


def _clean(reason: str) -> str:
    """One line, without the exception type that the backend puts before a model's message."""
    return " ".join(reason.split()).removeprefix("TritonModelException: ").strip('" ')
