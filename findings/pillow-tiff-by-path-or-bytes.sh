#!/bin/sh
# One would guess: an image that Pillow opens by its path and the same bytes opened from memory have the same pixels.
#
# What happens: an uncompressed TIFF of one strip whose tag Orientation swaps the sides (5 to 8) is right when opened
# from bytes, and scrambled when opened by its path, without an error or a warning. By path Pillow maps the file with
# the sides already swapped, so that rows are cut at the wrong length, and turns that. With a codec, or with several
# strips, both ways agree. Pillow 11.3.0 and 13.0.0 alike.
#
# Why it matters here: the reference program opens chips by path, so that for these files "as the reference reads it"
# is noise. The judge of random images (tests/python/images/oracle.py) therefore gives Pillow bytes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/try.py" <<'END'
import io
import sys

import numpy as np
import PIL
import tifffile
from PIL import Image

folder = sys.argv[1]
stored = np.arange(15 * 23, dtype="u1").reshape(15, 23)
seen = {5: stored.T, 6: stored[::-1].T, 7: stored[::-1, ::-1].T, 8: stored.T[::-1]}
print("Pillow", PIL.__version__, "tifffile", tifffile.__version__)
found = []
for layout, rows in ("one strip", 15), ("three strips", 5):
    for orientation, right in seen.items():
        path = f"{folder}/{orientation}.tif"
        tag = (274, "H", 1, orientation, True)
        tifffile.imwrite(path, stored, rowsperstrip=rows, metadata=None, extratags=[tag])
        by_path = np.asarray(Image.open(path))
        by_bytes = np.asarray(Image.open(io.BytesIO(open(path, "rb").read())))
        answers = [pixels.shape == right.shape and bool((pixels == right).all()) for pixels in (by_path, by_bytes)]
        print(f"{layout}, Orientation {orientation}: right by path {answers[0]}, from bytes {answers[1]}")
        found.append(answers == [layout != "one strip", True])
sys.exit(0 if all(found) else "the behaviour has changed")
END
for pillow in 11.3.0 13.0.0; do
    python3 -m venv "$folder/$pillow"
    "$folder/$pillow/bin/pip" install --quiet --disable-pip-version-check pillow==$pillow tifffile==2026.3.3 numpy==2.4.6
    "$folder/$pillow/bin/python" "$folder/try.py" "$folder"
done
