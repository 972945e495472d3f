"""Write a trained network as model.onnx and model.safetensors, if onnxruntime gives the same embeddings."""

from __future__ import annotations

from partialkd.world.command import command


def main() -> int:
    """Exit status."""
    from partialkd.commands.export import main

    return main()


if __name__ == "__main__":
    raise SystemExit(command(main, progress="stderr"))
