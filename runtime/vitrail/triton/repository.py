"""A servable model repository: the in-tree files with one export's parameters written into them."""

from __future__ import annotations

import filecmp
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vitrail.client import wire
from vitrail.decoder import Settings
from vitrail.errors import InvalidInput, OptionError, ServerError
from vitrail.features import DEFAULT_LIMIT_BYTES, check_limit
from vitrail.machine import Shares, share_threads
from vitrail.manifest import Manifest, load_manifest
from vitrail.plan.model import TARGETS, Target
from vitrail.providers import Cpu, OpenVino, Provider, parse_provider, with_threads
from vitrail.runs import cpu_tiles_per_look
from vitrail.session.open import check_forms
from vitrail.tiling import MAX_TILES
from vitrail.triton import targets
from vitrail.triton.vision_models import BATCH_TILES
from vitrail.triton.vision_models import PARAMETER as VISION_PARAMETER

SETTINGS_PARAMETER = "settings"
CONFIG = "config.pbtxt"
MODELS = (wire.VISION_ENCODER, wire.PROJECTOR, wire.DECODER, wire.ENSEMBLE)


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """What a server runs: the decoder's own settings, and how the sessions use the machine.

    provider: what computes; threads: of all models together, 0 for every physical core; vision_threads: how many of
    them the vision models have for themselves (see share_threads); tiles_per_run bounds the memory of the vision
    encoder, feature_cache_bytes what it keeps of the tiles that it has seen. target: which of Triton's backends run the
    vision models; gpu: which of several engines, by compute capability, such as sm_86.
    """

    decoder: Settings = Settings()  # noqa: RUF009  (frozen)
    threads: int = 0
    vision_threads: int = 0
    tiles_per_run: int = 8
    feature_cache_bytes: int = DEFAULT_LIMIT_BYTES
    provider: Provider = Cpu()  # noqa: RUF009  (frozen)
    target: Target = "cpu"
    gpu: str | None = None

    def __post_init__(self) -> None:
        with_threads(self.provider, self.threads)
        if not 1 <= self.tiles_per_run <= BATCH_TILES:
            raise OptionError(f"tiles_per_run is {self.tiles_per_run}; it must be from 1 to {BATCH_TILES}")
        check_limit(self.feature_cache_bytes)
        if self.target not in TARGETS:
            raise OptionError(f"target '{self.target}' is unknown; it is one of {', '.join(TARGETS)}")
        if self.gpu is not None and self.target not in ("tensorrt", "jetson"):
            raise OptionError(
                f"gpu {self.gpu} chooses among TensorRT's engines, which target {self.target} runs none of; leave it out"
            )

    @property
    def shares(self) -> Shares:
        """Threads of each model, on the machine that asks. Raises OptionError where it has fewer cores."""
        return share_threads(self.provider, self.threads, self.vision_threads)

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"provider": str(self.provider)})


