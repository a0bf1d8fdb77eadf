"""What an answer used, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitrail.core import Completion, ImageReport, Report


def report_lines(completion: Completion) -> list[str]:
    """A line for each picture, one for the tokens, one for the time."""
    report = completion.report
    pictures = [_image_line(number, image) for number, image in enumerate(report.images, 1)]
    reused = f", {report.reused_tokens} from the cache" if report.reused_tokens else ""
    prompt = f"prompt {report.prompt_tokens} tokens ({report.visual_tokens} visual{reused})"
    reasons = ", ".join(choice.finish_reason for choice in completion.choices)
    answer = f"answer {report.completion_tokens} tokens ({reasons})"
    return [*pictures, f"{prompt}, {answer}", _time_line(report)]


def _time_line(report: Report) -> str:
    timings = report.timings
    names = ("preprocess", "vision", "queue", "prefill", "decode")
    spent = {name: getattr(timings, f"{name}_ms") for name in names}
    phases = ", ".join(f"{name} {_time(ms)}" for name, ms in spent.items() if ms)
    first = f"first token after {_time(timings.ttft_ms)}" if report.completion_tokens else "no token"
    speed = f", {tokens_per_s(report):.1f} tokens/s" if report.completion_tokens > 1 else ""
    return f"{first}{speed}, total {_time(timings.total_ms)} ({phases})"


def tokens_per_s(report: Report) -> float:
    """Tokens after the first, over the time since the first; 0 where there was one token at most."""
    further, spent_ms = report.completion_tokens - 1, report.timings.total_ms - report.timings.ttft_ms
    return 1000 * further / spent_ms if further > 0 and spent_ms > 0 else 0.0


def _image_line(number: int, image: ImageReport) -> str:
    return (
        f"picture {number}: {image.width}x{image.height}, grid {image.grid.columns}x{image.grid.rows}, "
        f"{image.tiles} tile{'s' * (image.tiles != 1)}, {image.visual_tokens} visual tokens"
    )


def _time(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.2f} s" if milliseconds >= 1000 else f"{milliseconds:.0f} ms"
