"""What an image shows, by Pillow where it reads the file, else by its stored samples and the rules of the product.

Nothing here decodes by itself: stored samples are those that were written, and GDAL or tifffile must find the same.
"""

import io
import os
import pathlib
import warnings

import numpy as np
import rasterio
import tifffile
from PIL import Image

from samples import ASSOCIATED, bits

# The largest difference of a sample and the mean over a file, in levels of 255: JPEG is not defined to the bit.
EXACT, JPEG, SMALL_JPEG = (0, 0.0), (6, 0.5), (6, 1.5)
# Pixels of which a mean says nothing.
SMALL = 500
# A magnitude is a square root in one precision or another.
MAGNITUDE = 1e-6


def judge(drawn):
    """One line of the manifest; the pixels lie beside the file."""
    line = {
        "file": os.path.basename(drawn.path),
        "modality": drawn.modality,
        "container": drawn.container,
        "codec": drawn.codec,
        "type": drawn.type,
        "traits": " ".join([drawn.photometric, f"{len(drawn.extra)} extra", *drawn.traits]),
        "must": drawn.must,
        "refusal": None,
        "tolerance": EXACT,
        "relative": MAGNITUDE if drawn.container == "tiff" and drawn.type.startswith("c") else 0.0,
        "results": [],
    }
    oracle, seen = "pillow", pillow(drawn)
    if drawn.container != "tiff":
        if seen is None:
            raise ValueError(f"Pillow does not read {drawn}")
        return line | {"oracle": oracle} | answered(drawn, [seen])
    stored = read_back(drawn)
    line["must"] = drawn.must and not doubtful(drawn, seen)
    if drawn.modality == "sar" and stored.shape[2] > 1:
        return line | {"oracle": "rule", "refusal": "SAR_CHANNELS"}
    wrong = why_pillow_is_wrong(drawn, stored)
    if seen is None or wrong is not None:
        oracle, answers = "stored samples", by_rule(drawn, stored)
        line["pillow"] = wrong or "does not read it"
    elif drawn.extra and drawn.extra[0] == ASSOCIATED:
        # Pillow takes the alpha out by one formula or another, planes apart or not.
        answers = [seen, *by_rule(drawn, stored)]
    elif drawn.type == "u1" and drawn.modality == "sar":
        # The stretch makes one of both.
        answers = [seen, (seen[0], seen[1] * np.float32(255))]
    else:
        answers = [seen]
    if drawn.modality == "sar" and drawn.nodata is not None:
        hidden = oriented(is_nodata(stored[..., 0], drawn.nodata), drawn.orientation)
        answers = [(form, np.where(hidden, np.float32(0), pixels)) for form, pixels in answers]
    return line | {"oracle": oracle} | answered(drawn, answers)


def doubtful(drawn, seen):
    """Where no rule says what the bands mean: a refusal by name is as good, unless Pillow knows."""
    bands = drawn.extra and (drawn.photometric in ("minisblack", "miniswhite") or ASSOCIATED in drawn.extra)
    colours = drawn.photometric in ("rgb", "cmyk") and drawn.type not in ("u8", "u16", "f32")
    indices = drawn.photometric == "palette" and drawn.modality == "sar"
    magnitudes = drawn.type[0] == "c" and drawn.modality == "optical"
    return (bands or colours or magnitudes) and seen is None or indices


def answered(drawn, answers):
    """Writes the pixels that are no fault beside the file."""
    results = []
    for index, (form, pixels) in enumerate(answers):
        name = f"{drawn.path}.{index}.{form}"
        np.ascontiguousarray(pixels).tofile(name)
        results.append({"file": os.path.basename(name), "form": form})
    height, width = answers[0][1].shape[:2]
    right = {"width": width, "height": height, "results": results}
    if drawn.codec == "jpeg":
        right["tolerance"] = JPEG if width * height >= SMALL else SMALL_JPEG
    return right


def read_back(drawn):
    """The stored samples, which another program than the writer finds too; a file without such a one is not valid."""
    found, causes = [], []
    # GDAL's own libjpeg enlarges chroma by another method than libjpeg-turbo, up to 48 levels apart at an edge.
    for reader in (by_tifffile, by_rasterio):
        try:
            samples = reader(drawn)
        except Exception as error:
            causes.append(f"{reader.__name__}: {error!r}")
            continue
        if drawn.stored is None or same(samples, drawn.stored):
            return samples
        found.append(reader.__name__)
    if drawn.stored is not None and (seen := pillow(drawn, stored=True)) is not None:
        if same(seen, oriented(drawn.stored, drawn.orientation)):
            return drawn.stored
        found.append("pillow")
    what = (drawn.codec, drawn.type, drawn.photometric, drawn.extra, drawn.traits)
    raise ValueError(f"nobody reads it as it was written, neither {found} nor {causes}: {what}")


def same(a, b):
    return a.shape == b.shape and np.array_equal(a, b.astype(a.dtype), equal_nan=a.dtype.kind in "fc")


def by_rasterio(drawn):
    if drawn.container != "tiff":
        raise ValueError("not asked")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(drawn.path, driver="GTiff") as file:
            return np.moveaxis(file.read(), 0, 2)


def by_tifffile(drawn):
    if drawn.container != "tiff":
        raise ValueError("not asked")
    with tifffile.TiffFile(drawn.path) as file:
        page = file.pages[0]
        samples = page.asarray()
        if samples.ndim == 2:
            return samples[..., None].astype("u1") if samples.dtype == bool else samples[..., None]
        return np.moveaxis(samples, 0, 2) if page.planarconfig == 2 and page.samplesperpixel > 1 else samples


