"""Valid TIFF files as scientific programs write them: tifffile and imagecodecs."""

import numpy as np
import tifffile

from samples import UNSPECIFIED, Drawn, bits, chance, finite, pick, size, smooth, values
from tags import LOSSY, OPTIONAL_CODECS, OPTIONAL_TYPES, draw_nodata, filler, modality, put_nodata

CODES = {
    "none": 1,
    "lzw": 5,
    "deflate": 8,
    "deflate_old": 32946,
    "packbits": 32773,
    "zstd": 50000,
    "jpeg": 7,
    "lzma": 34925,
    "webp": 50001,
    "lerc": 34887,
    "jpeg2000": 34712,
    "jpegxl": 50002,
    "png": 34933,
}
PREDICTABLE = {"lzw", "deflate", "deflate_old", "zstd", "lzma"}
NODATA = 42113


def write(rng, path):
    kind = pick(rng, {"gray": 50, "gray+": 8, "rgb": 22, "rgb+": 12, "palette": 4, "cmyk": 4})
    extra = ()
    if kind in ("gray", "gray+"):
        photometric = "miniswhite" if chance(rng, 0.15) else "minisblack"
        weights = {"u8": 20, "u16": 20, "i16": 10, "u32": 5, "i32": 5, "f32": 18, "f16": 5, "f64": 5, "i8": 3, "c64": 5}
        weights |= {"c128": 1, "u64": 1, "i64": 1, "u1": 3, "u10": 1, "u12": 3, "u14": 1} if kind == "gray" else {}
        colours = 1
    elif kind in ("rgb", "rgb+"):
        photometric, colours, weights = "rgb", 3, {"u8": 60, "u16": 30, "f32": 4, "i16": 3, "u32": 2, "u12": 1}
    elif kind == "palette":
        photometric, colours, weights = "palette", 1, {"u8": 1}
    else:
        photometric, colours, weights = "cmyk", 4, {"u8": 3, "u16": 1}
    if kind.endswith("+"):
        extra = tuple(int(value) for value in rng.choice([0, 0, 1, 2], int(rng.integers(1, 3))))
    elif kind == "cmyk" and chance(rng, 0.2):
        extra = (UNSPECIFIED,)
    type = pick(rng, weights)
    count = colours + len(extra)
    codec = draw_codec(rng, type, count, photometric)
    if type in ("u10", "u12", "u14"):
        codec = "none"
    height, width = size(rng)
    shape = (height, width, count)
    samples = smooth(rng, *shape) if codec in LOSSY else values(rng, type, shape)
    samples = finite(samples) if codec == "lerc" else samples
    if codec in LOSSY:
        samples = np.floor(samples * 255 + 0.5).astype("u1")
    drawn = Drawn(path, modality(rng, count, photometric), "tiff", codec, type, samples, photometric, extra)
    options = tifffile_options(rng, drawn)
    # tifffile packs integers in one byte order, and marks them with the other too.
    big, little = chance(rng, 0.25), chance(rng, 0.7) or type in ("u10", "u12", "u14")
    little = little or codec == "lerc"
    drawn.little = little
    drawn.traits += ["bigtiff"] * big + ["little" if little else "big-endian"]
    with tifffile.TiffWriter(path, bigtiff=big, byteorder="<" if little else ">") as tif:
        tif.write(tifffile_data(rng, drawn, options), **options)
        for _ in range(int(rng.integers(1, 3)) if chance(rng, 0.15) else 0):
            drawn.traits.append("pages")
            small = np.zeros((max(height // 2, 1), max(width // 2, 1)), "u1")
            tif.write(small, photometric="minisblack", metadata=None, subfiletype=int(rng.choice([0, 1])))
    if not big and little and options.get("rowsperstrip") == height and count == 1 and chance(rng, 0.4):
        # libtiff's own default: all rows in one strip, however many there are.
        drawn.traits.append("rows without end")
        with tifffile.TiffFile(path, mode="r+") as tif:
            tif.pages[0].tags["RowsPerStrip"].overwrite(2**32 - 1, dtype="I")
    if codec in OPTIONAL_CODECS or type in OPTIONAL_TYPES:
        drawn.must = False
    if codec in LOSSY:
        drawn.stored = None
    return drawn


def tifffile_options(rng, drawn):
    height, width, count = drawn.stored.shape
    tags = []
    options = {"metadata": None, "extratags": tags, "software": False}
    names = {"cmyk": "separated"}
    options["photometric"] = names.get(drawn.photometric, drawn.photometric)
    if drawn.extra:
        options["extrasamples"] = drawn.extra
    planar = (
        "separate"
        if count > 1
        and drawn.type != "u12"
        and drawn.codec not in ("webp", "jpeg2000", "png", "jpegxl", "lerc")
        and chance(rng, 0.3)
        else "contig"
    )
    if count > 1:
        options["planarconfig"] = planar
        drawn.traits += ["planes"] * (planar == "separate")
    if drawn.codec != "none":
        options["compression"] = CODES[drawn.codec]
    if drawn.codec == "jpeg":
        options["compressionargs"] = {"level": int(rng.integers(60, 98))}
        if count == 3 and planar == "contig" and chance(rng, 0.7):
            options["photometric"] = "ycbcr"
            options["subsampling"] = [(1, 1), (2, 1), (2, 2)][int(rng.integers(3))]
            drawn.traits.append(f"ycbcr {options['subsampling']}")
    elif drawn.codec == "webp":
        options["compressionargs"] = {"lossless": True, "level": 80, "method": 1}
    elif drawn.codec == "jpeg2000":
        options["compressionargs"] = {"level": 0, "reversible": True}
    elif drawn.codec == "jpegxl":
        options["compressionargs"] = {"lossless": True, "effort": 1}
    predictor = draw_predictor(rng, drawn.codec, drawn.type)
    if predictor != 1:
        options["predictor"] = predictor
        drawn.traits.append(f"predictor {predictor}")
    if drawn.type == "u1":
        drawn.traits.append("bilevel")
    elif drawn.type in ("u10", "u12", "u14"):
        options["bitspersample"] = bits(drawn.type)
    if drawn.type not in ("u10", "u12", "u14") and chance(rng, 0.45):
        # A codec that counts pixels by its own header is written by tile as tools do: 16, 32, .. 256.
        options["tile"] = tuple(
            int(side) for side in rng.choice([16, 32, 48, 64, 128, 256], 2, p=[0.3, 0.2, 0.1, 0.2, 0.15, 0.05])
        )
        drawn.traits.append("tiles {}x{}".format(*options["tile"]))
    else:
        rows = int(rng.choice([1, 3, 7, 8, 16, 64, height]))
        if drawn.codec == "jpeg":
            rows = max(8, rows // 16 * 16) if "ycbcr (2, 2)" not in drawn.traits else max(16, rows // 16 * 16)
        options["rowsperstrip"] = min(rows, height) if drawn.codec != "jpeg" else rows
        drawn.traits.append(f"strips of {options['rowsperstrip']}")
    if chance(rng, 0.25):
        drawn.orientation = int(rng.integers(1, 9))
        tags.append((274, "H", 1, drawn.orientation, True))
        drawn.traits.append(f"orientation {drawn.orientation}")
    if drawn.photometric == "palette":
        drawn.colormap = rng.integers(0, 65536, (3, 256)).astype("u2")
        options["colormap"] = drawn.colormap
    if (
        chance(rng, 0.2)
        and drawn.codec not in LOSSY
        and drawn.codec != "lerc"
        and drawn.photometric != "miniswhite"
        and bits(drawn.type) >= 8
    ):
        drawn.nodata = draw_nodata(rng, drawn.stored, bits(drawn.type))
        put_nodata(rng, drawn.stored, drawn.nodata)
        tags.append((NODATA, "s", 0, drawn.nodata, True))
        drawn.traits.append(f"nodata {drawn.nodata}")
    if chance(rng, 0.25):
        tags += georeference(rng)
        drawn.traits.append("georeferenced")
    return options


def tifffile_data(rng, drawn, options):
    """What `write` takes: the pixels as they are, or tile by tile with some left out."""
    data = drawn.stored
    order = "<" if drawn.little else ">"
    if drawn.type == "u1":
        data = data.astype(bool)
    tile, planar = options.get("tile"), options.get("planarconfig") == "separate"
    sparse = (
        tile
        and drawn.codec not in ("jpeg", "lerc")
        and drawn.type != "u1"
        and drawn.photometric not in ("miniswhite", "palette")
        and chance(rng, 0.3)
    )
    if not sparse:
        return np.moveaxis(data, 2, 0) if planar else data if data.shape[2] > 1 else data[..., 0]
    filling = filler(drawn.nodata, data.dtype)
    planes = [data[..., s : s + 1] for s in range(data.shape[2])] if planar else [data]
    height, width = data.shape[:2]
    tiles, hit = [], 0
    for plane in planes:
        for y in range(0, height, tile[0]):
            for x in range(0, width, tile[1]):
                part = plane[y : y + tile[0], x : x + tile[1]]
                # tifffile tells the type by the first one.
                if tiles and chance(rng, 0.3):
                    part[...] = filling
                    tiles.append(None)
                    hit += 1
                    continue
                whole = np.zeros((*tile, part.shape[2]), data.dtype.newbyteorder(order))
                whole[: part.shape[0], : part.shape[1]] = part
                tiles.append(whole if whole.shape[2] > 1 else whole[..., 0])
    count = data.shape[2]
    options["shape"] = (count, height, width) if planar else (height, width, count) if count > 1 else (height, width)
    options["dtype"] = data.dtype.newbyteorder(order)
    if hit:
        drawn.traits.append("sparse")
    return iter(tiles)


def draw_codec(rng, type, samples, photometric):
    weights = {"none": 20, "lzw": 18, "deflate": 14, "deflate_old": 5, "packbits": 9, "zstd": 13, "lzma": 2}
    if type == "u8" and photometric != "palette":
        weights |= {"jpeg2000": 1, "png": 1} if photometric != "cmyk" and samples in (1, 3) else {}
        if photometric in ("minisblack", "rgb") and samples in (1, 3):
            weights["jpeg"] = 20
            weights["jpegxl"] = 1
        if photometric == "rgb" and samples in (3, 4):
            weights["webp"] = 4
    if type in ("u8", "u16", "u32", "i32", "f32", "f64") and photometric == "minisblack":
        weights["lerc"] = 4
    return pick(rng, weights)


def draw_predictor(rng, codec, type):
    if codec not in PREDICTABLE or bits(type) % 8 or type[0] == "c" or chance(rng, 0.4):
        return 1
    return 3 if type in ("f16", "f32", "f64") else 2 if type[0] in "ui" else 1


def georeference(rng):
    """Tags of a scene in UTM, or in degrees."""
    scale = float(rng.choice([0.3, 0.5, 0.75, 1.0, 3.125, 10.0]))
    if chance(rng, 0.3):
        scale, model, key, code = scale / 111320, 2, 2048, 4326
    else:
        model, key, code = 1, 3072, 32633
    keys = (1, 1, 0, 3, 1024, 0, 1, model, 1025, 0, 1, 1, key, 0, 1, code)
    return [
        (33550, "d", 3, (scale, scale, 0.0), True),
        (33922, "d", 6, (0.0, 0.0, 0.0, 12.5, 54.25, 0.0), True),
        (34735, "H", len(keys), keys, True),
    ]
