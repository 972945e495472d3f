"""Are two photographs of the same person? FOLDER is what launch/model_card.py --card has written.

python examples/verify_two_photos.py FOLDER DETECTOR ONE.jpg OTHER.jpg [--far 1e-3]
"""

import argparse
from pathlib import Path

import torch

import partialkd
from partialkd.align.detector import the_one_meant
from partialkd.align.open import detector_maker
from partialkd.align.template import aligned
from partialkd.data.images.decode import decode, to_tensor
from partialkd.models.model_folder import read_config

parser = argparse.ArgumentParser(description=__doc__)
for name in ("folder", "detector", "one", "other"):
    parser.add_argument(name, type=Path)
parser.add_argument("--far", default="0.001", help="(default 0.001)")
options = parser.parse_args()
far, embeddings = f"{float(options.far):g}", []
network, detector = partialkd.load(options.folder), detector_maker(options.detector)()
at_far = read_config(options.folder)["thresholds"]["fp32"]["flip"]["all"]
if far not in (rates := [rate for rate, one in at_far.items() if not one["too_few_impostors"]]):
    parser.error(f"--far: the card has enough pairs of strangers for {', '.join(rates) or 'no rate'}, not for {far}")
for path in (options.one, options.other):
    photograph = decode(path.read_bytes(), str(path))
    if not (faces := detector.find(photograph)):
        parser.error(f"{path}: no face found")
    face = the_one_meant(faces, photograph.shape[1], photograph.shape[0])
    images = to_tensor([aligned(photograph, face.landmarks, network.image_size)], network.image_size)
    with torch.no_grad():
        embeddings.append(network(images) + network(images.flip(3)))
cosine, bar = torch.cosine_similarity(*embeddings).item(), at_far[far]["threshold"]
print(
    f"{'same person' if cosine > bar else 'not the same person'}: cosine {cosine:.3f}, from {bar:.3f} on at FAR {far}"
)
