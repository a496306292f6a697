"""Valid TIFF files as GDAL writes them, through rasterio."""

import os

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.enums import Resampling

from samples import ASSOCIATED, UNASSOCIATED, UNSPECIFIED, Drawn, bits, chance, finite, pick, size, smooth, values
from tags import LOSSY, OPTIONAL_CODECS, OPTIONAL_TYPES, draw_nodata, filler, modality, put_nodata

GDAL_CODECS = {
    "none": "NONE",
    "lzw": "LZW",
    "deflate": "DEFLATE",
    "packbits": "PACKBITS",
    "jpeg": "JPEG",
    "lzma": "LZMA",
    "lerc": "LERC",
    "lerc_deflate": "LERC_DEFLATE",
    "lerc_zstd": "LERC_ZSTD",
    "zstd": "ZSTD",
    "webp": "WEBP",
    "ccitt3": "CCITTFAX3",
    "ccitt4": "CCITTFAX4",
}


def write(rng, path):
    type = pick(rng, {
        "u8": 30, "u16": 22, "i16": 8, "u32": 4, "i32": 4, "f32": 14, "f64": 3, "f16": 4, "ci16": 6, "ci32": 1,
        "c64": 3, "u1": 4, "u2": 2, "u4": 2, "u10": 1, "u12": 4, "u14": 1, "i8": 2,
    })  # fmt: skip
    count = pick(rng, {1: 6, 3: 3, 4: 2, 2: 0.5, 5: 0.5}) if type in ("u8", "u16", "f32", "i16") else 1
    colours = count >= 3 and (type in ("u8", "u16") or chance(rng, 0.5))
    extra = (UNSPECIFIED,) * (count - (3 if colours else 1))
    palette = type == "u8" and count == 1 and chance(rng, 0.12)
    codec = gdal_codec(rng, type, count, colours, palette)
    height, width = size(rng)
    if codec == "webp":
        height, width = max(height, 8), max(width, 8)
    samples = values(rng, type, (height, width, count))
    if codec in LOSSY:
        samples = np.floor(smooth(rng, height, width, count) * 255 + 0.5).astype("u1")
    elif "lerc" in codec:
        samples = finite(samples)
    white = type in ("u8", "u16", "u1") and count == 1 and not palette and codec != "jpeg" and chance(rng, 0.12)
    photometric = "palette" if palette else "rgb" if colours else "miniswhite" if white else "minisblack"
    drawn = Drawn(path, modality(rng, count, photometric), "tiff", codec, type, samples, photometric, extra)
    options = gdal_options(rng, drawn)
    write_pixels(rng, drawn, options)
    add_pages(rng, drawn)
    if codec in OPTIONAL_CODECS or type in OPTIONAL_TYPES:
        drawn.must = False
    if codec in LOSSY:
        drawn.stored = None
    return drawn


def gdal_codec(rng, type, count, colours, palette):
    weights = {"none": 20, "lzw": 18, "deflate": 18, "packbits": 8, "zstd": 12, "lzma": 2}
    if type == "u8" and not palette:
        weights["jpeg"] = 18 if count in (1, 3) else 0
        weights["webp"] = 3 if colours and count in (3, 4) else 0
    if type in ("u8", "u16", "i16", "u32", "i32", "f32", "f64") and not palette:
        weights |= {"lerc": 1.5, "lerc_deflate": 1, "lerc_zstd": 1}
    if type == "u1":
        weights |= {"ccitt3": 8, "ccitt4": 12}
    return pick(rng, weights)


