"""A load to plan for, and plans as the command tells them."""

import json

from typer.testing import CliRunner

from vitrail.cli import app
from vitrail.plan.model import Load

LOAD = Load(slots=1, context_tokens=4096)


def plan_of(*arguments, exit_code=0):
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    assert result.exit_code == exit_code, result.stderr
    *table, line = result.stdout.splitlines()
    return table, json.loads(line)
