"""Models of the python backend in the place of those that need a GPU."""

from tritonclient.grpc import model_config_pb2 as pb

from vitrail.triton.targets import config_text, parse_config

# Stands for a GPU backend: runs model.onnx, whatever lies beside it, with the tensors of config.pbtxt and no others.
STAND_IN = """
import json, pathlib
import numpy as np, onnxruntime
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.session = onnxruntime.InferenceSession(str(pathlib.Path(__file__).with_name("model.onnx")))
        (self.input,), (self.output,) = config["input"], config["output"]
        self.dtype = pb_utils.triton_string_to_numpy(self.output["data_type"])

    def execute(self, requests):
        return [pb_utils.InferenceResponse([self.run(request)]) for request in requests]

    def run(self, request):
        array = pb_utils.get_input_tensor_by_name(request, self.input["name"]).as_numpy()
        (array,) = self.session.run([self.output["name"]], {self.input["name"]: array})
        return pb_utils.Tensor(self.output["name"], array.astype(self.dtype))
"""


def stand_in(model):
    """Put a model of the python backend in the place of one that needs a GPU."""
    config = parse_config((model / "config.pbtxt").read_text(encoding="utf-8"))
    for group in config.instance_group:
        group.kind = pb.ModelInstanceGroup.KIND_CPU
        del group.gpus[:]
    if config.backend == "onnxruntime":
        config.ClearField("optimization")
        config.ClearField("default_model_filename")
        config.backend = "python"
        (model / "1" / "model.py").write_text(STAND_IN)
    (model / "config.pbtxt").write_text(config_text(config))
