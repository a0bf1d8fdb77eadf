"""What a model takes under a load on a target: weights, KV cache, activations, pictures, workspace, processes.

For `cpu` the constants were measured (docs/plan.md compares the sums with real processes). For GPUs weights, KV cache and
pictures are counted exactly; activations are counted from the shapes; workspace and processes are allowances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from vitrail.dtypes import port_dtype
from vitrail.pictures import KEPT_BYTES
from vitrail.plan.model import STAGES, Load, Model, Target, described
from vitrail.plan.size import MIB
from vitrail.runs import cpu_tiles_per_look, cpu_tiles_per_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vitrail.manifest import Manifest

Kind: TypeAlias = Literal["weights", "kv cache", "activations", "pictures", "workspace", "processes"]
KINDS: tuple[Kind, ...] = ("weights", "kv cache", "activations", "pictures", "workspace", "processes")
Place: TypeAlias = Literal["host", "device"]

# Measured on ONNX Runtime 1.31, memory after loading over the size of the files, whose mapped pages are let go of: integer
# weights are packed with their scales and sums; half precision is widened to float32, and kept beside it in parts.
_CPU_WEIGHTS = {"float32": 1.0, "float16": 2.4, "int8": 1.02, "int8-static": 1.02, "w8a8": 1.02, "int4": 1.05}
# On OpenVINO, in bf16: half precision was measured at 4 and at 24 layers, float32 at 4; its libraries beside them.
_OPENVINO_WEIGHTS = {"float16": 3.1}
_OPENVINO_OTHER_WEIGHTS = 1.0
_OPENVINO_BYTES = 35 * MIB
_OPENVINO_ACTIVATIONS = 0.45  # of what ONNX Runtime takes for the same tiles
_OPENVINO_SCRATCH_BYTES = 112 * MIB
_CPU_SESSION_BYTES = 2 * MIB
_CPU_PROCESS_BYTES = 80 * MIB  # Python, numpy, onnxruntime, the tokenizer
_CPU_STUB_BYTES = 65 * MIB  # the same inside the python backend; the launcher's 43 are in these three
_STUBS = 3
_SERVER_BYTES = 45 * MIB
_CPU_STREAMS = 15  # tensors as wide as the vision encoder's stream that live at once, most of them in its MLP

# Allowances: nothing of these has been measured here.
_GPU_CONTEXT_BYTES = 512 * MIB  # of each process that computes: driver, kernels
_GPU_WORKSPACE_BYTES = 64 * MIB  # of each session: scratch of matrix products
_GPU_HOST_BYTES = 512 * MIB  # of each process that computes: its libraries
_JETSON_SYSTEM_BYTES = 1536 * MIB  # of the memory that the GPU shares: the system, and what it sets aside


@dataclass(frozen=True, slots=True)
class Item:
    kind: Kind
    part: str
    size_bytes: int
    place: Place = "host"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is taken, item by item. A Jetson's GPU has no memory of its own: all of it is counted together."""

    model: Model
    load: Load
    target: Target
    items: tuple[Item, ...]

    @property
    def place(self) -> Place:
        """Where memory runs out first."""
        return "host" if self.target in ("cpu", "jetson") else "device"

    @property
    def total_bytes(self) -> int:
        """At `place`."""
        return sum(item.size_bytes for item in self._counted)

    @property
    def host_bytes(self) -> int:
        """Of the machine, beside a GPU's own."""
        return sum(item.size_bytes for item in self.on_host)

    @property
    def on_host(self) -> tuple[Item, ...]:
        return tuple(item for item in self.items if self._place(item) == "host")

    @property
    def on_device(self) -> dict[str, int]:
        """Of a GPU's own memory, by kind, what is still to be taken by a process whose own context is there already."""
        found: dict[str, int] = {}
        for item in self.items:
            if item.place == "device":
                found[item.kind] = found.get(item.kind, 0) + item.size_bytes
        return found | {"processes": found.get("processes", 0) - _GPU_CONTEXT_BYTES}

    @property
    def by_kind(self) -> dict[Kind, int]:
        """Of `total_bytes`, in the order of KINDS."""
        return {kind: sum(item.size_bytes for item in self._counted if item.kind == kind) for kind in KINDS}

    @property
    def _counted(self) -> tuple[Item, ...]:
        return tuple(item for item in self.items if self._place(item) == self.place)

    def _place(self, item: Item) -> Place:
        return "host" if self.target == "jetson" else item.place