def gdal_options(rng, drawn):
    height, width, count = drawn.stored.shape
    options = {"COMPRESS": GDAL_CODECS[drawn.codec], "PHOTOMETRIC": drawn.photometric.upper(), "NUM_THREADS": 1}
    if drawn.photometric == "palette":
        del options["PHOTOMETRIC"]
    if drawn.type in ("u1", "u2", "u4", "u10", "u12", "u14"):
        options["NBITS"] = bits(drawn.type)
    elif drawn.type == "f16":
        options["NBITS"] = bits(drawn.type)
    if count > 1 and drawn.codec != "webp":
        options["INTERLEAVE"] = "BAND" if chance(rng, 0.4) else "PIXEL"
    elif count > 1:
        options["INTERLEAVE"] = "PIXEL"
    drawn.traits += ["planes"] * (options.get("INTERLEAVE") == "BAND")
    if drawn.codec == "jpeg":
        options["JPEG_QUALITY"] = int(rng.integers(60, 98))
        if count == 3 and options["INTERLEAVE"] == "PIXEL" and chance(rng, 0.7):
            options["PHOTOMETRIC"] = "YCBCR"
            drawn.traits.append("ycbcr")
    elif drawn.codec == "webp":
        options["WEBP_LOSSLESS"] = "YES"
    if drawn.codec in ("lzw", "deflate", "zstd"):
        floats = drawn.type in ("f16", "f32", "f64")
        whole = drawn.type in ("u8", "u16", "i16", "u32", "i32")
        if (floats or whole) and chance(rng, 0.6):
            options["PREDICTOR"] = 3 if floats else 2
            drawn.traits.append(f"predictor {options['PREDICTOR']}")
    if chance(rng, 0.5):
        options |= {
            "TILED": "YES",
            "BLOCKXSIZE": int(rng.choice([16, 32, 64, 128, 256])),
            "BLOCKYSIZE": int(rng.choice([16, 32, 64, 128])),
        }
        drawn.traits.append(f"tiles {options['BLOCKYSIZE']}x{options['BLOCKXSIZE']}")
    else:
        rows = int(rng.choice([1, 5, 8, 16, 33, height]))
        options["BLOCKYSIZE"] = rows if drawn.codec != "jpeg" else max(16, rows // 16 * 16)
        drawn.traits.append(f"strips of {options['BLOCKYSIZE']}")
    if chance(rng, 0.25):
        options["BIGTIFF"] = "YES"
        drawn.traits.append("bigtiff")
    # GDAL 3.10 does not read its own LERC in this order of bytes.
    if "lerc" not in drawn.codec and chance(rng, 0.2):
        options["ENDIANNESS"] = "BIG"
        drawn.little = False
        drawn.traits.append("big-endian")
    if drawn.photometric == "rgb" and drawn.extra and chance(rng, 0.5):
        options["ALPHA"] = "YES" if chance(rng, 0.6) else "PREMULTIPLIED"
        first = UNASSOCIATED if options["ALPHA"] == "YES" else ASSOCIATED
        drawn.extra = (first, *drawn.extra[1:])
        drawn.traits.append(f"alpha {first}")
    return options


def write_pixels(rng, drawn, options):
    samples = drawn.stored
    height, width, count = samples.shape
    dtypes = {
        "u1": "uint8",
        "u2": "uint8",
        "u4": "uint8",
        "u10": "uint16",
        "u12": "uint16",
        "u14": "uint16",
        "f16": "float32",
        "ci16": "complex_int16",
        "ci32": "complex64",
    }
    dtype = dtypes.get(drawn.type, samples.dtype.name)
    if drawn.type == "ci32":  # rasterio has no name for it: complex numbers of 32-bit floats
        drawn.type = "c64"
        drawn.stored = samples = samples.astype("c8")
    profile = {"driver": "GTiff", "width": width, "height": height, "count": count, "dtype": dtype} | options
    if chance(rng, 0.35):
        scale = float(rng.choice([0.5, 0.75, 1.0, 10.0]))
        profile |= {"crs": "EPSG:32633", "transform": rasterio.Affine(scale, 0, 500000, 0, -scale, 6e6)}
        drawn.traits.append("georeferenced")
    nodata = bits(drawn.type) >= 8 and drawn.codec not in LOSSY and drawn.photometric not in ("miniswhite", "palette")
    if nodata and "lerc" not in drawn.codec and samples.dtype.kind != "c" and chance(rng, 0.3):
        drawn.nodata = draw_nodata(rng, samples, bits(drawn.type))
        put_nodata(rng, samples, drawn.nodata)
        profile["nodata"] = float(drawn.nodata) if samples.dtype.kind == "f" else int(drawn.nodata)
        drawn.traits.append(f"nodata {drawn.nodata}")
    sparse = drawn.codec != "jpeg" and drawn.photometric not in ("miniswhite", "palette") and chance(rng, 0.3)
    profile["SPARSE_OK"] = "TRUE" if sparse else "FALSE"
    with rasterio.open(drawn.path, "w", **profile) as out:
        if drawn.photometric == "palette":
            colours = rng.integers(0, 256, (256, 3))
            out.write_colormap(1, {index: (*map(int, colour), 255) for index, colour in enumerate(colours)})
            drawn.colormap = (colours.T * 257).astype("u2")
        blocks = [window for _, window in out.block_windows(1)]
        left_out = [sparse and chance(rng, 0.35) for _ in blocks]
        if sparse and any(left_out) and not all(left_out):
            drawn.traits.append("sparse")
            for window, absent in zip(blocks, left_out, strict=True):
                rows, columns = window.toslices()
                if absent:
                    samples[rows, columns] = filler(drawn.nodata, samples.dtype)
                else:
                    out.write(np.moveaxis(samples[rows, columns], 2, 0).astype(held(dtype)), window=window)
        else:
            out.write(np.moveaxis(samples, 2, 0).astype(held(dtype)))


def add_pages(rng, drawn):
    """What GDAL puts beside an image: smaller copies, a mask, or the order of pages of a Cloud Optimized GeoTIFF."""
    height, width, _ = drawn.stored.shape
    plain = bits(drawn.type) in (8, 16, 32) and drawn.type in ("u8", "u16", "i16", "u32", "i32", "f32")
    if not plain or min(height, width) < 9:
        return
    # The driver of COG calls every alpha unassociated.
    kept = ASSOCIATED not in drawn.extra and drawn.photometric in ("rgb", "minisblack")
    kind = pick(rng, {"none": 78, "overviews": 10, "mask": 5, "cog": 7})
    if kind == "overviews":
        with rasterio.open(drawn.path, "r+") as out:
            out.build_overviews([2, 4], Resampling.nearest)
    elif kind == "mask" and drawn.nodata is None and drawn.codec != "jpeg":
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(drawn.path, "r+") as out:
            out.write_mask(rng.random((height, width)) < 0.5)
    elif kind == "cog" and kept and drawn.codec in ("none", "lzw", "deflate", "zstd"):
        options = {"COMPRESS": GDAL_CODECS[drawn.codec], "BLOCKSIZE": 128, "SPARSE_OK": "TRUE", "NUM_THREADS": 1}
        predictor = "NO" if drawn.codec == "none" else str(rng.choice(["NO", "YES"]))
        copy = drawn.path + ".cog"
        rasterio.shutil.copy(drawn.path, copy, driver="COG", PREDICTOR=predictor, **options)
        os.replace(copy, drawn.path)
        drawn.little = True
        drawn.traits.append(f"predictor {predictor}")
    else:
        return
    drawn.traits.append(kind)


def held(dtype):
    return "complex64" if dtype == "complex_int16" else dtype
