#!/usr/bin/env python3
"""Writes the checkpoints of this folder that are not recorded: one tiny TransOSS in the layouts that programs save.

Made with torch 2.13.0, safetensors 0.8.0 and numpy 2.4.6. Every file is read again with torch's safe loader, which has
to take or refuse it as the tests say; nothing here is random.
"""

import argparse
import collections
import copy
import io
from pathlib import Path

import numpy
import safetensors
import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
WIDTH, DEPTH, PATCH = 4, 2, 4


def shapes():
    """Of images of 12 x 8, hence 3 x 2 patches, with size token, modality embedding and 3 classes."""
    yield "base.cls_token", (1, 1, WIDTH)
    yield "base.pos_embed", (1, 7, WIDTH)
    yield "base.mie_embed", (2, 1, WIDTH)
    for convolution in ("base.patch_embed", "base.patch_embed_SAR"):
        yield f"{convolution}.proj.weight", (WIDTH, 3, PATCH, PATCH)
        yield f"{convolution}.proj.bias", (WIDTH,)
    for block in range(DEPTH):
        for norm in ("norm1", "norm2"):
            yield f"base.blocks.{block}.{norm}.weight", (WIDTH,)
            yield f"base.blocks.{block}.{norm}.bias", (WIDTH,)
        for layer, outputs in (("attn.qkv", 3 * WIDTH), ("attn.proj", WIDTH), ("mlp.fc1", WIDTH), ("mlp.fc2", WIDTH)):
            yield f"base.blocks.{block}.{layer}.weight", (outputs, WIDTH)
            yield f"base.blocks.{block}.{layer}.bias", (outputs,)
    for vector in ("base.norm.weight", "base.norm.bias", "base.fc.weight", "bottleneck.weight", "bottleneck.bias"):
        yield vector, (WIDTH,)
    yield "base.wh_embed.linear_layer.weight", (WIDTH, 3)
    yield "base.wh_embed.linear_layer.bias", (WIDTH,)
    yield "bottleneck.running_mean", (WIDTH,)
    yield "bottleneck.running_var", (WIDTH,)
    yield "classifier.weight", (3, WIDTH)
    yield "logit_scale", ()


def model(factor=1.0):
    """Numbers that bf16 holds exactly, so that every type gives the same."""
    tensors = collections.OrderedDict()
    for place, (name, shape) in enumerate(shapes()):
        count = int(numpy.prod(shape))
        values = (torch.arange(count, dtype=torch.float32) * 37 + place * 11) % 128 - 64
        tensors[name] = (values * factor / 64).reshape(shape)
    tensors["bottleneck.num_batches_tracked"] = torch.tensor(9)
    return tensors


def prefixed(tensors, prefix):
    return collections.OrderedDict((prefix + name, tensor) for name, tensor in tensors.items())


def write(name, content, refused=None, **options):
    """Saves as torch does and compares what its safe loader says of it."""
    torch.save(content, HERE / name, **options)
    if options.get("pickle_protocol", 2) != 2:
        return  # torch writes other protocols than it reads safely
    try:
        torch.load(HERE / name, weights_only=True)
        assert refused is None, f"{name} is read"
    except Exception as cause:
        assert refused is not None and refused in str(cause), f"{name}: {cause}"


def layouts():
    plain = model()
    write("plain.pth", plain)
    write("legacy.pth", {"state_dict": plain, "epoch": 3}, _use_new_zipfile_serialization=False)
    write("protocol4.pth", plain, pickle_protocol=4)
    write("protocol5.pth", {"model": plain, "args": {"rate": 0.1, "note": b"bytes" * 60, "big": 1 << 200}}, pickle_protocol=5)
    write("compiled_ddp.pth", {"model": prefixed(plain, "module._orig_mod.")})
    write("ema.pth", {"model": plain, "model_ema": prefixed(model(0.5), "module."), "epoch": 3})
    write("averaged.pth", {**prefixed(plain, "module."), "n_averaged": torch.tensor(5)})
    lightning = {**prefixed(plain, "net."), **prefixed(model(0.5), "ema.module."), "criterion.center": torch.ones(2, 2)}
    write("lightning.ckpt", {
        "epoch": 3, "global_step": 12, "pytorch-lightning_version": "2.6.0", "state_dict": lightning,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'mAP'}": {"best_model_score": torch.tensor(0.5), "best_k_models": {}}},
        "optimizer_states": [optimizer_state(plain)], "lr_schedulers": [multi_step()],
        "hyper_parameters": {"lr": 0.1, "stages": (1, 2)},
    })
    for name, kind in (("half", torch.float16), ("bfloat", torch.bfloat16), ("double", torch.float64)):
        cast = {key: value.to(kind) if value.is_floating_point() else value for key, value in plain.items()}
        write(f"{name}.pth", cast)
        save_file(cast, HERE / f"{name}.safetensors", metadata={"format": "pt"})
    short = {name: tensor for name, tensor in plain.items() if not name.endswith("num_batches_tracked")}
    write("no_counter.pth", short)
    write("views.pth", views(plain))
    write("parameters.pth", parameters(plain))
    write("everything.pth", everything(plain))
    typed = everything(plain)
    # Neither what lies in an untyped storage nor a nested tensor can be read again from the legacy format.
    untyped = (torch.float8_e5m2, torch.uint16)
    typed["tensors"] = [one for one in typed["tensors"] if one.dtype not in untyped and not one.is_nested]
    write("everything_legacy.pth", typed, _use_new_zipfile_serialization=False)
    write("beside.pth", {**plain, "_extra_state": {"scale": torch.ones(2)}, "dtype": torch.float32, "note": "text",
                         "steps": 7, "nothing": None, "pair": (1, [2.0]), "seen": {1, 2}, 5: torch.ones(1)})
    save_file(plain, HERE / "tiny.safetensors")
    save_file(prefixed(plain, "model."), HERE / "prefixed.safetensors")
    assert load_file(HERE / "tiny.safetensors").keys() == plain.keys()


