"""What runs the graphs, as a user names it: `cpu`, `openvino`, `cuda:1`, `cuda:1,memory=20GiB,graphs=off`, `tensorrt`. Pure.

NAME[:DEVICE][,OPTION=VALUE]...; `parse_provider` reads it, `str` writes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from vitrail.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = ("cpu", "openvino", "cuda", "tensorrt", "tensorrt-rtx")
SWITCH = {"on": True, "off": False}
Attention = Literal["auto", "flash", "efficient", "cudnn"]
OpenVinoPrecision = Literal["bf16", "fp32"]
UNITS = {"": 1, "MiB": 1 << 20, "GiB": 1 << 30}


@dataclass(frozen=True, slots=True)
class Cpu:
    """ONNX Runtime's CPU provider. threads: of each session, 0 for one per physical core."""

    threads: int = 0

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise OptionError(f"threads is {self.threads}; it must be at least 0 (0: one per physical core)")

    def __str__(self) -> str:
        return "cpu" + _options_text(self, {"threads": "threads"})


@dataclass(frozen=True, slots=True)
class OpenVino(Cpu):
    """The CPU, with vision encoder and projector on OpenVINO by its plugin for ONNX Runtime, in `precision`; the language
    model is ONNX Runtime's own.
    """

    precision: OpenVinoPrecision = "bf16"

    def __str__(self) -> str:
        return "openvino" + _options_text(self, {"threads": "threads", "precision": "precision"})


@dataclass(frozen=True, slots=True)
class Cuda:
    """ONNX Runtime's CUDA provider.

    memory_limit_bytes bounds ONNX Runtime's arena of each session (activations), not weights and KV cache;
    graphs: whether decode steps are captured as CUDA graphs and replayed; attention: the kernels of prefill, where
    ONNX Runtime is not to choose; fpa_intb: int4 weights in blocks of 32 by TensorRT-LLM's kernels.
    """

    device_id: int = 0
    memory_limit_bytes: int | None = None
    graphs: bool = True
    attention: Attention = "auto"
    fpa_intb: bool = False

    def __post_init__(self) -> None:
        _check_device(self.device_id)
        if self.memory_limit_bytes is not None and self.memory_limit_bytes <= 0:
            raise OptionError(f"memory is {self.memory_limit_bytes} bytes; give more than 0, such as 20GiB")

    def __str__(self) -> str:
        shown = {"memory_limit_bytes": "memory"} | {
            name: name for name in ("graphs", "attention", "fpa_intb")
        }
        return f"cuda:{self.device_id}" + _options_text(self, shown)


@dataclass(frozen=True, slots=True)
class TensorRt:
    """TensorRT engines that `vitrail engine` built; rtx: TensorRT for RTX. graphs: as for Cuda."""

    device_id: int = 0
    graphs: bool = True
    rtx: bool = False

    def __post_init__(self) -> None:
        _check_device(self.device_id)

    def __str__(self) -> str:
        name = "tensorrt-rtx" if self.rtx else "tensorrt"
        return f"{name}:{self.device_id}" + _options_text(self, {"graphs": "graphs"})


Provider: TypeAlias = Cpu | Cuda | TensorRt


def as_provider(provider: Provider | str) -> Provider:
    """A provider, or the one that a text names. Raises OptionError as parse_provider, and for anything else."""
    if isinstance(provider, Provider):
        return provider
    if not isinstance(provider, str):
        raise OptionError(
            f"the provider is of type {type(provider).__name__}; give a name such as 'cpu' or 'cuda:0'"
        )
    return parse_provider(provider)


def parse_provider(text: str) -> Provider:
    """Raises OptionError for an unknown name or option, or a value outside its range."""
    head, *options = text.strip().split(",")
    name, colon, device = head.partition(":")
    if name not in NAMES:
        raise OptionError(f"provider '{name}' is unknown; it is one of {', '.join(NAMES)}")
    given: dict[str, Any] = {}
    for field, value in (_option(name, option) for option in options):
        if field in given:
            raise OptionError(f"provider '{text}' has an option twice; give each once")
        given[field] = value
    if colon:
        given["device_id"] = _device(name, device)
    if name in ("cpu", "openvino"):
        return Cpu(**given) if name == "cpu" else OpenVino(**given)
    return Cuda(**given) if name == "cuda" else TensorRt(rtx=name == "tensorrt-rtx", **given)


def with_threads(provider: Provider, threads: int) -> Provider:
    """With so many threads of each session; 0 leaves the provider as it is.

    Raises OptionError beside a provider that does not run on the CPU.
    """
    if threads == 0:
        return provider
    if not isinstance(provider, Cpu):
        raise OptionError(
            f"threads is {threads}, but provider {provider} computes on a GPU; leave threads out"
        )
    return replace(provider, threads=threads)


def _check_device(device_id: int) -> None:
    if device_id < 0:
        raise OptionError(f"device is {device_id}; the first GPU is 0")


def _device(name: str, text: str) -> int:
    if name in ("cpu", "openvino"):
        raise OptionError(
            f"provider '{name}:{text}' names a device, but the CPU has no number; give '{name}'"
        )
    return _number("device", text)


def _option(name: str, text: str) -> tuple[str, Any]:
    known: dict[str, dict[str, tuple[str, Callable[[str, str], Any]]]] = {
        "cpu": {"threads": ("threads", _number)},
        "openvino": {
            "threads": ("threads", _number),
            "precision": ("precision", partial(_one_of, choices=get_args(OpenVinoPrecision))),
        },
        "cuda": {
            "memory": ("memory_limit_bytes", _bytes),
            "graphs": ("graphs", _switch),
            "attention": ("attention", partial(_one_of, choices=get_args(Attention))),
            "fpa_intb": ("fpa_intb", _switch),
        },
    }
    options = known.get(name, {"graphs": ("graphs", _switch)})
    key, _, value = text.partition("=")
    if key not in options:
        raise OptionError(f"provider '{name}' has no option '{key}'; it has {', '.join(options)}")
    field, read = options[key]
    return field, read(key, value)


def _number(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise OptionError(f"{name} is '{text}'; give a whole number from 0 to 999999")
    return int(text)


def _switch(name: str, text: str) -> bool:
    if text not in SWITCH:
        raise OptionError(f"{name} is '{text}'; give on or off")
    return SWITCH[text]


def _one_of(name: str, text: str, *, choices: tuple[str, ...]) -> str:
    if text not in choices:
        raise OptionError(f"{name} is '{text}'; it is one of {', '.join(choices)}")
    return text


def _bytes(name: str, text: str) -> int:
    found = re.fullmatch(r"([0-9]+)(MiB|GiB|)", text)
    if found is None:
        raise OptionError(f"{name} is '{text}'; give a size such as 20GiB, 512MiB or bytes")
    return int(found[1]) * UNITS[found[2]]


def _options_text(provider: Any, shown: dict[str, str]) -> str:
    """The options that are not at their default, as `parse_provider` reads them."""
    defaults = {field.name: field.default for field in fields(provider)}
    given = {key: getattr(provider, field) for field, key in shown.items()}
    changed = {key for field, key in shown.items() if getattr(provider, field) != defaults[field]}
    words = {True: "on", False: "off"}
    return "".join(
        f",{key}={words[value] if isinstance(value, bool) else value}"
        for key, value in given.items()
        if key in changed
    )