def plan_memory(model: Model, load: Load, *, target: Target = "cpu", server: bool = True) -> Plan:
    """The most that is taken while every slot is full. server: Triton with its processes, else one process."""
    on_cpu, taken = target == "cpu", model.reserved(load)
    cache = taken.slots * taken.context_tokens * model.kv_bytes_per_token
    items = [
        *_weights(model, on_cpu=on_cpu),
        Item("kv cache", "decoder", cache, "host" if on_cpu else "device"),
        *_activations(model, taken, on_cpu=on_cpu),
        *_pictures(model, taken, on_cpu=on_cpu, server=server),
        *(_cpu_processes(server=server) if on_cpu else _gpu_processes(target, server=server)),
    ]
    return Plan(model, load, target, tuple(items))


def graph_bytes(manifest: Manifest, stages: Sequence[str], load: Load) -> dict[str, int]:
    """What ONNX Runtime takes of a GPU's memory for these graphs beside what is bound to them, by names for a message."""
    plan = plan_memory(described(manifest), load, target="cuda")
    kinds = ("weights", "activations")
    found = [item for item in plan.items if item.part in stages and item.kind in kinds]
    return {f"{item.kind} of {item.part}": item.size_bytes for item in found}


def _weights(model: Model, *, on_cpu: bool) -> Iterator[Item]:
    """The embedding table is not among them: it is mapped, and only the rows that are needed are read."""
    precision: dict[str, str] = {
        "vision_encoder": model.vision.precision,
        "projector": "int8-static" if model.vision.precision == "int8-static" else model.vision.dtype,
        "decoder": model.decoder.precision,
        "prefill": model.decoder.prefill,
    }
    for stage, size in model.weights_bytes.items():
        if on_cpu and model.openvino and stage in ("vision_encoder", "projector"):
            times = _OPENVINO_WEIGHTS.get(model.vision.precision, _OPENVINO_OTHER_WEIGHTS)
            own = _OPENVINO_BYTES if stage == "vision_encoder" else 0
            yield Item("weights", stage, int(size * times) + own)
        elif on_cpu:
            yield Item("weights", stage, int(size * _CPU_WEIGHTS[precision[stage]]) + _CPU_SESSION_BYTES)
        elif stage in STAGES:  # a prefill graph is for CPUs
            yield Item("weights", stage, size, "device")


def _activations(model: Model, load: Load, *, on_cpu: bool) -> Iterator[Item]:
    """What lives at once where most does, in elements of the graph's dtype (a CPU computes in float32).

    Vision encoder: _CPU_STREAMS tensors as wide as the stream on ONNX Runtime's own kernels, elsewhere 13 and as many
    again of its MLP, whose memory a CPU's attention takes for its scores, [heads, positions, positions] of each tile.
    Decoder: 9 tensors as wide as the MLP for a chunk of a prompt.
    """
    place: Place = "host" if on_cpu else "device"
    vision_bytes = 4 if on_cpu or model.vision.dtype == "float32" else 2
    tiles = load.tiles_per_run
    if on_cpu:
        tiles = cpu_tiles_per_run(model.vision, tiles, openvino=model.openvino)
    encoder = tiles * _vision_elements(model, on_cpu=on_cpu) * vision_bytes
    if on_cpu and model.openvino:
        encoder = int(encoder * _OPENVINO_ACTIVATIONS) + _OPENVINO_SCRATCH_BYTES
    yield Item("activations", "vision_encoder", encoder, place)
    row = 2 * model.vision.feature_size + model.decoder.hidden_size
    yield Item("activations", "projector", tiles * model.vision.tokens_per_tile * row * vision_bytes, place)
    decoder_bytes = 4 if on_cpu or model.decoder.dtype == "float32" else 2
    tokens = max(min(load.prefill_chunk, load.context_tokens), load.slots)
    mlp = 9 * tokens * model.intermediate_size * decoder_bytes
    logits = 2 * load.slots * model.decoder.vocab_size * 4
    scores = _standard_scores(model, load, tokens)
    yield Item("activations", "decoder", mlp + logits + scores * decoder_bytes, place)


