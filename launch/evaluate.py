"""Score a network on verification sets, on one process or several.

python launch/evaluate.py runs/quickstart/student/model.safetensors --sets data/lfw.bin
python launch/evaluate.py teacher.onnx --sets data/lfw.bin --mean 0 --std 1 --json teacher.json
torchrun --nproc_per_node=2 launch/evaluate.py student.pt --model mobilefacenet --sets data/lfw.bin data/agedb_30.bin
"""

from __future__ import annotations

from partialkd.world.command import command


def main() -> int:
    """Exit status."""
    from partialkd.commands.evaluate import main

    return main()


if __name__ == "__main__":
    raise SystemExit(command(main, progress="stderr"))
