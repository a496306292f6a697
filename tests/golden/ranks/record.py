#!/usr/bin/env python3
"""Records what 20 steps of two and of three ranks are, by PyTorch alone.

Each rank is a process with DistributedDataParallel over gloo, on the CPU, with its part of every batch of 24. Network,
losses and optimizer follow the rules that tests/golden/README.md refers to; nothing here comes from this project's program.
Needs torch 2.13.0 and numpy. Usage: tests/golden/ranks/record.py [--out FILE]; it prints how far f32 is from f64.
"""

import argparse
import json
import os
import socket
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

HERE = Path(__file__).parent
STEPS, BATCH, CLASSES = 20, 24, 5
DIM, DEPTH, HEADS, HEIGHT, WIDTH, PATCH = 16, 2, 2, 64, 32, 16
RATE, DECAY, MOMENTUM = 0.01, 1e-4, 0.9
# A tensor of more numbers is recorded by its sum, norm and some elements.
WHOLE_MAX, ELEMENTS = 600, 64


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "recorded.safetensors")
    arguments = parser.parse_args()
    recorded = {}
    for objective in ("fine_tuning", "pretraining"):
        for ranks in (2, 3):
            for gathers in (False, True):
                name = f"{objective}.{ranks}.{'gathered' if gathers else 'own'}"
                single = run(objective, ranks, gathers, torch.float32)
                double = run(objective, ranks, gathers, torch.float64)
                print(f"{name}: loss {single['loss'][0][0]:.4f} to {single['loss'][-1][0]:.4f}; "
                      f"f32 is off by {furthest(single, double):.1e}")
                recorded |= {f"{name}.{key}": value for key, value in digested(single).items()}
    write(arguments.out, recorded)


def furthest(single, double):
    return max(float(np.abs(single[name] - double[name]).max()) for name in single)


