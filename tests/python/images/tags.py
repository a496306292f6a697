"""What drawn TIFF files have in common, whoever writes them."""

import numpy as np

from samples import chance, pick

# Codecs that need not be read, but then are refused by name.
OPTIONAL_CODECS = {"lzma", "webp", "lerc", "jpeg2000", "jpegxl", "png", "ccitt3", "ccitt4", "lerc_deflate", "lerc_zstd"}
# Sample types that need not be read.
OPTIONAL_TYPES = {"u10", "u14", "u64", "i64", "c128", "ci32"}
LOSSY = {"jpeg"}


def modality(rng, samples, photometric):
    """SAR has one channel; that more are refused is tried now and then."""
    if samples == 1 and photometric in ("minisblack", "miniswhite"):
        return "sar" if chance(rng, 0.55) else "optical"
    return "sar" if chance(rng, 0.06) else "optical"


def draw_nodata(rng, samples, width):
    """As GDAL writes it: a text. Such a pixel is somewhere in the picture, most of the time."""
    kind = samples.dtype.kind
    if kind == "c":
        return "0"
    if kind in "ui":
        info = np.iinfo(samples.dtype)
        top = int(info.max) if width % 8 == 0 else 2**width - 1
        return str([0, 1, top, int(info.min), min(top, 255)][int(rng.integers(5))])
    if samples.dtype == np.float16:  # GDAL compares in 32 bits: only what has few digits is equal
        return str(rng.choice(["0", "nan", "0.5", "2048"]))
    texts = ["0", "nan", "-9999", "-32767", "1e+20", "0.1"]
    if samples.dtype == np.float32:
        texts += ["3.40282346638529e+38", "-3.40282346638529e+38", "-3.4028234663852886e+38"]
    return str(rng.choice(texts))


def put_nodata(rng, samples, nodata):
    """A corner, a border or single pixels take the value."""
    if samples.dtype.kind == "c":
        value = samples.dtype.type(0)
    elif samples.dtype.kind in "ui":
        value = samples.dtype.type(int(nodata))
    else:
        limit = float(np.finfo(samples.dtype).max)
        with np.errstate(over="ignore"):
            value = samples.dtype.type(np.clip(float(nodata), -limit, limit))
    height, width = samples.shape[:2]
    kind = pick(rng, {"corner": 3, "pixels": 2, "absent": 1})
    if kind == "corner":
        samples[: height // 3 + 1, : width // 3 + 1] = value
    elif kind == "pixels":
        samples[rng.random((height, width)) < 0.1] = value


def filler(nodata, dtype):
    """What a tile that is left out shows."""
    if nodata is None or dtype.kind == "c":
        return dtype.type(0)
    if dtype.kind in "ui":
        return dtype.type(int(nodata))
    limit = float(np.finfo(dtype).max)
    return dtype.type(np.clip(float(nodata), -limit, limit))
