from vitrail.triton.projector import TritonPythonModel  # noqa: F401
