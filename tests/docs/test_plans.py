"""The memory plans in the documents are what the command prints."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vitrail.cli import app

TEXT = (Path(__file__).parents[2] / "docs" / "jetson.md").read_text(encoding="utf-8")
PLANS = re.findall(r"`vitrail (plan [^`]*)`:\n\n```\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize(("command", "shown"), PLANS, ids=[command for command, _ in PLANS])
def test_a_plan_in_the_jetson_guide_is_current(command, shown):
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 0, result.stderr
    *table, _json = result.stdout.splitlines()
    assert "\n".join(table) == shown.strip()


def test_the_guide_has_both_models():
    assert len(PLANS) == 2
