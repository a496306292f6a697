"""Valid PNG and JPEG files: colour types, depths and orders of rows; scans, tables and segments of cameras."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
from PIL import Image

from samples import Drawn, chance, pick, size, smooth, values

# Colour types of PNG with the depths that each has.
GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
SAMPLES = {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGBA: 4}
# Adam7: where each pass starts and how far its pixels lie apart.
PASSES = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def draw(rng, stem):
    return png(rng, stem + ".png") if chance(rng, 0.55) else jpeg(rng, stem + ".jpg")


def png(rng, path):
    colour, depth = pick(rng, {
        (GRAY, 1): 1, (GRAY, 2): 1, (GRAY, 4): 1, (GRAY, 8): 3, (GRAY, 16): 5, (RGB, 8): 4, (RGB, 16): 3,
        (PALETTE, 1): 1, (PALETTE, 2): 1, (PALETTE, 4): 1, (PALETTE, 8): 2, (GRAY_ALPHA, 8): 2, (GRAY_ALPHA, 16): 2,
        (RGBA, 8): 3, (RGBA, 16): 2,
    })  # fmt: skip
    height, width = size(rng)
    samples = values(rng, f"u{depth}", (height, width, SAMPLES[colour]))
    names = {GRAY: "gray", RGB: "rgb", PALETTE: "palette", GRAY_ALPHA: "gray+alpha", RGBA: "rgb+alpha"}
    modality = "sar" if colour == GRAY and chance(rng, 0.4) or chance(rng, 0.03) else "optical"
    drawn = Drawn(path, modality, "png", names[colour], f"u{depth}", samples, names[colour])
    interlaced = chance(rng, 0.3)
    drawn.traits += ["interlaced"] * interlaced
    before, colours = chunks(rng, colour, depth, drawn)
    packed = zlib.compress(filtered(rng, samples, depth, interlaced), int(rng.integers(0, 10)))
    parts = sorted({0, len(packed), *(int(cut) for cut in rng.integers(0, len(packed) + 1, int(rng.integers(0, 4))))})
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + colours)
        for start, end in zip(parts, parts[1:], strict=False):
            file.write(chunk(b"IDAT", packed[start:end]))
        file.write(chunk(b"tEXt", b"Comment\0drawn") * chance(rng, 0.2) + chunk(b"IEND", b""))
        if chance(rng, 0.05):
            drawn.traits.append("trailing bytes")
            file.write(rng.bytes(20))
    return drawn


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def chunks(rng, colour, depth, drawn):
    """What may stand before the pixels and changes none of them; the palette and what is transparent."""
    top = 2**depth - 1
    before, after = b"", b""
    if chance(rng, 0.25):
        drawn.traits.append("gAMA")
        before += chunk(b"gAMA", struct.pack(">I", int(rng.choice([45455, 100000, 22000]))))
    if chance(rng, 0.15):
        before += chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))
    if chance(rng, 0.15):
        drawn.traits.append("sRGB")
        before += chunk(b"sRGB", b"\0")
    elif chance(rng, 0.1):
        drawn.traits.append("iCCP")
        before += chunk(b"iCCP", b"profile\0\0" + zlib.compress(profile()))
    if chance(rng, 0.2):
        drawn.traits.append("sBIT")
        count = 3 if colour == PALETTE else SAMPLES[colour]
        before += chunk(
            b"sBIT", bytes([max(1, min(depth, 8 if colour == PALETTE else depth) - int(rng.integers(0, 2)))] * count)
        )
    if colour == PALETTE:
        drawn.colormap = rng.integers(0, 256, (top + 1, 3)).astype("u1")
        after += chunk(b"PLTE", drawn.colormap.tobytes())
    elif colour == RGB and chance(rng, 0.1):
        drawn.traits.append("suggested palette")
        after += chunk(b"PLTE", rng.bytes(3 * 16))
    if colour in (GRAY, RGB, PALETTE) and chance(rng, 0.3):
        drawn.traits.append("tRNS")
        if colour == PALETTE:
            after += chunk(b"tRNS", rng.bytes(int(rng.integers(1, top + 2))))
        else:
            count = SAMPLES[colour]
            after += chunk(b"tRNS", struct.pack(f">{count}H", *(int(value) for value in drawn.stored[0, 0])))
    if chance(rng, 0.1):
        shape = {PALETTE: b"\0", GRAY: b"\0\1", GRAY_ALPHA: b"\0\1"}.get(colour, b"\0\1" * 3)
        after += chunk(b"bKGD", shape)
    if chance(rng, 0.2):
        after += chunk(b"pHYs", struct.pack(">IIB", 2835, 2835, 1))
    if chance(rng, 0.1):
        drawn.traits.append("eXIf")
        after += chunk(b"eXIf", exif(int(rng.integers(1, 9)))[6:])
    return before, after


def profile():
    """A profile of a monitor, as Little CMS makes it."""
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exif(orientation):
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 274, 3, 1, orientation, 0, 0)


def filtered(rng, samples, depth, interlaced):
    """Rows with the filter in front of each, pass by pass."""
    if not interlaced:
        return rows(rng, samples, depth)
    passes = (samples[y::down, x::right] for y, x, down, right in PASSES)
    return b"".join(rows(rng, part, depth) for part in passes if part.size)


def rows(rng, samples, depth):
    height, width, count = samples.shape
    if depth == 16:
        lines = samples.astype(">u2").view("u1").reshape(height, -1)
    elif depth == 8:
        lines = samples.reshape(height, -1)
    else:
        bit = (samples.reshape(height, -1, 1) >> np.arange(depth - 1, -1, -1)) & 1
        lines = np.packbits(bit.reshape(height, -1).astype(bool), axis=1)
    step = max(count * depth // 8, 1)
    only = int(rng.integers(0, 5)) if chance(rng, 0.5) else None
    out, above = [], np.zeros(lines.shape[1], "i4")
    for line in lines.astype("i4"):
        kind = int(rng.integers(0, 5)) if only is None else only
        left, corner = shifted(line, step), shifted(above, step)
        guess = {0: 0, 1: left, 2: above, 3: (left + above) // 2, 4: paeth(left, above, corner)}[kind]
        out.append(bytes([kind]) + ((line - guess) & 255).astype("u1").tobytes())
        above = line
    return b"".join(out)


def shifted(line, step):
    return np.concatenate([np.zeros(min(step, len(line)), line.dtype), line[:-step]])


def paeth(left, above, corner):
    guess = left + above - corner
    far_left, far_above, far_corner = abs(guess - left), abs(guess - above), abs(guess - corner)
    return np.where(
        (far_left <= far_above) & (far_left <= far_corner), left, np.where(far_above <= far_corner, above, corner)
    )


def jpeg(rng, path):
    kind = pick(rng, {"gray": 3, "ycbcr": 8, "rgb": 1, "cmyk": 1.5})
    count = {"gray": 1, "cmyk": 4}.get(kind, 3)
    height, width = size(rng)
    pixels = np.floor(smooth(rng, height, width, count) * 255 + 0.5).astype("u1")
    drawn = Drawn(path, "sar" if chance(rng, 0.1) else "optical", "jpeg", "jpeg", kind, None, kind)
    # Four inks as camera and print programs write them are refused by some decoders, and may be.
    drawn.must = kind in ("gray", "ycbcr")
    coded = (
        by_turbo(rng, pixels, drawn)
        if kind in ("gray", "ycbcr") and chance(rng, 0.3)
        else by_pillow(rng, pixels, drawn)
    )
    if chance(rng, 0.25):
        drawn.traits.append("fill bytes")
        coded = with_fill_bytes(rng, coded)
    if chance(rng, 0.2):
        drawn.traits.append("trailing bytes")
        coded += rng.bytes(int(rng.integers(1, 300))) if chance(rng, 0.7) else bytes(64)
    with open(path, "wb") as file:
        file.write(coded)
    return drawn


def by_pillow(rng, pixels, drawn):
    modes = {"gray": "L", "ycbcr": "RGB", "rgb": "RGB", "cmyk": "CMYK"}
    image = Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[..., 0], modes[drawn.type])
    options = {"quality": int(rng.integers(50, 99)), "progressive": chance(rng, 0.35), "optimize": chance(rng, 0.3)}
    drawn.traits += ["progressive"] * options["progressive"]
    if drawn.type == "ycbcr":
        options["subsampling"] = str(rng.choice(["4:4:4", "4:2:2", "4:2:0"]))
        drawn.traits.append(options["subsampling"])
    options["keep_rgb"] = drawn.type == "rgb"
    if chance(rng, 0.3):
        options[str(rng.choice(["restart_marker_blocks", "restart_marker_rows"]))] = int(rng.integers(1, 6))
        drawn.traits.append("restarts")
    if chance(rng, 0.25):
        orientation = int(rng.integers(1, 9))
        options["exif"] = exif(orientation)
        drawn.traits.append(f"exif orientation {orientation}")
    if chance(rng, 0.15):
        options["comment"] = b"drawn"
    if chance(rng, 0.1):
        options["icc_profile"] = profile()
    coded = io.BytesIO()
    image.save(coded, "JPEG", **options)
    return coded.getvalue()


def by_turbo(rng, pixels, drawn):
    options = {"level": int(rng.integers(50, 99))}
    if drawn.type == "ycbcr":
        options["subsampling"] = ["444", "422", "420", "440", "411"][int(rng.integers(5))]
        drawn.traits.append(options["subsampling"])
    if chance(rng, 0.3):
        options["optimize"] = True
    plain = pixels if pixels.shape[2] > 1 else pixels[..., 0]
    return imagecodecs.jpeg8_encode(np.ascontiguousarray(plain), **options)


def with_fill_bytes(rng, coded):
    """FF may be repeated before any marker that stands between segments."""
    out, at = bytearray(coded[:2]), 2
    while coded[at + 1] != 0xDA:
        length = 2 + struct.unpack(">H", coded[at + 2 : at + 4])[0]
        out += b"\xff" * int(rng.integers(0, 4)) + coded[at : at + length]
        at += length
    return bytes(out + b"\xff" * int(rng.integers(0, 4)) + coded[at:])
