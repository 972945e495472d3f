"""The other side of the MXNet tests: run by the Python of requirements-mxnet.txt, never imported with MXNet by ours.

    python mxnet_peer.py records FOLDER   write the records of cases.json; read every .rec of the folder to read.json
    python mxnet_peer.py network FOLDER   a teacher as network.json says: its checkpoint, images and embeddings
    python mxnet_peer.py arrays FOLDER    arrays of all types in plain.params, numpy.params and sparse.params

`network` is also used without MXNet, with a recorder in the place of `mx.sym`.
"""

import json
import sys
from pathlib import Path

import numpy as np


def conv(sym, data, channels, kernel, stride, name):
    return sym.Convolution(
        data=data, num_filter=channels, kernel=(kernel, kernel), stride=(stride, stride),
        pad=(kernel // 2, kernel // 2), no_bias=True, workspace=256, name=name,
    )  # fmt: skip


def norm(sym, data, name, fix_gamma=False, eps=2e-5):
    return sym.BatchNorm(data=data, fix_gamma=fix_gamma, eps=eps, momentum=0.9, name=name)


def prelu(sym, data, name):
    return sym.LeakyReLU(data=data, act_type="prelu", name=name)


def unit(sym, x, channels, stride, name):
    y = conv(sym, norm(sym, x, f"{name}_bn1"), channels, 3, 1, f"{name}_conv1")
    y = prelu(sym, norm(sym, y, f"{name}_bn2"), f"{name}_relu1")
    y = norm(sym, conv(sym, y, channels, 3, stride, f"{name}_conv2"), f"{name}_bn3")
    if stride == 1:
        return y + x
    return y + norm(sym, conv(sym, x, channels, 1, stride, f"{name}_conv1sc"), f"{name}_sc")


def network(sym, units, channels, dim, classes=0):
    """LResNet-E-IR as published; with classes, the margin's layers follow `fc1` as in a training checkpoint."""
    x = (sym.identity(data=sym.Variable("data"), name="id") - 127.5) * 0.0078125
    x = prelu(sym, norm(sym, conv(sym, x, channels, 3, 1, "conv0"), "bn0"), "relu0")
    for stage, count in enumerate(units):
        for number in range(count):
            name = f"stage{stage + 1}_unit{number + 1}"
            x = unit(sym, x, channels << stage, 1 if number else 2, name)
    x = sym.Dropout(data=norm(sym, x, "bn1"), p=0.4, name="dropout0")
    x = norm(sym, sym.FullyConnected(data=x, num_hidden=dim, name="pre_fc1"), "fc1", fix_gamma=True)
    if not classes:
        return x
    weight = sym.Variable("fc7_weight", shape=(classes, dim), lr_mult=1.0)
    rows = sym.L2Normalization(data=weight, mode="instance", name="rows")
    unit_x = sym.L2Normalization(data=x, mode="instance", name="fc1n") * 64.0
    return sym.FullyConnected(data=unit_x, weight=rows, no_bias=True, num_hidden=classes, name="fc7")


def random_values(name, shape, rng):
    """Statistics like a trained network's: nothing zero, one or symmetric, so that no mix-up goes unseen."""
    if name.endswith("_var"):
        return rng.uniform(0.3, 2.0, shape)
    if name.endswith("_gamma"):
        low, high = (0.1, 0.4) if "relu" in name else (0.1, 0.3) if name.endswith("_bn3_gamma") else (0.5, 1.5)
        return rng.uniform(low, high, shape)
    if name.endswith(("_beta", "_mean", "_bias")):
        return rng.normal(0, 0.2, shape)
    return rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)


def make_network(folder):
    import mxnet as mx

    asked = json.loads((folder / "network.json").read_text())
    size, images, rng = asked["size"], asked["images"], np.random.RandomState(7)
    symbol = network(mx.sym, asked["units"], asked["channels"], asked["dim"], asked["classes"])
    embedding = symbol.get_internals()["fc1_output"]
    if not images:
        (folder / "model-symbol.json").write_text(symbol.tojson())
        (folder / "names.json").write_text(json.dumps([embedding.list_arguments(), embedding.list_auxiliary_states()]))
        return
    shapes, _, aux_shapes = symbol.infer_shape(data=(images, 3, size, size))
    made = zip(symbol.list_arguments() + symbol.list_auxiliary_states(), shapes + aux_shapes, strict=True)
    values = {name: mx.nd.array(random_values(name, shape, rng)) for name, shape in made if name != "data"}
    moving = {name: values.pop(name) for name in symbol.list_auxiliary_states()}
    mx.model.save_checkpoint(str(folder / "model"), 0, symbol, values, moving)
    pixels = rng.randint(0, 256, (images, 3, size, size)).astype(np.uint8)
    used = {name: values[name] for name in embedding.list_arguments() if name != "data"}
    executor = embedding.bind(mx.cpu(), {**used, "data": mx.nd.array(pixels)}, aux_states=moving, grad_req="null")
    np.save(folder / "images.npy", pixels)
    np.save(folder / "embeddings.npy", executor.forward(is_train=False)[0].asnumpy())


def records(folder):
    import mxnet as mx

    for stem, cases in json.loads((folder / "cases.json").read_text()).items():
        (folder / stem).parent.mkdir(exist_ok=True)
        writer = mx.recordio.MXIndexedRecordIO(f"{folder / stem}.idx", f"{folder / stem}.rec", "w")
        for case in cases:
            writer.write_idx(case["key"], packed(mx, case))
        writer.close()
    stems = [path.with_suffix("") for path in sorted(folder.rglob("*.rec"))]
    read = {str(stem.relative_to(folder)): read_records(mx, stem) for stem in stems}
    (folder / "read.json").write_text(json.dumps(read))


def packed(mx, case):
    header = mx.recordio.IRHeader(0, case["label"], case["key"], 0)
    if "pixels" not in case:
        return mx.recordio.pack(header, bytes.fromhex(case["image"]))
    pixels = np.array(case["pixels"], np.uint8)[:, :, ::-1]  # RGB; OpenCV takes BGR
    return mx.recordio.pack_img(header, pixels, case["quality"], case["format"])


def read_records(mx, stem):
    reader = mx.recordio.MXIndexedRecordIO(f"{stem}.idx", f"{stem}.rec", "r")
    found = []
    for key in reader.keys:
        header, image = mx.recordio.unpack(reader.read_idx(key))
        label = header.label.tolist() if header.flag else [header.label]
        found.append({"key": key, "flag": header.flag, "label": label, "id": header.id, "image": image.hex()})
        if image[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0"):
            found[-1]["pixels"] = mx.image.imdecode(image).asnumpy().tolist()  # RGB
    return found


def arrays(folder):
    import mxnet as mx

    rng = np.random.RandomState(3)
    values = {t: (rng.rand(2, 3, 4) * 100).astype(t) for t in ("f4", "f8", "f2", "u1", "i4", "i1", "i8")}
    np.savez(folder / "values.npz", **values)
    made = {f"arg:{name}": mx.nd.array(value, dtype=value.dtype) for name, value in values.items()}
    mx.nd.save(str(folder / "plain.params"), made)
    with mx.util.np_shape(True):
        mx.nd.save(str(folder / "numpy.params"), made)
    mx.nd.save(
        str(folder / "sparse.params"), {"arg:a": made["arg:f4"], "arg:b": mx.nd.zeros((4, 2), stype="row_sparse")}
    )


if __name__ == "__main__":
    np.bool = bool  # what MXNet 1.9 still asks numpy for
    {"records": records, "network": make_network, "arrays": arrays}[sys.argv[1]](Path(sys.argv[2]))
