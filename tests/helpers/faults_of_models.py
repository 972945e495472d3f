"""Ways in which teachers' files are wrong, and what is said of each."""

from __future__ import annotations

import os

from helpers import bad_models as make
from helpers.bad_files import Fault, put
from partialkd.errors import CheckpointError, ConfigError, TeacherError
from partialkd.models.weights import read_weights
from partialkd.teacher.cache import EMBEDDINGS
from partialkd.teacher.classifier import read_matrix

TEACHERS = (
    Fault(
        "checkpoint that runs a command",
        make.checkpoint_that_runs(read_weights),
        r"r50\.pt: cannot be read as weights: it holds objects that are not tensors",
        CheckpointError,
    ),
    Fault(
        "classifier that runs a command",
        make.checkpoint_that_runs(read_matrix),
        r"r50\.pt: cannot be read: it holds objects that are not tensors",
        TeacherError,
    ),
    Fault("truncated checkpoint", make.truncated_checkpoint, r"r50\.pt: cannot be read as weights: ", CheckpointError),
    Fault(
        "truncated .safetensors",
        make.safetensors(lambda b: b[:-8]),
        r"r50\.safetensors: cannot be read as weights: .*",
        CheckpointError,
    ),
    Fault(
        ".safetensors header of 2^62 bytes",
        make.safetensors(lambda b: b"\0" * 7 + b"\x40" + b[8:]),
        r"r50\.safetensors: cannot be read as weights: .*header too large",
        CheckpointError,
    ),
    Fault(
        ".safetensors header of junk",
        make.safetensors(lambda b: b[:8] + b"\xff" + b[9:]),
        r"r50\.safetensors: cannot be read as weights: .*header",
        CheckpointError,
    ),
    Fault(
        "model.safetensors with another mean",
        make.model_metadata("mean", "0"),
        r"model\.safetensors: mean must be '127\.5', .*, got '0'",
        CheckpointError,
    ),
    Fault(
        "model.safetensors in blue, green, red",
        make.model_metadata("colour", "bgr"),
        r"model\.safetensors: colour must be 'rgb', .*, got 'bgr'",
        CheckpointError,
    ),
    Fault(
        "model.safetensors of an unknown network",
        make.model_metadata("model", "{}"),
        r"model\.safetensors: unreadable description: ",
        CheckpointError,
    ),
    Fault(
        "classifier .npy with objects",
        make.matrix("w.npy", make.pickled_npy()),
        r"w\.npy: cannot be read: ",
        TeacherError,
    ),
    Fault(
        "classifier .npy of 4 TB, in 100 bytes",
        make.matrix("w.npy", make.npy("(1000000, 1000000)")),
        r"w\.npy: cannot be read: mmap length",
        TeacherError,
    ),
    Fault(
        "classifier .npy of text",
        make.matrix("w.npy", make.npy("(2, 2)", "<U4", bytes(64))),
        r"w\.npy: cannot be read: ",
        TeacherError,
    ),
    Fault(
        "classifier .npy of complex numbers",
        make.matrix("w.npy", make.npy("(2, 2)", "<c8", bytes(32))),
        r"w\.npy: a classifier is a dense matrix of real numbers, got one of complex numbers",
        TeacherError,
    ),
    Fault(
        "classifier .npy with code in its header",
        make.matrix("w.npy", make.npy("__import__('os')")),
        r"w\.npy: cannot be read: ",
        TeacherError,
    ),
    Fault("empty classifier .npy", make.matrix("w.npy", b""), r"w\.npy: cannot be read: ", TeacherError),
    Fault("packed .npz as .npy", make.matrix("w.npy", make.npz()), r"w\.npy: cannot be read: ", TeacherError),
    Fault("packed .npz of 4 MB in 4 KB", make.matrix("w.npz", make.npz()), r"w\.npz: cannot be read: ", TeacherError),
    Fault("classifier rows of junk", make.label_map(b"\xff"), r"rows\.txt: line 1: must be UTF-8 text", TeacherError),
    Fault(
        "classifier rows with id 1.5",
        make.label_map(b"0\n1.5\n2\n"),
        r"rows\.txt: line 2: must be one class id per line, or -1, got '1\.5'",
        TeacherError,
    ),
    Fault(
        "classifier rows with an id of 5000 digits",
        make.label_map(b"9" * 5000),
        r"rows\.txt: line 1: must be one class id per line, or -1, got '9999",
        TeacherError,
    ),
    Fault("ONNX of junk", make.onnx_teacher(b"no protobuf"), r"t\.onnx: cannot be read as ONNX", TeacherError),
    Fault(
        "ONNX of junk, for a cache",
        make.onnx_teacher(b"no protobuf", only_described=True),
        r"t\.onnx: cannot be read as ONNX",
        TeacherError,
    ),
    Fault(
        "truncated ONNX",
        make.onnx_teacher(make.onnx_model()[:-1000]),
        r"t\.onnx: cannot be read as ONNX",
        TeacherError,
    ),
    Fault(
        "ONNX that runs for ever",
        make.onnx_teacher(make.endless_onnx()),
        r"t\.onnx: holds the operator 'Loop': an embedder must not repeat a part of its graph",
        TeacherError,
    ),
    Fault(
        "ONNX for another size",
        make.onnx_teacher(make.onnx_model(48)),
        r"t\.onnx: input .* must be \(batch, 3, 32, 32\)",
        TeacherError,
    ),
    Fault(
        "ONNX, data outside its folder",
        make.onnx_teacher(make.onnx_model(place="../secret")),
        r"t\.onnx: onnxruntime cannot load it: .*escapes",
        TeacherError,
    ),
    Fault(
        "ONNX, data outside its folder, for a cache",
        make.onnx_teacher(make.onnx_model(place="../secret"), only_described=True),
        r"t\.onnx: external data must be a file in its folder, got '\.\./secret'",
        TeacherError,
    ),
    Fault(
        "ONNX, data at an absolute path",
        make.onnx_teacher(make.onnx_model(place="/dev/zero"), only_described=True),
        r"t\.onnx: external data must be a file in its folder, got '/dev/zero'",
        TeacherError,
    ),
    Fault(
        "ONNX, data by a link that leads out",
        make.onnx_teacher(make.onnx_model(place="link"), only_described=True),
        r"t\.onnx: external data must be a file in its folder, got 'link'",
        TeacherError,
    ),
    Fault(
        "empty MXNet .params",
        make.mxnet_params(b""),
        r"model\.params: not an MXNet parameter file: it is empty",
        CheckpointError,
    ),
    Fault(
        "truncated MXNet .params",
        make.mxnet_params((0x112).to_bytes(8, "little") + bytes(4)),
        r"model\.params: ",
        CheckpointError,
    ),
    Fault(
        "MXNet .params of 2^60 arrays",
        make.mxnet_params((0x112).to_bytes(8, "little") + bytes(8) + (2**60).to_bytes(8, "little")),
        r"model\.params: .*announces 1152921504606846976 arrays",
        CheckpointError,
    ),
    Fault(
        "arcface_torch run, a file of another epoch",
        make.arcface_torch_run(make.changed(1, epoch=2)),
        r"checkpoint_gpu_1\.pt: is of the end of epoch 2, rank 0's file of 1",
        CheckpointError,
    ),
    Fault(
        "arcface_torch run that is done",
        make.arcface_torch_run(lambda work: [make.changed(rank, epoch=2)(work) for rank in (0, 1)]),
        r"checkpoint_gpu_0\.pt: is of the end of epoch 2, and student\.epochs is 2",
        CheckpointError,
    ),
    Fault(
        "arcface_torch run, optimiser of another network",
        make.arcface_torch_run(make.changed(0, state_optimizer={"param_groups": [], "state": {}})),
        r"checkpoint_gpu_0\.pt: its optimiser must be over the \d+ parameters of the network, and the rows",
        CheckpointError,
    ),
    Fault(
        "arcface_torch run, saved without save_all_states",
        make.arcface_torch_run(make.changed(0, state_optimizer=None)),
        r"checkpoint_gpu_0\.pt: must hold 'state_optimizer', as arcface_torch saves it",
        CheckpointError,
    ),
    Fault(
        "arcface_torch run, first file of its ranks missing",
        make.arcface_torch_run(lambda work: os.unlink(work / "checkpoint_gpu_0.pt")),
        r"checkpoint_gpu_0\.pt: cannot be read: ",
        CheckpointError,
    ),
    Fault(
        "arcface_torch configuration that calls something",
        make.arcface_torch_config("config.rec = open('x').read()"),
        r"job\.py: line 2: rec: must be a value, got .*, which would have to be run",
        ConfigError,
    ),
    Fault(
        "arcface_torch configuration with a condition",
        make.arcface_torch_config("if True: config.lr = 1"),
        r"job\.py: line 2: must be config\.<key> = <value>, got a statement",
        ConfigError,
    ),
    Fault(
        "arcface_torch configuration with a batch of nothing",
        make.arcface_torch_config("config.batch_size = 0"),
        r"job\.py: batch_size: must be a whole number of at least 1, got '0'",
        ConfigError,
    ),
    Fault(
        "teacher cache cut short",
        make.teacher_cache(lambda cache: os.truncate(cache / EMBEDDINGS, 40)),
        r"embeddings\.bin: must have 48 bytes, as the manifest says, got 40",
        TeacherError,
    ),
    Fault(
        "teacher cache with one bit changed",
        make.teacher_cache(make.flip_embedding),
        r"embeddings\.bin: records 0 to 2 are damaged",
        TeacherError,
    ),
    Fault(
        "teacher cache, manifest of junk",
        make.teacher_cache(lambda cache: put(cache / "manifest.json", "{")),
        r"manifest\.json: damaged: not the JSON of a manifest",
        TeacherError,
    ),
    Fault(
        "teacher cache cut short while it is in use",
        make.cached_embeddings_cut_in_use,
        r"embeddings\.bin: must have 48 bytes, .*, got 8: it was changed while in use",
        TeacherError,
    ),
    Fault(
        "unfinished teacher cache, facts of junk",
        make.unfinished_cache(lambda place: put(place / "facts.json", "[]")),
        r"facts\.json: damaged: TypeError.*; remove .*\.cache\.partial$",
        TeacherError,
    ),
    Fault(
        "unfinished teacher cache, list of blocks cut short",
        make.unfinished_cache(lambda place: os.truncate(place / "blocks.bin", 4)),
        r"blocks\.bin: must have 8 bytes, got 4; remove .*\.cache\.partial$",
        TeacherError,
    ),
)
