"""A clock that only moves when told, and an answerer that moves it."""

from __future__ import annotations

from vitrail.benchmark.workload import Ask, Question
from vitrail.core import Delta, Grid, ImageReport, Report, Timings


class FakeClock:
    def __init__(self, now_s=100.0):
        self.now_s = now_s

    def now(self):
        return self.now_s

    def wait_until(self, moment_s, stop):
        self.now_s = max(self.now_s, moment_s)


class Answers:
    """Streams one token after each of `pauses_s`; an exception in place of pauses is raised."""

    def __init__(self, clock, *scripts):
        self.clock, self.scripts, self.asked = clock, scripts, []

    def stream(self, messages, **options):
        script = self.scripts[len(self.asked) % len(self.scripts)]
        self.asked.append((messages, options))
        return self._deltas(script)

    def _deltas(self, script):
        if isinstance(script, Exception):
            raise script
        for number, pause_s in enumerate(script):
            self.clock.now_s += pause_s
            yield Delta(text="x", token_ids=(number,))
        yield Delta(finish_reason="length", report=report(len(script)))


def report(tokens, **timings):
    image = ImageReport(width=84, height=56, grid=Grid(3, 2), tiles=7, visual_tokens=28)
    return Report(
        prompt_tokens=40,
        completion_tokens=tokens,
        images=(image,),
        timings=Timings(**timings),
        reused_tokens=30,
        reused_tiles=7,
    )


def asks(number=1000, **options):
    for index in range(number):
        question = Question(index, None, (index,))
        yield Ask(question, [{"role": "user", "content": "Why?"}], {"max_tokens": 2, **options}, size_bytes=4)
