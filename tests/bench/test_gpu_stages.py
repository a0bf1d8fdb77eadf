"""The benchmark's own list of stages: what fits into the time of `make gpu-check`, and what a further run has to measure."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
from bench.gpu.models import Sizes
from bench.gpu.plan import Group, Run
from bench.gpu.session import MODELS, read_subject
from bench.gpu.stages import groups_of

CHECK_S = 360  # what the tests leave to the benchmark
SUBJECTS = [read_subject(text) for text in MODELS]
BENCH = SimpleNamespace(sizes=Sizes(), device=SimpleNamespace(is_gpu=True))

EVERY_SUBJECT = (
    *(f"prefill {tokens}" for tokens in (2048, 3400)),
    *(f"decode {rows}" for rows in (1, 8, 32)),
    *(f"answers ({tiles}, {many})" for tiles in (1, 13) for many in (1, 8, 32)),
)
VISION = tuple(f"vision {tiles}" for tiles in (1, 7, 13, 40))
LISTED = {
    *(f"{name} {precision}: {stage}" for name in ("internvl2-2b", "internvl3-8b") for precision in ("fp16", "int4") for stage in EVERY_SUBJECT),
    *(f"{name} fp16: {stage}" for name in ("internvl2-2b", "internvl3-8b") for stage in VISION),
}  # fmt: skip


class Card:
    """Runs the list on a clock of its own that goes by `pace` times what is expected."""

    def __init__(self):
        self.measured, self.opened, self.now_s = [], [], 0.0

    def run(self, *, seconds, pace):
        done = set(self.measured).__contains__
        groups = groups_of(SUBJECTS, BENCH, compiled=True, done=done)
        Run(
            [self._timed(group, pace) for group in groups],
            budget_s=seconds,
            on_outcome=self._note,
            clock=lambda: self.now_s,
        )()
        return self

    def _note(self, outcome):
        if outcome.left_out is None and not outcome.title.endswith((": open", ": close")):
            self.measured.append(outcome.title)

    def _timed(self, group, pace):
        def takes(seconds):
            def run(_bed):
                self.now_s += pace * seconds

            return run

        @contextmanager
        def opened():
            takes(group.open_seconds)(None)
            self.opened.append(group.title)
            yield group.title

        stages = tuple(replace(stage, run=takes(stage.seconds)) for stage in group.stages)
        return Group(group.title, group.open_seconds, opened, stages)


@pytest.mark.parametrize("pace", [0.7, 1.0])
def test_everything_of_vitrail_is_measured_in_the_time_of_gpu_check(pace):
    card = Card().run(seconds=CHECK_S, pace=pace)
    assert set(card.measured) >= LISTED
    assert card.now_s <= CHECK_S


def test_what_pytorch_alone_does_comes_last_and_has_the_time_that_is_left():
    card = Card().run(seconds=CHECK_S, pace=0.7)
    assert {title for title in card.measured if "torch" in title} >= {
        "internvl3-8b fp16: answers of torch (13, 8)",
        "internvl3-8b fp16: answers of torch (1, 32)",
    }
    group = groups_of(SUBJECTS, BENCH, compiled=True, done=lambda _title: False)[0]
    assert ["torch" in stage.title for stage in group.stages] == [False] * (len(group.stages) - 3) + [
        True
    ] * 3


def test_on_a_slow_machine_the_first_size_of_everything_comes_first():
    card = Card().run(seconds=CHECK_S, pace=1.4)
    goals = {f"{subject.title}: {stage}" for subject in SUBJECTS for stage in ("decode 1", "answers (13, 1)", "answers (13, 32)", "answers (1, 32)")}  # fmt: skip
    assert set(card.measured) >= goals
    assert not set(card.measured) >= LISTED


def test_further_runs_measure_what_is_missing_and_nothing_twice():
    card = Card().run(seconds=200, pace=1.0)
    assert not set(card.measured) >= LISTED
    card.run(seconds=300, pace=1.0).run(seconds=300, pace=1.0)
    assert set(card.measured) > LISTED
    assert len(card.measured) == len(set(card.measured))
    opened = len(card.opened)
    card.run(seconds=300, pace=1.0)
    assert len(card.opened) == opened
