#!/usr/bin/env python3
"""Writes the binary seeds of fuzz/seeds anew: small checkpoints, safetensors and exports as their own writers make them.

A seed that begins with P or S is the parts of a file, which the target puts together (see fuzz_targets/).
"""

import io
import json
import math
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

SEEDS = Path(__file__).resolve().parent / "seeds"
EXPORT = SEEDS.parent.parent / "tests/fixtures/export-1/harbour.bin"

torch = types.ModuleType("torch")
utils = types.ModuleType("torch._utils")
sys.modules |= {"torch": torch, "torch._utils": utils}


def named(name, module):
    """A function or class that a pickle names, and nothing more."""

    def stand_in(*arguments):
        return arguments

    stand_in.__name__ = stand_in.__qualname__ = name
    stand_in.__module__ = module.__name__
    setattr(module, name, stand_in)
    return stand_in


REBUILD = named("_rebuild_tensor_v2", utils)
PARAMETER = named("_rebuild_parameter", utils)
STORAGES = {kind: named(f"{kind}Storage", torch) for kind in ["Float", "Half", "BFloat16", "Double", "Long", "Byte"]}


class Storage:
    def __init__(self, kind, key, elements):
        self.named = ("storage", STORAGES[kind], str(key), "cpu", elements)


class Tensor:
    def __init__(self, storage, offset, shape, strides, parameter=False):
        self.arguments = (storage, offset, shape, strides, False, OrderedDict())
        self.parameter = parameter

    def __reduce__(self):
        if self.parameter:
            return PARAMETER, (Tensor(*self.arguments[:4]), True, OrderedDict())
        return REBUILD, self.arguments


class Pickler(pickle.Pickler):
    legacy = False

    def persistent_id(self, value):
        if isinstance(value, Storage):
            return (*value.named, None) if self.legacy else value.named
        return None


def pickled(value, legacy=False, protocol=2):
    out = io.BytesIO()
    pickler = Pickler(out, protocol=protocol)
    pickler.legacy = legacy
    pickler.dump(value)
    return out.getvalue()


def floats(count):
    return struct.pack(f"<{count}f", *(index / 8 - 1 for index in range(count)))


def parts(first, second):
    return b"P" + struct.pack("<H", len(first)) + first + second


def archive(pickle_bytes, storages):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, content in [("data.pkl", pickle_bytes), ("byteorder", b"little"), *storages, ("version", b"3\n")]:
            file.writestr(zipfile.ZipInfo(f"m/{name}"), content)
    return out.getvalue()


def micro():
    """Shapes of the smallest TransOSS, for images of 2 x 1 pixels."""
    d = 2
    shapes = {"base.cls_token": [1, 1, d], "base.pos_embed": [1, 3, d], "base.mie_embed": [2, 1, d]}
    for convolution in ["base.patch_embed.proj", "base.patch_embed_SAR.proj"]:
        shapes |= {f"{convolution}.weight": [d, 3, 1, 1], f"{convolution}.bias": [d]}
    shapes |= {"base.wh_embed.linear_layer.weight": [d, 3], "base.wh_embed.linear_layer.bias": [d]}
    for layer, outputs in [("attn.qkv", 3 * d), ("attn.proj", d), ("mlp.fc1", d), ("mlp.fc2", d)]:
        shapes |= {f"base.blocks.0.{layer}.weight": [outputs, d], f"base.blocks.0.{layer}.bias": [outputs]}
    for norm in ["base.blocks.0.norm1", "base.blocks.0.norm2", "base.norm", "bottleneck"]:
        shapes |= {f"{norm}.weight": [d], f"{norm}.bias": [d]}
    return shapes | {
        "bottleneck.running_mean": [d],
        "bottleneck.running_var": [d],
        "bottleneck.num_batches_tracked": [],
        "logit_scale": [],
    }


def strides(shape):
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def views(shapes, prefix=""):
    """Tensors one behind the other in one storage, and the storage's length."""
    total = sum(math.prod(shape) for shape in shapes.values())
    storage, at, tensors = Storage("Float", 0, total), 0, OrderedDict()
    for name, shape in shapes.items():
        tensors[prefix + name] = Tensor(storage, at, tuple(shape), strides(shape))
        at += math.prod(shape)
    return tensors, total


def pth():
    one = Storage("Float", 0, 12)
    tensors = OrderedDict(a=Tensor(one, 0, (2, 3), (3, 1)), b=Tensor(one, 6, (3, 2), (1, 3), parameter=True))
    wrapped = {"epoch": 60, "state_dict": tensors, "best": (0.5, None, True, -2), "name": "model", "big": 1 << 70}
    yield "parts_plain", parts(pickled(tensors), floats(12))
    yield "parts_wrapped", parts(pickled(wrapped, protocol=4), floats(12))
    for kind, size in [("Half", 2), ("BFloat16", 2), ("Double", 8), ("Long", 8), ("Byte", 1)]:
        one_of = OrderedDict(x=Tensor(Storage(kind, 0, 4), 0, (4,), (1,)))
        yield f"parts_{kind.lower()}", parts(pickled(one_of), bytes(range(4 * size)))
    for name, prefix in [("parts_micro", ""), ("parts_micro_parallel", "module.")]:
        model, total = views(micro(), prefix)
        yield name, parts(pickled(model), floats(total))
    yield "plain.pth", archive(pickled(tensors), [("data/0", floats(12))])
    header = [pickled(value) for value in [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]]
    body = pickled(tensors, legacy=True) + pickled(["0"]) + struct.pack("<q", 12) + floats(12)
    yield "legacy.pth", b"".join(header) + body


def safetensors(shapes):
    header, at = {}, 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + 4 * count]}
        at += 4 * count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + floats(at // 4)


DESCRIPTION = b"""format = 1
digest = "0000000000000000000000000000000000000000000000000000000000000000"
feature_point = "before_neck"
source = "seed.pth"

[architecture]
patch = 1
stride = 1
embed_dim = 2
depth = 1
heads = 1
mlp_ratio = 1
size_token = true
modality_embedding = true
mie_coefficient = 3.0
classes = 0

[architecture.image]
height = 2
width = 1
"""


def folders():
    small = safetensors({"a": [2, 2], "b": [], "c": [0, 3]})
    yield "small.safetensors", small
    yield "parts_small", parts(DESCRIPTION, small)
    yield "parts_micro", parts(DESCRIPTION, safetensors(micro()))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr(zipfile.ZipInfo("model.toml"), DESCRIPTION)
        file.writestr(zipfile.ZipInfo("model.safetensors"), small)
    yield "packed.zip", out.getvalue()


def exports():
    """The recorded export without its tail."""
    content = EXPORT.read_bytes()
    at, begins = 20, []
    while at < len(content):
        begins.append(at)
        at += 4 + struct.unpack("<I", content[at : at + 4])[0]
    yield "without_tail", b"S" + content[: begins[-1]]
    yield "head_alone", b"S" + content[: begins[1]]


def main():
    for folder, made in [("pth", pth()), ("safetensors", folders()), ("archive", exports())]:
        for name, content in made:
            (SEEDS / folder / name).write_bytes(content)


if __name__ == "__main__":
    main()