def optimizer_state(plain):
    weight = torch.nn.Parameter(plain["base.norm.weight"].clone())
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def multi_step():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5, 5]).state_dict()


def views(plain):
    """Every tensor a view of one array, transposed where it has two axes."""
    floats = {name: tensor for name, tensor in plain.items() if tensor.is_floating_point()}
    array = torch.zeros(sum(tensor.numel() for tensor in floats.values()) + 5)
    start, found = 5, {"bottleneck.num_batches_tracked": plain["bottleneck.num_batches_tracked"]}
    for name, tensor in floats.items():
        part = array[start : start + tensor.numel()]
        part.copy_((tensor.t() if tensor.dim() == 2 else tensor).reshape(-1))
        found[name] = part.reshape(tensor.shape[::-1]).t() if tensor.dim() == 2 else part.reshape(tensor.shape)
        start += tensor.numel()
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())
    return {"state_dict": found}


def parameters(plain):
    """Parameters, with and without attributes, and tensors with attributes."""
    found = collections.OrderedDict()
    for place, (name, tensor) in enumerate(plain.items()):
        kept = torch.nn.Parameter(tensor) if tensor.is_floating_point() and place % 3 else tensor.clone()
        if place % 2:
            kept.tag = "marked"
        found[name] = kept
    return found


def everything(plain):
    """Beside the tensors, whatever torch's safe loader takes."""
    state = copy.deepcopy(plain)
    state._metadata = collections.OrderedDict({"": {"version": 1}, "base": {"version": 2}})
    ones = torch.ones(2, 2)
    return {
        "state_dict": state,
        "counter": collections.Counter("abca"),
        "types": [torch.float32, torch.complex64, torch.float8_e4m3fn, torch.quint8, torch.uint16, torch.int4],
        "device": torch.device("cuda:1"), "size": ones.size(), "layout": torch.sparse_coo, "set": {1, "a"},
        "bytes": b"\x00\xff text", "array": bytearray(b"\x00\xff"), "complex": 1 + 2j, "big": 1 << 300, "none": None,
        "nested": [(1, (2.5, [True, {"a": ()}])), {}], "scheme": torch.per_tensor_affine,
        "tensors": [
            ones.to(torch.complex64), ones.to(torch.complex128), ones.to(torch.float8_e5m2), ones.to(torch.uint16),
            ones.bool(), ones.to(torch.int8), ones.to(torch.int16), ones.to_sparse(), ones.to_sparse_csr(),
            torch.empty(2, 3, device="meta"), torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
            torch.quantize_per_tensor(ones, 0.5, 1, torch.quint8),
            torch.quantize_per_channel(ones, torch.ones(2).double(), torch.zeros(2).long(), 0, torch.qint8),
            torch.view_as_real(ones.to(torch.complex64)), ones.to(torch.complex64).conj(), torch.zeros(0, 3),
        ],
        "optimizer": optimizer_state(plain), "scheduler": multi_step(),
    }


def starting_points():
    """ViTs as timm names them: a square grid of 14 x 14, no modality, no size."""
    vit = {name.removeprefix("base."): tensor for name, tensor in model().items()
           if name.startswith("base.") and not any(part in name for part in ("SAR", "mie", "wh_", "fc."))}
    vit["head.weight"], vit["head.bias"] = torch.ones(5, WIDTH), torch.ones(5)
    vit["pos_embed"] = (torch.arange(197 * WIDTH, dtype=torch.float32) % 64 / 64).reshape(1, 197, WIDTH)
    save_file(vit, HERE / "timm.safetensors", metadata={"format": "pt"})
    wide = {name: tensor.repeat_interleave(2, 0) for name, tensor in vit.items()}
    save_file(wide, HERE / "timm_wide.safetensors")
    dino = {"student": prefixed(vit, "module.backbone."), "teacher": prefixed(vit, "backbone."), "epoch": 3}
    dino["teacher"]["head.mlp.0.weight"] = torch.ones(2, 2)
    write("dino.pth", dino)


def refused():
    plain = model()
    write("namespace.pth", {"model": plain, "args": argparse.Namespace(rate=0.1)}, refused="argparse.Namespace")
    write("numpy_scalar.pth", {"model": plain, "best": numpy.float64(0.5)}, refused="scalar")
    # Read by torch, and no model: a tensor of it is complex.
    write("complex.pth", {**plain, "base.norm.bias": plain["base.norm.bias"].to(torch.complex64)})
    negated = torch.complex(torch.zeros(WIDTH), -plain["base.norm.bias"]).conj().imag
    assert negated.is_neg() and torch.equal(negated, plain["base.norm.bias"])
    write("negated.pth", {**plain, "base.norm.bias": negated})
    scripted = torch.jit.script(torch.nn.Linear(2, 2))
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    (HERE / "torchscript.pt").write_bytes(buffer.getvalue())


if __name__ == "__main__":
    layouts()
    starting_points()
    refused()
    for made in HERE.glob("*.safetensors"):
        made.chmod(0o644)
    print("torch", torch.__version__, "numpy", numpy.__version__, "safetensors", safetensors.__version__)
