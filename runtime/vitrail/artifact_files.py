"""An export's files beside its manifest, but for its engines: whether they are there and what was exported."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from vitrail.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

    from vitrail.manifest import Manifest

REQUIRED = ("vision_encoder", "projector", "decoder", "token_embeddings")


def check_files(manifest: Manifest, directory: Path) -> None:
    """Presence and size of every artifact but the engines (cheap); `check_hashes` compares the contents.

    Raises ArtifactError naming the first that is missing or damaged.
    """
    needed = (*REQUIRED, *manifest.decoder.graphs, *(each.artifact for each in manifest.engines))
    missing = [name for name in needed if name not in manifest.artifacts]
    if missing:
        raise ArtifactError(f"the manifest in '{directory}' names no artifact '{missing[0]}'; export again")
    for artifact in manifest.graphs.values():
        file = directory / artifact.path
        if not file.is_file():
            raise ArtifactError(
                f"'{directory}' lacks {artifact.path}, which its manifest names; export again"
            )
        if file.stat().st_size != artifact.size_bytes:
            raise ArtifactError(
                f"'{file}' has {file.stat().st_size} bytes, its manifest says {artifact.size_bytes}: damaged; export again"
            )


def check_hashes(manifest: Manifest, directory: Path) -> None:
    """Raise ArtifactError naming the first artifact whose content is not what was exported.

    Engines are looked at by who runs them, with `vitrail.engine_files`: a bad one is no reason to refuse another provider.
    """
    for artifact in manifest.graphs.values():
        if sha256(directory / artifact.path) != artifact.sha256:
            raise ArtifactError(
                f"'{directory / artifact.path}' does not match its hash in the manifest: damaged; export again"
            )


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
