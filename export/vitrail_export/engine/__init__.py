"""Engines: the exported graphs, compiled by TensorRT or TensorRT for RTX."""
