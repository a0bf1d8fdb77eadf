"""Every command of the documents' blocks is one that the command line, the Makefile or a script of the tree takes."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from vitrail.cli import app
from vitrail.providers import parse_provider

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
MAKE = re.compile(r"^([a-z-]+):", re.MULTILINE)


def lines():
    """(document, line) of every line of a block, continued ones joined, comments and pipes cut off."""
    for document in DOCUMENTS:
        for language, block in BLOCK.findall(document.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                if language in ("", "sh", "bash"):
                    yield document.name, re.split(r"\s#\s|\s#$| \| | > | && ", line)[0].strip()


def commands(start):
    """The arguments behind `start`, wherever a container or a variable comes before it."""
    found = {}
    for document, line in lines():
        command = re.search(rf"(?:^|^\$run .*|^\w+=\S+ ){start} (\S.*)$", line)
        if command and "…" not in line and "..." not in line:
            found[f"{document}: {start} {command[1]}"] = shlex.split(command[1])
    return [pytest.param(arguments, id=name) for name, arguments in found.items()]


@pytest.mark.parametrize("arguments", commands("vitrail"))
def test_a_command_of_vitrail_s_parses_and_names_a_provider_that_there_is(arguments):
    command, given = get_command(app), list(arguments)
    while given and given[0] in getattr(command, "commands", ()):
        command = command.commands[given.pop(0)]
    taken = command.make_context(command.name, given).params
    if taken.get("provider"):
        parse_provider(taken["provider"])


@pytest.mark.parametrize("arguments", commands("make"))
def test_a_target_of_make_s_is_in_the_makefile(arguments):
    targets = set(MAKE.findall((ROOT / "Makefile").read_text(encoding="utf-8")))
    assert {each for each in arguments if "=" not in each} <= targets


@pytest.mark.parametrize("arguments", [*commands("python"), *commands("python3")])
def test_a_script_or_module_of_the_tree_is_there(arguments):
    if arguments[0] == "-m" and arguments[1].startswith(("bench", "demo")):
        module = ROOT.joinpath(*arguments[1].split("."))
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()
    elif arguments[0].endswith(".py"):
        assert (ROOT / arguments[0]).is_file()


@pytest.mark.parametrize("arguments", [each for each in commands("vitrail") if "plan internvl" in each.id])
def test_a_plan_of_a_published_model_is_made(arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert "best: decoder" in result.stdout


def test_the_documents_of_gpus_have_commands():
    named = " ".join(each.id for each in commands("vitrail"))
    for document in ("jetson.md", "gpu.md", "gpu-serving.md", "engines.md", "plan.md", "README.md"):
        assert f"{document}: vitrail" in named