def _vision_elements(model: Model, *, on_cpu: bool) -> int:
    """Of one tile."""
    stream = model.positions * model.vision_size
    if on_cpu and not model.openvino and model.vision.dialect == "ort":
        return _CPU_STREAMS * stream
    return 13 * stream + max(13 * stream, model.vision_heads * model.positions**2 if on_cpu else 0)


def _standard_scores(model: Model, load: Load, tokens: int) -> int:
    """Attention of the standard dialect keeps its scores; ONNX Runtime's fused one works in blocks."""
    if model.decoder.dialect == "ort":
        return 0
    heads = model.decoder.hidden_size // model.decoder.head_dim
    return heads * tokens * load.context_tokens


def _pictures(model: Model, load: Load, *, on_cpu: bool, server: bool) -> Iterator[Item]:
    """What is on its way for one picture, since one is encoded at a time: in a process the features of a run and its embeds once
    more, in a server those of a look, from model to model. What each slot's request holds: its embeds and its pixels, in
    Triton's messages or as they are cut. What is kept of tiles that were seen: embeds, and in one process pixels.
    """
    tiles, tokens = model.tiles_per_picture, model.vision.tokens_per_tile
    element = 4 if port_dtype(model.vision.dtype) == "float32" else 2
    pixels, features = 3 * model.vision.tile_size**2, tokens * model.vision.feature_size * element
    embeds = tokens * model.decoder.hidden_size * element
    moved = min(tiles, load.tiles_per_run) * features + tiles * embeds
    if server:
        look = min(tiles, _look(model, load)) if on_cpu else tiles
        moved = tiles * pixels + look * (2 * features + embeds)
    yield Item("pictures", "on their way", moved)
    held = embeds + (pixels * on_cpu if server else 4 * pixels)
    yield Item("pictures", "of each slot", load.slots * tiles * held)
    if load.feature_cache_bytes and (on_cpu or not server):  # Triton's own backends keep none
        yield Item("pictures", "feature cache", load.feature_cache_bytes)
    if not server:  # a server's clients cut their own
        yield Item("pictures", "kept cut", KEPT_BYTES)
    if not on_cpu:
        yield Item("pictures", "of a run", load.tiles_per_run * (pixels + features + embeds), "device")


def _look(model: Model, load: Load) -> int:
    return cpu_tiles_per_look(model.vision, load.tiles_per_run, openvino=model.openvino)


def _cpu_processes(*, server: bool) -> Iterator[Item]:
    if server:
        yield Item("processes", "tritonserver", _SERVER_BYTES)
    yield Item("processes", "python", _STUBS * _CPU_STUB_BYTES if server else _CPU_PROCESS_BYTES)


def _gpu_processes(target: Target, *, server: bool) -> Iterator[Item]:
    """Triton's own backends run both vision models in the server's process, the decoder has its own."""
    processes = 2 if server else 1
    yield Item("workspace", target, len(STAGES) * _GPU_WORKSPACE_BYTES, "device")
    yield Item("processes", "contexts", processes * _GPU_CONTEXT_BYTES, "device")
    yield Item("processes", "host", processes * _GPU_HOST_BYTES)
    if target == "jetson":
        yield Item("processes", "system", _JETSON_SYSTEM_BYTES)
