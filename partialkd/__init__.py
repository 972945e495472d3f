"""partialkd: knowledge distillation of face recognition networks with class centres sharded over ranks."""

__version__ = "0.1.0"
