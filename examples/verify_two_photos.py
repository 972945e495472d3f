"""Are two photographs of the same person? FOLDER is what launch/model_card.py --card has written.

python examples/verify_two_photos.py FOLDER DETECTOR ONE.jpg OTHER.jpg [--far 1e-3]"""

import argparse
from pathlib import Path

import torch

import partialkd
from partialkd.align.detector import the_one_meant
from partialkd.align.open import detector_maker
from partialkd.align.template import aligned
from partialkd.data.images.decode import decode
from partialkd.data.images.tensors import to_tensor
from partialkd.errors import PartialKDError
from partialkd.models.model_folder import read_config

parser, embeddings = argparse.ArgumentParser(description=__doc__), []
for name in ("folder", "detector", "one", "other"):
    parser.add_argument(name, type=Path)
parser.add_argument("--far", type=float, default=1e-3, help="(default 0.001)")
options = parser.parse_args()
try:
    network, detector = partialkd.load(options.folder), detector_maker(options.detector)()
    card = read_config(options.folder).get("thresholds", {}).get("fp32", {}).get("flip", {}).get("all", {})
    rates = {float(rate): one["threshold"] for rate, one in card.items() if not one["too_few_impostors"]}
    if (bar := rates.get(options.far)) is None:
        parser.error(f"the card has pairs of strangers enough for a FAR of {list(rates)}, not for {options.far:g}")
    for path in (options.one, options.other):
        if not (faces := detector.find(photograph := decode(path.read_bytes(), str(path)))):
            parser.error(f"{path}: no face found")
        face = the_one_meant(faces, photograph.shape[1], photograph.shape[0])
        images = to_tensor([aligned(photograph, face.landmarks, network.image_size)], network.image_size)
        embeddings.append((network(images) + network(images.flip(3))).detach())
except (PartialKDError, OSError) as error:
    parser.error(str(error))
cosine = torch.cosine_similarity(*embeddings).item()
print(f"{'' if cosine > bar else 'not the '}same person: cosine {cosine:.3f}, from {bar:.3f} on at FAR {options.far:g}")