def digested(learned):
    """Small tensors as they are, large ones by sum, norm and elements at equal distances."""
    small = {name: values for name, values in learned.items() if values.size <= WHOLE_MAX}
    for name, values in learned.items():
        if name not in small:
            flat = values.astype(np.float64).reshape(-1)
            elements = flat[[place * flat.size // ELEMENTS for place in range(ELEMENTS)]]
            small[f"digest.{name}"] = np.concatenate([[flat.sum(), np.sqrt((flat**2).sum())], elements])
    return small


# Inputs, from integers alone.


def mixed(numbers):
    """A hash of 32 bits."""
    numbers = np.asarray(numbers, dtype=np.uint64) * 2654435761 % 2**32
    numbers ^= numbers >> np.uint64(15)
    numbers = numbers * 2246822519 % 2**32
    return numbers ^ (numbers >> np.uint64(13))


def label(objective, step, row):
    """Four images of each identity, one after the other; or a number for each pair."""
    if objective == "pretraining":
        return row % (BATCH // 2)
    return ([0, 3, 1, 4, 2, 0][row // 4] + step) % CLASSES


def images(objective, step, rows):
    """[B, 3, 64, 32]: noise, and half of it a pattern of the label."""
    places = np.arange(3 * HEIGHT * WIDTH)
    bytes_of = lambda numbers: (mixed(numbers) >> np.uint64(24)).astype(np.int64) - 128
    noise = np.stack([bytes_of((step * BATCH + row) * places.size + places) for row in rows])
    labels = np.array([label(objective, step, row) for row in rows])
    pattern = np.stack([bytes_of(10**7 + label * places.size + places) for label in labels])
    return ((noise + pattern) / 128).reshape(-1, 3, HEIGHT, WIDTH), labels


def is_sar(objective, row):
    return row >= BATCH // 2 if objective == "pretraining" else row % 2 == 1


def sizes(rows):
    """[B, 3]"""
    return np.array([[((5 * row + 3 * place) % 16 - 8) / 8 for place in range(3)] for row in rows])


def rows_of(objective, rank, ranks):
    """The rows of a rank: mini-batches of whole identities in turn, or pairs with both halves."""
    if objective == "pretraining":
        pairs = BATCH // 2 // ranks
        optical = list(range(rank * pairs, (rank + 1) * pairs))
        return optical + [BATCH // 2 + row for row in optical]
    return list(range(rank * BATCH // ranks, (rank + 1) * BATCH // ranks))


# Exchange with other ranks, through which gradients flow back.


class Gathered(torch.autograd.Function):
    """The rows of all ranks. A row's gradient is the sum of those that all ranks have for it."""

    @staticmethod
    def forward(context, rows, group):
        context.group = group
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(context, gradient):
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient, group=context.group)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()], None


class Summed(torch.autograd.Function):
    """The sum over the ranks."""

    @staticmethod
    def forward(context, numbers, group):
        context.group = group
        numbers = numbers.clone()
        dist.all_reduce(numbers, group=group)
        return numbers

    @staticmethod
    def backward(context, gradient):
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient, group=context.group)
        return gradient, None


class SynchronisedBatchNorm(nn.BatchNorm1d):
    """Mean and variance of the rows of all ranks. PyTorch's own runs on GPUs only."""

    group = None

    def forward(self, rows):
        count = rows.shape[0] * dist.get_world_size()
        mean = Summed.apply(rows.sum(0), self.group) / count
        variance = Summed.apply(((rows - mean) ** 2).sum(0), self.group) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        return (rows - mean) / torch.sqrt(variance + self.eps) * self.weight + self.bias


# The network.


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM, eps=1e-6), nn.LayerNorm(DIM, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(DIM, 3 * DIM), "proj": nn.Linear(DIM, DIM)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(DIM, 4 * DIM), "fc2": nn.Linear(4 * DIM, DIM)})

    def forward(self, x):
        b, n, _ = x.shape
        qkv = self.attn["qkv"](self.norm1(x)).reshape(b, n, 3, HEADS, DIM // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (DIM // HEADS) ** -0.5).softmax(-1)
        x = x + self.attn["proj"]((weights @ v).transpose(1, 2).reshape(b, n, DIM))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Patches(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(3, DIM, PATCH, PATCH)

    def forward(self, pixels):
        return self.proj(pixels).flatten(2).transpose(1, 2)


class Base(nn.Module):
    """The size token is left out of pretraining, as the authors do."""

    def __init__(self, with_size):
        super().__init__()
        self.patch_embed, self.patch_embed_SAR = Patches(), Patches()
        self.cls_token = nn.Parameter(torch.empty(1, 1, DIM))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + HEIGHT // PATCH * (WIDTH // PATCH), DIM))
        self.mie_embed = nn.Parameter(torch.empty(2, 1, DIM))
        self.wh_embed = nn.ModuleDict({"linear_layer": nn.Linear(3, DIM)}) if with_size else None
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(DIM, eps=1e-6)

    def forward(self, pixels, sar, size):
        patches = torch.where(sar[:, None, None], self.patch_embed_SAR(pixels), self.patch_embed(pixels))
        x = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], 1)
        x = x + self.pos_embed + 3.0 * self.mie_embed[sar.long()]
        if self.wh_embed is not None:
            x = torch.cat([x, self.wh_embed["linear_layer"](size)[:, None]], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


class FineTuning(nn.Module):
    def __init__(self, gathers, group):
        super().__init__()
        self.base = Base(with_size=True)
        self.bottleneck = SynchronisedBatchNorm(DIM) if gathers else nn.BatchNorm1d(DIM)
        self.bottleneck.group = group
        self.bottleneck.bias.requires_grad_(False)
        self.classifier = nn.Linear(DIM, CLASSES, bias=False)
        self.gathers, self.group = gathers, group

    def forward(self, pixels, sar, size, labels):
        """The terms of the loss: total, identity, triplet."""
        features = self.base(pixels, sar, size)
        identity = F.cross_entropy(self.classifier(self.bottleneck(features)), labels)
        if self.gathers:
            features, labels = Gathered.apply(features, self.group), Gathered.apply(labels, self.group)
        triplet = soft_triplet(features, labels)
        return torch.stack([identity + triplet, identity, triplet])


def soft_triplet(features, labels):
    squares = (features**2).sum(1)
    distance = (squares[:, None] + squares - 2 * features @ features.T).clamp(min=1e-12).sqrt()
    same = labels[:, None] == labels
    positive = distance.masked_fill(~same, -torch.inf).max(1).values
    negative = distance.masked_fill(same, torch.inf).min(1).values
    return F.softplus(positive - negative).mean()


class Pretraining(nn.Module):
    def __init__(self, gathers, group):
        super().__init__()
        self.base = Base(with_size=False)
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.gathers, self.group = gathers, group

    def forward(self, pixels, sar, size, _):
        """The loss alone."""
        optical, sar = F.normalize(self.base(pixels, sar, size)).chunk(2)
        if self.gathers:
            optical, sar = Gathered.apply(optical, self.group), Gathered.apply(sar, self.group)
        logits = self.logit_scale.exp() * sar @ optical.T
        partner = torch.arange(len(logits))
        return (F.cross_entropy(logits, partner) + F.cross_entropy(logits.T, partner))[None] / 2


# Training.


def run(objective, ranks, gathers, kind):
    """What rank 0 has learned: the losses of every step, [20, terms], and each tensor at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(learn, (objective, ranks, gathers, kind, port, folder), ranks)
        learned = [dict(np.load(Path(folder) / f"{rank}.npz")) for rank in range(ranks)]
    for name, values in learned[0].items():
        for other in learned[1:]:
            # Statistics are rank 0's; the others receive them before the next step.
            if ".running_" not in name:
                assert np.array_equal(values, other[name]), f"{name} differs"
    return learned[0]


def learn(rank, objective, ranks, gathers, kind, port, folder):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    network = {"fine_tuning": FineTuning, "pretraining": Pretraining}[objective](gathers, dist.new_group())
    weights = read(HERE.parent / "micro_weights.safetensors")
    network.load_state_dict({name: torch.from_numpy(weights[name].copy()) for name in network.state_dict()})
    network.to(kind)
    trained = [(name, tensor) for name, tensor in network.named_parameters() if tensor.requires_grad]
    groups = [{"params": [tensor], "lr": RATE * (2 if "bias" in name else 1)} for name, tensor in trained]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    parallel = DistributedDataParallel(network)
    rows, losses = rows_of(objective, rank, ranks), []
    sar = torch.tensor([is_sar(objective, row) for row in rows])
    size = torch.from_numpy(sizes(rows)).to(kind)
    for step in range(STEPS):
        pixels, labels = images(objective, step, rows)
        terms = parallel(torch.from_numpy(pixels).to(kind), sar, size, torch.from_numpy(labels))
        optimizer.zero_grad()
        terms[0].backward()
        optimizer.step()
        mean = terms.detach().clone()
        dist.all_reduce(mean)
        losses.append((mean / ranks).numpy())
    tensors = {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}
    np.savez(Path(folder) / f"{rank}.npz", loss=np.stack(losses), **tensors)
    dist.destroy_process_group()


# safetensors.


def read(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    kinds = {"F32": np.float32, "F64": np.float64, "I64": np.int64}
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            tensors[name] = np.frombuffer(data[start:end], kinds[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def write(path, tensors):
    header, body = {}, b""
    for name, values in sorted(tensors.items()):
        values = np.ascontiguousarray(values, dtype=np.float32).reshape(np.shape(values))
        end = len(body) + values.nbytes
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [len(body), end]}
        body += values.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


if __name__ == "__main__":
    main()
