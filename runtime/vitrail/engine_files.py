"""The files of TensorRT engines, looked at by who runs them."""

from __future__ import annotations

from pathlib import Path

from vitrail.artifact_files import sha256
from vitrail.errors import ArtifactError
from vitrail.manifest import EngineRecord, Manifest


def engine_file(manifest: Manifest, engine: EngineRecord, directory: Path) -> Path:
    """The engine's file, whole. Raises ArtifactError where it is missing or damaged, naming the command that builds it."""
    artifact = manifest.artifacts[engine.artifact]
    file = directory / artifact.path
    cure = f"build it again with: {manifest.rebuild(engine, directory)}"
    if not file.is_file():
        raise ArtifactError(
            f"'{directory}' lacks the engine {artifact.path}, which its manifest names; {cure}"
        )
    if file.stat().st_size != artifact.size_bytes:
        raise ArtifactError(
            f"engine '{file}' has {file.stat().st_size} bytes, its manifest says {artifact.size_bytes}: damaged; {cure}"
        )
    if sha256(file) != artifact.sha256:
        raise ArtifactError(f"engine '{file}' does not match its hash in the manifest: damaged; {cure}")
    return file
