"""How large an export would be, from a configuration alone: what `vitrail plan` counts before anything is exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnxscript import GraphBuilder

from vitrail.errors import CheckpointError
from vitrail.plan.model import Model
from vitrail.session.contract import STAGES
from vitrail_export.config import ModelConfig
from vitrail_export.config_json import read_config
from vitrail_export.exporter import build_graphs, decoder_contract, vision_contract, weight_bytes
from vitrail_export.options import ExportOptions
from vitrail_export.published import PUBLISHED


@dataclass(frozen=True, slots=True)
class Source:
    """A model that is not exported yet."""

    name: str
    config: ModelConfig


def find_source(name: str) -> Source:
    """A directory with a config.json, or a published model by its name or hub id. Raises CheckpointError for anything else."""
    directory = Path(name)
    if (directory / "config.json").is_file():
        return Source(directory.resolve().name, read_config(directory))
    published = name.rpartition("/")[2].lower() if name.count("/") < 2 else ""
    if published in PUBLISHED:
        return Source(published, PUBLISHED[published].config)
    raise CheckpointError(
        f"'{name}' is no export, no directory with a config.json and no published model "
        f"({', '.join(PUBLISHED)}); give one of these"
    )


def sized(source: Source, options: ExportOptions, *, openvino: bool = False) -> Model:
    """What an export with these options takes. Its weights are counted on the graphs, none is read. openvino: as in Model."""
    config = source.config
    return Model(
        name=source.name,
        vision=vision_contract(config, options),
        decoder=decoder_contract(config, options),
        weights_bytes=graph_bytes(config, options),
        vision_heads=config.vision.heads,
        intermediate_size=config.text.intermediate_size,
        tiles_per_picture=config.max_tiles + config.thumbnail,
        openvino=openvino,
    )


def graph_bytes(config: ModelConfig, options: ExportOptions) -> dict[str, int]:
    """Of the weights of each graph. In static int8 the vision models' matrices have a byte a weight, whatever is spared."""
    graphs = build_graphs(config, options)
    found = {name: weight_bytes(graph) for name, graph in graphs.items()}
    fitted = STAGES if options.fits_vision else ()
    return found | {name: found[name] - matrix_bytes(graphs[name]) * 3 // 4 for name in fitted}


def matrix_bytes(builder: GraphBuilder) -> int:
    matrices = [value for value in builder.graph.initializers.values() if len(value.shape) == 2]
    return sum(int(value.dtype.itemsize * np.prod(value.shape.numpy())) for value in matrices)
