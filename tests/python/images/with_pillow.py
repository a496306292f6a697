"""Valid TIFF files as Pillow writes them, with libtiff where they are compressed."""

import numpy as np
from PIL import Image

from samples import UNASSOCIATED, UNSPECIFIED, Drawn, bits, chance, pick, size, smooth, values
from tags import LOSSY, OPTIONAL_CODECS, modality

PILLOW_CODECS = {
    "none": "raw", "lzw": "tiff_lzw", "deflate": "tiff_adobe_deflate", "deflate_old": "tiff_deflate",
    "packbits": "packbits", "jpeg": "jpeg", "lzma": "lzma", "ccitt3": "group3", "ccitt4": "group4",
}  # fmt: skip


def write(rng, path):
    mode = pick(
        rng, {"1": 3, "L": 5, "LA": 2, "P": 3, "RGB": 5, "RGBA": 3, "RGBX": 1, "CMYK": 2, "I;16": 4, "I": 2, "F": 3}
    )
    weights = {"none": 4, "lzw": 4, "deflate": 4, "deflate_old": 1, "packbits": 3, "lzma": 0.5}
    if mode in ("L", "RGB"):
        weights["jpeg"] = 4
    if mode == "1":
        weights |= {"ccitt3": 3, "ccitt4": 4}
    codec = pick(rng, weights)
    type = {"1": "u1", "I;16": "u16", "I": "i32", "F": "f32"}.get(mode, "u8")
    count = {"LA": 2, "RGB": 3, "RGBA": 4, "RGBX": 4, "CMYK": 4}.get(mode, 1)
    height, width = size(rng)
    samples = values(rng, type, (height, width, count))
    if codec in LOSSY:
        samples = np.floor(smooth(rng, height, width, count) * 255 + 0.5).astype("u1")
    photometric = {"P": "palette", "CMYK": "cmyk"}.get(mode, "rgb" if count >= 3 else "minisblack")
    extra = (UNASSOCIATED,) if mode in ("LA", "RGBA") else (UNSPECIFIED,) if mode == "RGBX" else ()
    drawn = Drawn(path, modality(rng, count, photometric), "tiff", codec, type, samples, photometric, extra)
    plain = samples if count > 1 else samples[..., 0]
    image = Image.fromarray(plain.astype(bool)) if mode == "1" else Image.fromarray(plain, mode)
    if mode == "P":
        colours = rng.integers(0, 256, 768).astype("u1")
        image.putpalette(colours.tobytes())
        drawn.colormap = colours.reshape(256, 3).T.astype("u2") * 257
    tags = {}
    if chance(rng, 0.4):
        tags[278] = int(rng.choice([1, 5, 8, 16, height])) if codec != "jpeg" else 16
        drawn.traits.append(f"strips of {tags[278]}")
    if chance(rng, 0.3):
        drawn.orientation = tags[274] = int(rng.integers(1, 9))
        drawn.traits.append(f"orientation {drawn.orientation}")
    if codec in ("lzw", "deflate") and bits(type) >= 8 and mode != "F" and chance(rng, 0.4):
        tags[317] = 2
        drawn.traits.append("predictor 2")
    if codec in ("lzw", "deflate", "packbits", "ccitt4") and mode in ("1", "L", "RGB") and chance(rng, 0.1):
        tags[266] = 2
        drawn.traits.append("fill order 2")
        drawn.must = False
    options = {"compression": PILLOW_CODECS[codec], "tiffinfo": tags, "big_tiff": codec != "none" and chance(rng, 0.2)}
    if codec == "jpeg":
        options["quality"] = int(rng.integers(60, 98))
    image.save(path, **options)
    if codec in OPTIONAL_CODECS:
        drawn.must = False
    if codec in LOSSY:
        drawn.stored = None
    return drawn
