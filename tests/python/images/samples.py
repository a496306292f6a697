"""Pixels of drawn images: what is stored in a file, before it is encoded."""

from dataclasses import dataclass, field

import numpy as np

# How a sample type is held here; packed integers have fewer bits than this.
DTYPES = {
    "u1": "u1",
    "u2": "u1",
    "u4": "u1",
    "u8": "u1",
    "u10": "u2",
    "u12": "u2",
    "u14": "u2",
    "u16": "u2",
    "u32": "u4",
    "u64": "u8",
    "i8": "i1",
    "i16": "i2",
    "i32": "i4",
    "i64": "i8",
    "f16": "f2",
    "f32": "f4",
    "f64": "f8",
    "ci16": "c8",
    "ci32": "c16",
    "c64": "c8",
    "c128": "c16",
}
# Extra samples as the tag counts them.
UNSPECIFIED, ASSOCIATED, UNASSOCIATED = 0, 1, 2


@dataclass
class Drawn:
    """A file that was written, and what is known about it without reading it."""

    path: str
    modality: str
    # Container, codec and sample type: the rows of the table.
    container: str
    codec: str
    type: str
    # [height, width, samples] as stored, before orientation and palette; None where the codec loses something.
    stored: np.ndarray | None
    photometric: str
    extra: tuple = ()
    orientation: int = 1
    nodata: str | None = None
    colormap: np.ndarray | None = None
    little: bool = True
    # What else is particular about it, to find the cause of a difference.
    traits: list = field(default_factory=list)
    # Whether a refusal by name is no answer.
    must: bool = True


def chance(rng, probability):
    return rng.random() < probability


def pick(rng, weights):
    names = list(weights)
    shares = np.array([weights[name] for name in names], float)
    return names[int(rng.choice(len(names), p=shares / shares.sum()))]


def bits(type):
    return int("".join(ch for ch in type if ch.isdigit()))


def scene(rng, height, width, samples):
    """Numbers in 0..1: a hull on water, noise, a slope or flat blocks, so that codecs meet runs and none."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    kind = pick(rng, {"hull": 4, "noise": 2, "slope": 2, "blocks": 2})
    noise = rng.random((height, width, samples))
    if kind == "noise":
        return noise
    if kind == "slope":
        base = (x * rng.random() + y * rng.random()) / max(height + width, 1)
        return np.clip(base[..., None] * (0.6 + 0.4 * rng.random(samples)) + 0.01 * noise, 0, 1)
    if kind == "blocks":
        coarse = rng.integers(0, 5, (height // 7 + 1, width // 5 + 1, samples)) / 4
        return np.repeat(np.repeat(coarse, 7, 0), 5, 1)[:height, :width]
    inside = ((x - width / 2) / max(width / 5, 1)) ** 2 + ((y - height / 2) / max(height / 2.5, 1)) ** 2 < 1
    return np.where(inside[..., None], 0.5 + 0.5 * noise, 0.15 * noise)


def smooth(rng, height, width, samples):
    """Numbers in 0..1 without edges: codecs that lose something agree on them, wrong ones do not."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    planes = []
    for _ in range(samples):
        fx, fy, phase = rng.uniform(0.02, 0.12), rng.uniform(0.02, 0.12), rng.uniform(0, 6)
        planes.append(0.5 + 0.45 * np.sin(fx * x + phase) * np.cos(fy * y - phase))
    return np.stack(planes, -1)


def values(rng, type, shape):
    """Samples of a type in one of the ranges that sensors and tools leave."""
    part = scene(rng, *shape)
    width = bits(type)
    if type.startswith("u"):
        top = 2**width - 1
        if width > 8 and chance(rng, 0.5):
            top = min(top, int(rng.choice([200, 300, 2047, 10000])))
        return np.floor(part * top + 0.5).astype(DTYPES[type])
    if type.startswith("i"):
        top = 2 ** (width - 1) - 1
        if width > 8 and chance(rng, 0.5):
            top = int(rng.choice([300, 2047, 20000]))
        low = 0 if chance(rng, 0.5) else -top // 3
        return np.floor(part * (top - low) + low).astype(DTYPES[type])
    if type.startswith("f"):
        out = (part * float(rng.choice([1.0, 254.0, 900.0, 30000.0]))).astype(DTYPES[type])
        if chance(rng, 0.3):
            out[tuple(rng.integers(0, side) for side in shape)] = rng.choice([-3.5, np.nan, np.inf, -np.inf, 300.5])
        return out
    imaginary = scene(rng, *shape)
    if type.startswith("ci"):
        part, imaginary = np.floor(part * 3000 - 1000), np.floor(imaginary * 3000 - 1000)
    else:
        part, imaginary = part * 300 - 100, imaginary * 300 - 100
    return (part + 1j * imaginary).astype(DTYPES[type])


def finite(samples):
    """LERC takes what is not a number out of the pixels, and into a mask."""
    return np.nan_to_num(samples, nan=0, posinf=1, neginf=-1) if samples.dtype.kind == "f" else samples


def size(rng):
    if chance(rng, 0.08):
        return int(rng.integers(1, 5)), int(rng.integers(1, 9))
    return int(rng.integers(6, 110)), int(rng.integers(6, 90))
