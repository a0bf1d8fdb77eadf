"""`vitrail info`: what an artifact directory, a checkpoint or a server is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from vitrail.cli.terminal import command, hush_grpc
from vitrail.errors import OptionError, ServerError
from vitrail.manifest import FILENAME, load_manifest


@command(extra="export")
def info(
    *,
    target: Annotated[
        str, typer.Argument(help="Artifact directory, checkpoint directory, or HOST:PORT of a server.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show what an artifact directory, a checkpoint or a server is."""
    fields = describe(target)
    if as_json:
        typer.echo(json.dumps(fields, ensure_ascii=False))
        return
    lines = dict(_flat(fields))
    width = max(map(len, lines))
    for name, value in lines.items():
        typer.echo(f"{name:<{width}}  {value}")


def describe(target: str) -> dict[str, Any]:
    """Everything known about `target`, by name; "kind" tells what it is."""
    path = Path(target)
    if (path / FILENAME).is_file():
        return {"kind": "artifacts", **_artifacts(path)}
    if (path / "config.json").is_file():
        return {"kind": "checkpoint", **_checkpoint(path)}
    if path.is_dir():
        return {"kind": "artifacts", **_artifacts(path)}  # raises: no manifest
    if path.is_file():
        raise OptionError(f"'{target}' is a file; give a directory or the HOST:PORT of a server")
    if "/" in target and "://" not in target and not target.startswith("unix:"):
        raise OptionError(f"there is no directory '{target}'; give a directory or the HOST:PORT of a server")
    return {"kind": "server", **_server(target)}


def _artifacts(path: Path) -> dict[str, Any]:
    manifest = load_manifest(path)
    fields = manifest.model_dump(mode="json", exclude={"tokenizer", "artifacts", "parity"})
    files = manifest.artifacts.values()
    return {
        **fields,
        "tokenizer": manifest.tokenizer.kind,
        "size_bytes": sum(file.size_bytes for file in files),
        "files": {file.path: file.size_bytes for file in files},
        "parity": {row.stage: row.model_dump(exclude={"stage"}) for row in manifest.parity},
    }


def _checkpoint(path: Path) -> dict[str, Any]:
    from vitrail_export.checkpoint import Checkpoint  # noqa: PLC0415

    config = Checkpoint.open(path).config
    return {"name": path.resolve().name, **asdict(config), "tokens_per_tile": config.tokens_per_tile}


def _server(url: str) -> dict[str, Any]:
    hush_grpc()
    from vitrail.client import Client  # noqa: PLC0415

    try:
        with Client(url) as client:
            return {"url": client.target, **client.info().model_dump(mode="json")}
    except ServerError as error:
        raise ServerError(
            f"{error}" if ":" in url else f"there is no directory '{url}', and {error}"
        ) from error


def _flat(fields: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in fields.items():
        match value:
            case dict():
                rows += _flat(value, f"{prefix}{name}.")
            case list() | tuple():
                rows.append((prefix + name, " ".join(map(str, value))))
            case _:
                rows.append((prefix + name, value))
    return rows