def pillow(drawn, stored=False):
    """As the reference opens it, or None where it cannot."""
    try:
        # Of bytes: a path of one uncompressed strip is mapped with its sides swapped where Orientation is 5 to 8.
        with Image.open(io.BytesIO(pathlib.Path(drawn.path).read_bytes())) as image:
            if stored:
                pixels = np.asarray(image)
                return pixels[..., None] if pixels.ndim == 2 else pixels
            amplitudes = drawn.container == "tiff" and drawn.modality == "sar"
            if amplitudes or (drawn.modality == "sar" and image.mode.startswith("I;16")):
                pixels = np.asarray(image)
                return ("f32", pixels.astype("f4")) if pixels.ndim == 2 else None
            return "rgb", np.asarray(image.convert("RGB"))
    except Exception:
        return None


def why_pillow_is_wrong(drawn, stored):
    """What Pillow 11.3 reads as other pixels, as the stored samples show that two other programs find."""
    raw = drawn.codec == "none"
    if "sparse" in drawn.traits and raw:
        return "reads the head of the file where a tile is left out"
    if "planes" in drawn.traits and raw and bits(drawn.type) > 8:
        return "takes the low byte of one plane and the high byte of the next"
    if not raw and not drawn.little and drawn.type in ("i16", "i32", "f32"):
        return "swaps the bytes of what libtiff has swapped"
    if drawn.type == "u32" and stored.max(initial=0) >= 2**31:
        return "reads unsigned integers as signed"
    if drawn.type == "i8" and stored.min(initial=0) < 0:
        return "reads signed integers as unsigned"
    return None


def oriented(pixels, orientation):
    """TIFF's Orientation undone: the picture as it is to be seen."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def is_nodata(samples, text):
    """GDAL compares in the type of the samples, a limit of it being meant by its rounded digits."""
    if samples.dtype.kind == "c":
        return samples == 0
    if samples.dtype.kind in "ui":
        return samples == int(text)
    value = float(text)
    if np.isnan(value):
        return np.isnan(samples)
    limit = float(np.finfo(samples.dtype).max)
    return samples == samples.dtype.type(np.clip(value, -limit, limit))


def by_rule(drawn, stored):
    if drawn.modality == "sar" and drawn.container == "tiff":
        return [("f32", oriented(pixels, drawn.orientation)) for pixels in amplitudes(drawn, stored)]
    return [("rgb", oriented(pixels, drawn.orientation)) for pixels in colours(drawn, stored)]


def amplitudes(drawn, stored):
    band = stored[..., 0]
    if band.dtype.kind == "c":
        return [np.abs(band.astype("c16")).astype("f4")]
    if drawn.type[0] == "u" and bits(drawn.type) <= 8:
        top = 2 ** bits(drawn.type) - 1
        band = top - band if drawn.photometric == "miniswhite" else band
        # Pillow spreads two and four bits over 0..255, and leaves one bit as it is; the stretch makes one of both.
        ways = [1, 255] if top == 1 else [255 // top]
        return [(band * way).astype("f4") for way in ways]
    return [band.astype("f4")]


def colours(drawn, stored):
    """Every way to read it that is no fault, the likeliest first."""
    if drawn.photometric in ("minisblack", "miniswhite"):
        return [gray(drawn, stored[..., 0])]
    if drawn.photometric == "palette":
        return [(drawn.colormap[:, stored[..., 0]] >> 8).astype("u1").transpose(1, 2, 0)]
    if drawn.photometric == "cmyk":
        return [from_cmyk(eight_bits(stored[..., :4], drawn))]
    if stored.dtype.kind == "f":
        return [clipped(stored[..., :3])]
    pixels = eight_bits(stored[..., :3], drawn)
    if ASSOCIATED not in drawn.extra:
        return [pixels]
    whole = unmultiplied(pixels, eight_bits(stored[..., 3:4], drawn))
    common = drawn.type == "u8" and set(drawn.extra[1:]) <= {0} or drawn.type == "u16" and drawn.extra == (ASSOCIATED,)
    # Of other neighbours of an alpha Pillow has no opinion.
    return [whole] if common and drawn.extra[0] == ASSOCIATED else [pixels, whole]


def unmultiplied(pixels, alpha):
    """Pillow takes an alpha out that was multiplied in."""
    whole = np.minimum(pixels.astype("i4") * 255 // np.maximum(alpha, 1), 255)
    return np.where(alpha == 0, 0, np.where(alpha == 255, pixels, whole)).astype("u1")


def gray(drawn, band):
    if band.dtype.kind == "c":
        band = np.abs(band.astype("c16"))
    elif drawn.type[0] == "u" and bits(drawn.type) <= 8:
        top = 2 ** bits(drawn.type) - 1
        band = (top - band if drawn.photometric == "miniswhite" else band) * np.uint8(255 // top)
    return np.repeat(clipped(band)[..., None], 3, 2)


def clipped(band):
    if band.dtype.kind == "f":
        band = np.nan_to_num(band.astype("f8"), nan=0.0, posinf=255.0, neginf=0.0)
    return np.clip(band, 0, 255).astype("u1")


def eight_bits(samples, drawn):
    """Colour keeps its high byte."""
    width = bits(drawn.type)
    if drawn.type[0] == "i":
        samples = np.maximum(samples, 0)
    return (samples >> max(width - 8, 0)).astype("u1")


def from_cmyk(ink):
    """Pillow's: (255 - k) less its share of the ink, rounded."""
    ink = ink.astype("i4")
    white = 255 - ink[..., 3:4]
    product = ink[..., :3] * white + 128
    return np.clip(white - ((product >> 8) + product >> 8), 0, 255).astype("u1")
