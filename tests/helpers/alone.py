"""What `make alone` runs in an environment that holds nothing but what `pip install partialkd` brings.

alone.py FOLDER: opens a published folder, embeds an image twice, and says that nothing else was needed.
"""

import sys
from importlib.util import find_spec

import torch

import partialkd

absent = [
    name for name in ("deepspeed", "nvidia", "onnx", "onnxruntime", "cv2", "tensorboard") if find_spec(name) is None
]
assert {"deepspeed", "onnx", "onnxruntime"} <= set(absent), absent
network = partialkd.load(sys.argv[1])
images = torch.linspace(-1, 1, 3 * network.image_size**2).reshape(1, 3, network.image_size, network.image_size)
with torch.no_grad():
    embedding = network(images)
assert embedding.shape == (1, network.embedding_dim)
assert torch.isfinite(embedding).all()
print(f"partialkd {partialkd.__version__} alone: {embedding.shape[1]} numbers; not installed: {', '.join(absent)}")
