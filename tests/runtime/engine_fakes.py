"""A GPU and a TensorRT without either, as strict as both: what is queued runs only when it is waited for, fresh memory is
NaN, an engine is its ONNX graph on the CPU, and a context breaks the rules of TensorRT's documentation with an error.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from weakref import WeakSet

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from vitrail.artifact_files import sha256
from vitrail.manifest import Artifact, EngineRecord, Parity, load_manifest
from vitrail.session.cuda_driver import Gpu
from vitrail.session.trt_engine import Machine
from vitrail_export.engine.greedy import add_greedy
from vitrail_export.engine.sampler import write_sampler
from vitrail_export.engine.shapes import decoder_profiles, projector_profile, sampler_profile, vision_profile

VERSION = "10.16.0"
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
NAMES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "bool": "BOOL",
}


def memory_at(address, size_bytes):
    return np.ctypeslib.as_array((ctypes.c_ubyte * size_bytes).from_address(address))


class HostDriver:
    """A Driver whose device memory is the host's."""

    def __init__(self, *, free_bytes=1 << 32, target="sm_89"):
        self.gpu = Gpu("Fake GPU", target, (13, 0))
        self.total_bytes, self.held, self.streams = free_bytes, WeakSet(), WeakSet()

    def activate(self): ...

    def memory_bytes(self):
        return self.total_bytes - sum(each.size_bytes for each in self.held), self.total_bytes

    def allocate(self, size_bytes):
        self.held.add(memory := HostMemory(size_bytes))
        return memory

    def pin(self, size_bytes):
        return np.zeros(size_bytes, np.uint8)

    def open_stream(self):
        self.streams.add(stream := HostStream())
        return stream


