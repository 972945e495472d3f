"""Open a face detector: which kind a file is, told by the file itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from partialkd.align.detector import Detector
from partialkd.align.scrfd import STRIDES, Scrfd
from partialkd.align.upright import Upright
from partialkd.align.yunet import YuNet
from partialkd.errors import CheckpointError, DataError
from partialkd.models.onnx_session import OnnxSession

SCORE, LONGEST = 0.6, 640  # the least score of a face; pixels of the longer side that a detector looks at
_YUNET_OUTPUTS = {f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps") for stride in STRIDES}


def detector_maker(model: Path, score: float = SCORE, longest: int = LONGEST) -> Callable[[], Detector]:
    """What makes a detector of this file, once per thread. DataError naming the file if it is not one we know."""
    if not model.is_file():
        raise DataError(f"{model}: no such file")
    try:
        outputs = {output.name for output in OnnxSession(model, str(model)).outputs}
    except CheckpointError as error:
        raise DataError(f"{model}: not a face detector: {error}") from error
    kind: Callable[[Path, float, int], Detector] = YuNet if outputs >= _YUNET_OUTPUTS else Scrfd
    kind(model, score, longest)  # whatever is wrong with it is said now
    return lambda: Upright(kind(model, score, longest))
