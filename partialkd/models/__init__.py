"""The networks: building, loading published weights, self-describing files, frozen teachers."""

from partialkd.models.build import build_model
from partialkd.models.weights import load_weights

__all__ = ["build_model", "load_weights"]