class HostMemory:
    def __init__(self, size_bytes):
        self.memory = np.full(size_bytes + 256, 0xFF, np.uint8)
        self.size_bytes, self.address = size_bytes, -(-self.memory.ctypes.data // 256) * 256


class HostStream:
    """Runs what is queued only when it is waited for. `launched` counts graphs."""

    def __init__(self):
        self.handle, self.queued, self.capturing, self.launched = id(self), [], None, 0

    def queue(self, work):
        (self.queued if self.capturing is None else self.capturing).append(work)

    def wait(self):
        assert self.capturing is None
        while self.queued:
            self.queued.pop(0)()

    def clear(self, address, size_bytes):
        self.queue(lambda: memory_at(address, size_bytes).fill(0))

    def upload(self, target, source):
        self.queue(lambda: ctypes.memmove(target, source.ctypes.data, source.nbytes))

    def download(self, target, source):
        self.queue(lambda: ctypes.memmove(target.ctypes.data, source, target.nbytes))

    def copy_rows(self, target, source, rows):
        for at in range(0, rows.rows * rows.pitch_bytes, rows.pitch_bytes):
            self.queue(lambda at=at: ctypes.memmove(target + at, source + at, rows.width_bytes))

    def begin_capture(self):
        self.capturing = []

    def end_capture(self):
        captured, self.capturing = self.capturing, None
        return HostGraph(self, captured)


@dataclass
class HostGraph:
    stream: HostStream
    captured: list

    def launch(self):
        self.stream.launched += 1
        self.stream.queued.extend(self.captured)


class FakePlan:
    """TensorRT's ICudaEngine of a graph."""

    activation_bytes = 1000

    def __init__(self, session, record):
        self.session, self.record = session, record
        self.dtypes = {
            each.name: DTYPES[each.type] for each in (*session.get_inputs(), *session.get_outputs())
        }
        self.num_io_tensors, self.num_optimization_profiles = len(self.dtypes), len(record.profiles)

    def get_tensor_name(self, index):
        return list(self.dtypes)[index]

    def get_tensor_dtype(self, name):
        return type("DataType", (), {"name": NAMES[self.dtypes[name]]})

    def get_tensor_profile_shape(self, name, index):
        shapes = self.record.profiles[index].inputs[name]
        return [list(shapes.min), list(shapes.opt), list(shapes.max)]

    def get_device_memory_size_for_profile_v2(self, index):
        return self.activation_bytes * (index + 1)

    def get_aliased_input_tensor(self, name):
        return name.replace("present.", "past.") if name.startswith("present.") else None


class FakeContext:
    """TensorRT's IExecutionContext. It may not change once it was captured, and is captured only after a run."""

    fails = False

    def __init__(self, plan, streams, graphs):
        self.plan, self.streams, self.graphs = plan, streams, graphs
        self.profile, self.shapes, self.addresses, self.memory = None, {}, {}, 0
        self.ran = self.captured = False

    def _change(self):
        assert not self.captured, "a graph was captured of this context"
        self.ran = False
        return True

    def set_device_memory(self, address, size):
        assert address % 256 == 0
        self.memory = size

    def set_optimization_profile_async(self, index, stream):
        self.profile = self.plan.record.profiles[index]
        self.shapes = {}
        return self._change()

    def set_input_shape(self, name, shape):
        limits = self.profile.inputs[name]
        self.shapes[name] = shape
        inside = all(
            low <= size <= high for low, size, high in zip(limits.min, shape, limits.max, strict=True)
        )
        return self._change() and inside

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return self._change() and address % 256 == 0

    def execute_async_v3(self, handle):
        if self.fails:
            return False
        (stream,) = (each for each in self.streams if each.handle == handle)
        plan, profiles = self.plan, self.plan.record.profiles
        assert self.memory >= plan.get_device_memory_size_for_profile_v2(profiles.index(self.profile))
        assert stream.capturing is None or self.ran, "captured before it ran once"
        self.captured, self.ran = self.captured or stream.capturing is not None, True
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        assert set(addresses) == set(plan.dtypes)
        assert set(shapes) == set(self.profile.inputs)
        stream.queue(lambda: run_graph(plan, shapes, addresses))
        return True


def run_graph(plan, shapes, addresses):
    """From and to the addresses. A cache is written where it is read."""
    feeds = {}
    for name, shape in shapes.items():
        dtype = np.dtype(plan.dtypes[name])
        feeds[name] = (
            memory_at(addresses[name], int(np.prod(shape)) * dtype.itemsize).view(dtype).reshape(shape)
        )
    outputs = [each.name for each in plan.session.get_outputs()]
    for name, found in zip(outputs, plan.session.run(outputs, feeds), strict=True):
        past = plan.get_aliased_input_tensor(name)
        assert past is None or addresses[name] == addresses[past]
        memory_at(addresses[name], found.nbytes)[:] = np.ascontiguousarray(found).view(np.uint8).reshape(-1)


class FakeLibrary:
    """A Library whose engine files name an ONNX graph, see `with_engines`."""

    def __init__(self, driver, *, builder="tensorrt", version=VERSION):
        self.driver, self.builder, self.version = driver, builder, version
        self.captures_itself = builder == "tensorrt-rtx"
        self.contexts = []

    def read(self, file, *, cure):
        graph = file.parent / file.read_text(encoding="utf-8")
        engines = load_manifest(file.parent).engines
        wanted = (graph.name.partition(".")[0], self.builder)
        record = next(each for each in engines if (each.stage, each.builder) == wanted)
        return FakeLoaded(FakePlan(quiet_session(graph), record), self)

    def last_error(self):
        return "the fake's reason"


@dataclass
class FakeLoaded:
    plan: FakePlan
    library: FakeLibrary

    def context(self, *, graphs):
        self.library.contexts.append(FakeContext(self.plan, self.library.driver.streams, graphs))
        return self.library.contexts[-1]


def quiet_session(graph):
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def fake_machine(*, builder="tensorrt", version=VERSION, **options):
    driver = HostDriver(**options)
    return Machine(driver, FakeLibrary(driver, builder=builder, version=version))


def engine_graph(manifest, directory, stage):
    """The name of a stage's graph as its engine is built from it: the decoder's finds greedy tokens, too."""
    if stage == "sampler":
        return write_sampler(directory, vocab=manifest.decoder.vocab_size).name
    graph = directory / manifest.artifacts[stage].path
    if stage != "decoder":
        return graph.name
    model = ir.load(graph)
    add_greedy(model)
    ir.save(model, graph.with_name("decoder.greedy.onnx"))
    return "decoder.greedy.onnx"


def with_engines(directory, *, builder="tensorrt", target="sm_89", slots=4, capacity=512, chunk=32, tiles=3):
    """Add engines of every stage to an export of the standard dialect in float16; its manifest, as read again."""
    manifest = load_manifest(directory)
    profiles = {
        "vision_encoder": (vision_profile(manifest, max_tiles=tiles),),
        "projector": (projector_profile(manifest, max_tiles=tiles),),
        "decoder": decoder_profiles(manifest, slots=slots, capacity=capacity, chunk=chunk),
        "sampler": (sampler_profile(manifest, slots=slots),),
    }
    artifacts, records = dict(manifest.artifacts), list(manifest.engines)
    for stage, shapes in profiles.items():
        file = directory / f"{stage}.{builder}.engine"
        file.write_text(engine_graph(manifest, directory, stage), encoding="utf-8")
        artifacts[file.name] = Artifact(path=file.name, sha256=sha256(file), size_bytes=file.stat().st_size)
        records.append(
            EngineRecord(
                stage=stage,
                builder=builder,
                builder_version=VERSION,
                targets=(target,),
                precision="fp16" if stage != "sampler" else "fp32",
                dtype="float16" if stage != "sampler" else "float32",
                profiles=shapes,
                artifact=file.name,
                build_s=0.0,
                parity=Parity(stage=stage, cosine=1.0, max_abs_error=0.0),
            )
        )
    changed = manifest.model_copy(update={"engines": tuple(records), "artifacts": artifacts})
    changed.write(directory)
    return load_manifest(directory)
