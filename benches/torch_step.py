#!/usr/bin/env python3
"""Takes training steps of TransOSS in PyTorch on demand, as `shipreid bench step` does, to be timed beside it.

For each line on standard input: one fine-tuning step of a ViT-B/16 on noise (cross entropy and soft triplet, SGD with
a group a tensor, stochastic depth 0.1) and a line of JSON with its seconds. bf16 is PyTorch's autocast.
"""

import argparse
import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

DIM, DEPTH, HEADS, CLASSES = 768, 12, 12, 360
HEIGHT, WIDTH, PATCH = 256, 128, 16
DROP_PATH = 0.1


def drop_path(x, rate, training):
    if rate == 0.0 or not training:
        return x
    kept = torch.floor(torch.rand(x.shape[0], 1, 1) + (1 - rate)).to(x.dtype)
    return x / (1 - rate) * kept


class Block(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.rate = rate
        self.norm1, self.norm2 = nn.LayerNorm(DIM, eps=1e-6), nn.LayerNorm(DIM, eps=1e-6)
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.fc1, self.fc2 = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)

    def attention(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).reshape(b, n, DIM))

    def forward(self, x):
        x = x + drop_path(self.attention(self.norm1(x)), self.rate, self.training)
        return x + drop_path(self.fc2(F.gelu(self.fc1(self.norm2(x)))), self.rate, self.training)


class TransOss(nn.Module):
    def __init__(self):
        super().__init__()
        patches = (HEIGHT // PATCH) * (WIDTH // PATCH)
        self.optical, self.sar = (nn.Conv2d(3, DIM, PATCH, PATCH) for _ in range(2))
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, DIM))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + patches, DIM))
        self.modality = nn.Parameter(0.02 * torch.randn(2, 1, DIM))
        self.size = nn.Linear(3, DIM)
        self.blocks = nn.ModuleList(Block(DROP_PATH * place / (DEPTH - 1)) for place in range(DEPTH))
        self.norm = nn.LayerNorm(DIM, eps=1e-6)
        self.neck = nn.BatchNorm1d(DIM)
        self.neck.bias.requires_grad_(False)
        self.classifier = nn.Linear(DIM, CLASSES, bias=False)

    def forward(self, pixels, is_sar, sizes):
        grids = torch.empty(len(pixels), (HEIGHT // PATCH) * (WIDTH // PATCH), DIM)
        for conv, rows in ((self.optical, ~is_sar), (self.sar, is_sar)):
            grids[rows] = conv(pixels[rows]).flatten(2).transpose(1, 2).to(grids.dtype)
        x = torch.cat([self.class_token.expand(len(pixels), -1, -1), grids], 1) + self.positions
        x = x + 3.0 * self.modality[is_sar.long()]
        x = torch.cat([x, self.size(sizes).unsqueeze(1)], 1)
        for block in self.blocks:
            x = block(x)
        feature = self.norm(x)[:, 0].float()
        return feature, self.classifier(self.neck(feature))


def soft_triplet(feature, label):
    squares = feature.pow(2).sum(1, keepdim=True)
    distance = (squares + squares.t() - 2 * feature @ feature.t()).clamp(min=1e-12).sqrt()
    same = label[:, None] == label[None, :]
    positive = distance.masked_fill(~same, -1.0).max(1).values
    negative = distance.masked_fill(same, float("inf")).min(1).values
    return F.softplus(positive - negative).mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    arguments = parser.parse_args()
    torch.manual_seed(1)
    model = TransOss().train()
    groups = [
        {"params": [tensor], "lr": 5e-4 if "bias" in name else 2.5e-4, "weight_decay": 1e-4}
        for name, tensor in model.named_parameters() if tensor.requires_grad
    ]
    optimizer = torch.optim.SGD(groups, lr=2.5e-4, momentum=0.9)
    batch = arguments.batch
    pixels, sizes = 4 * torch.rand(batch, 3, HEIGHT, WIDTH) - 2, 4 * torch.rand(batch, 3) - 2
    is_sar, label = torch.arange(batch) >= batch // 2, torch.arange(batch) // 4

    def step():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.precision == "bf16"):
            feature, scores = model(pixels, is_sar, sizes)
        loss = F.cross_entropy(scores.float(), label) + soft_triplet(feature, label)
        loss.backward()
        optimizer.step()
        return loss.item()

    step()
    print("ready", flush=True)
    for _ in sys.stdin:
        started, cpu = time.perf_counter(), time.process_time()
        loss = step()
        measured = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu, "loss": loss}
        print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    main()
