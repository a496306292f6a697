#!/bin/sh
# One would guess: whether a TIFF is compressed changes how large it is, not what numbers it holds.
#
# What happens: Pillow reads a big-endian TIFF of 16-bit signed, 32-bit signed or 32-bit float samples rightly when it
# is uncompressed, and with the bytes of every sample reversed when it is compressed (PackBits, LZW, deflate): 100.0
# becomes 7.2e-41. No error, no warning. libtiff hands over samples in the order of the machine, and Pillow swaps them
# once more; only for unsigned 16-bit samples it knows. Pillow 11.3.0 and 13.0.0 alike.
#
# Why it matters here: SAR amplitudes are floats or signed integers, ENDIANNESS=BIG is one creation option of GDAL,
# and a stretch over the maximum turns such an image black or white. "As Pillow reads it" cannot be the rule for these
# files.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/try.py" <<'END'
import sys
import warnings

import numpy as np
import PIL
import tifffile
from PIL import Image

warnings.simplefilter("ignore")
path = sys.argv[1] + "/amplitudes.tif"
print("Pillow", PIL.__version__, "tifffile", tifffile.__version__)
found = []
for type in "u2", "i2", "i4", "f4":
    stored = (np.arange(1, 21).reshape(4, 5) * 5).astype(type)
    for codec in None, "packbits", "lzw", "deflate":
        tifffile.imwrite(path, stored, byteorder=">", compression=codec, metadata=None)
        by_pillow, by_tifffile = np.asarray(Image.open(path)), tifffile.imread(path)
        right = [bool((pixels == stored).all()) for pixels in (by_pillow, by_tifffile)]
        last = f"{stored[-1, -1]} is read as {by_pillow[-1, -1]}"
        print(f"{stored.dtype}, {codec or 'uncompressed'}: right by Pillow {right[0]}, by tifffile {right[1]}; {last}")
        found.append(right == [codec is None or type == "u2", True])
sys.exit(0 if all(found) else "the behaviour has changed")
END
for pillow in 11.3.0 13.0.0; do
    python3 -m venv "$folder/$pillow"
    "$folder/$pillow/bin/pip" install --quiet --disable-pip-version-check pillow==$pillow tifffile==2026.3.3 \
        imagecodecs==2026.3.6 numpy==2.4.6
    "$folder/$pillow/bin/python" "$folder/try.py" "$folder"
done