def settings_from_json(text: str) -> ServingSettings:
    """Raises OptionError for what `to_json` did not write."""
    try:
        values: dict[str, Any] = json.loads(text)
        return ServingSettings(
            **values
            | {"decoder": Settings(**values["decoder"]), "provider": parse_provider(values["provider"])}
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        known = ", ".join(field.name for field in fields(ServingSettings))
        raise OptionError(
            f"the model parameter '{SETTINGS_PARAMETER}' is malformed ({error}); it holds {known}"
        ) from error


def cpu_look(manifest: Manifest, settings: ServingSettings) -> int | None:
    """Tiles that the decoder hands to the vision models at once on a CPU; None where something else computes."""
    provider = settings.provider
    if settings.target != "cpu" or not isinstance(provider, Cpu):
        return None
    openvino = isinstance(provider, OpenVino)
    return min(
        cpu_tiles_per_look(manifest.vision, settings.tiles_per_run, openvino=openvino),
        BATCH_TILES,
    )


def contract(
    manifest: Manifest, settings: ServingSettings, *, ensemble_tiles: int | None = None
) -> wire.Contract:
    """What the server tells its clients. One place of a slot stays free, so a request has one token less.

    ensemble_tiles: the most that the ensemble's vision encoder takes of one request, where that is less.
    """
    capacity = settings.decoder.capacity(manifest.decoder.context_tokens)
    return wire.contract_from_manifest(
        manifest,
        slots=settings.decoder.slots,
        context_tokens=capacity - 1,
        queue_limit=settings.decoder.queue_limit,
        max_request_tiles=BATCH_TILES,
        ensemble_tiles=ensemble_tiles,
        look_tiles=cpu_look(manifest, settings),
    )


def shared_memory_shortage(manifest: Manifest, *, free_bytes: int) -> str | None:
    """What to tell where one picture of MAX_TILES tiles does not fit between the models; None where it does."""
    vision = manifest.vision
    row_bytes = 4 * vision.tokens_per_tile * (2 * vision.feature_size + 2 * manifest.decoder.hidden_size)
    needed_bytes = (MAX_TILES + 1) * (row_bytes + 3 * vision.tile_size**2)
    if free_bytes >= needed_bytes:
        return None
    return (
        f"shared memory (/dev/shm) has {free_bytes >> 20} MiB free, a picture of {MAX_TILES} tiles needs {needed_bytes >> 20} MiB there; "
        "large pictures will fail: enlarge it (a container: --shm-size=2g)"
    )


def packaged_repository() -> Path:
    """The repository as it lies in a checkout, or inside the installed package."""
    package = Path(__file__).resolve().parent.parent
    for place in (package.parent.parent / "model_repository", package / "model_repository"):
        if all((place / model / CONFIG).is_file() for model in MODELS):
            return place
    raise ServerError(
        f"this vitrail has no model_repository (looked beside and inside '{package}'); install it again"
    )


def write_repository(
    artifacts: Path,
    out: Path,
    *,
    settings: ServingSettings | None = None,
    mounted_at: Path | None = None,
    keep_going: bool = False,
) -> Path:
    """Compose a repository that serves `artifacts` at `out`, whole or not at all; `out` is untouched when it is current.

    mounted_at: where the server finds the artifacts, if elsewhere. keep_going: engines that are missing or damaged are
    left out, of which a server that keeps going can do without. Raises ArtifactError for bad artifacts, OptionError
    for settings beyond them or a provider that does not compute them, InvalidInput when `out` is something else.
    """
    manifest = load_manifest(artifacts, contents=True)
    settings = settings or ServingSettings()
    if settings.target == "cpu":
        check_forms(manifest, settings.provider)
    served = targets.served_models(
        manifest,
        artifacts,
        target=settings.target,
        tiles_per_run=settings.tiles_per_run,
        gpu=settings.gpu,
        keep_going=keep_going,
    )
    targets.tensorrt_version(
        manifest, artifacts, target=settings.target, provider=settings.provider, gpu=settings.gpu
    )
    vision = targets.vision_models(served)
    ensemble_tiles = vision.batch_tiles if vision else None
    told = contract(manifest, settings, ensemble_tiles=ensemble_tiles)
    parameters = {
        wire.ARTIFACTS_PARAMETER: str(mounted_at or artifacts.resolve()),
        SETTINGS_PARAMETER: settings.to_json(),
        wire.CONTRACT_PARAMETER: wire.contract_to_json(told),
        **({VISION_PARAMETER: vision.to_json()} if vision else {}),
    }
    configs = _configs(manifest, settings, served)
    _check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as staging:
        new = Path(staging, "new")
        _compose(new, configs, parameters)
        for name, file in targets.file_names(served):
            _place(file, new / name)
        if not (out.is_dir() and _same(new, out)):
            _swap(new, out, old=Path(staging, "old"))
    return out


def _configs(
    manifest: Manifest, settings: ServingSettings, served: tuple[targets.Served, ...]
) -> dict[str, str]:
    """Every model's config.pbtxt, but for its parameters."""
    source = packaged_repository()
    texts = {model: (source / model / CONFIG).read_text(encoding="utf-8") for model in MODELS}
    if not served:
        return texts
    provider = settings.provider
    decoder, ensemble = (targets.parse_config(texts[model]) for model in (wire.DECODER, wire.ENSEMBLE))
    changed: dict[str, Any] = {
        model.stage: targets.vision_config(model, manifest, provider=provider) for model in served
    }
    changed[wire.DECODER] = targets.decoder_config(decoder, served, target=settings.target, provider=provider)
    changed[wire.ENSEMBLE] = targets.ensemble_config(ensemble)
    return {model: targets.config_text(config) for model, config in changed.items()}


def _compose(out: Path, configs: dict[str, str], parameters: dict[str, str]) -> None:
    source = packaged_repository()
    for model, config in configs.items():
        version = out / model / "1"
        version.mkdir(parents=True)
        is_ours = 'backend: "python"' in config
        (out / model / CONFIG).write_text(
            config + _parameters_text(parameters if is_ours else {}), encoding="utf-8"
        )
        if is_ours:
            shutil.copy(source / model / "1" / "model.py", version)


def _place(file: Path, to: Path) -> None:
    """A second name for the file, or a copy where the file system does not allow that."""
    try:
        to.hardlink_to(file.resolve())
    except OSError:
        shutil.copy(file, to)


def _parameters_text(parameters: dict[str, str]) -> str:
    """Parameters in text protobuf, the format of config.pbtxt."""
    return "".join(
        f"parameters {{ key: {json.dumps(key)} value: {{ string_value: {_quoted(value)} }} }}\n"
        for key, value in parameters.items()
    )


def _quoted(value: str) -> str:
    plain = {ord("\\"): "\\\\", ord('"'): '\\"', ord("\n"): "\\n", ord("\r"): "\\r"}
    return f'"{value.translate(plain)}"'


def _check_replaceable(out: Path) -> None:
    if out.exists() and not (
        out.is_dir() and (not any(out.iterdir()) or (out / wire.DECODER / CONFIG).is_file())
    ):
        raise InvalidInput(
            f"'{out}' exists and is no vitrail model repository; give a new or an empty directory"
        )


def _same(one: Path, other: Path) -> bool:
    """Whether every file of `one` has the same content in `other`."""
    names = [str(path.relative_to(one)) for path in one.rglob("*") if path.is_file()]
    changed = [name for name in names if not _linked(one / name, other / name)]
    return not any(filecmp.cmpfiles(one, other, changed, shallow=False)[1:])


def _linked(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)


def _swap(new: Path, out: Path, *, old: Path) -> None:
    if out.exists():
        out.rename(old)
    new.rename(out)
