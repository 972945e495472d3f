"""The networks: building them, loading published weights, self-describing files, sessions of ONNX files."""

from partialkd.models.build import build_model
from partialkd.models.weights import load_weights

__all__ = ["build_model", "load_weights"]
