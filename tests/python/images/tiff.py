"""Valid TIFF files by three writers."""

import with_gdal
import with_pillow
import with_tifffile
from samples import pick

WRITERS = {"tifffile": with_tifffile, "gdal": with_gdal, "pillow": with_pillow}


def draw(rng, stem):
    writer = pick(rng, {"tifffile": 60, "gdal": 28, "pillow": 12})
    drawn = WRITERS[writer].write(rng, stem + ".tif")
    drawn.traits.insert(0, writer)
    return drawn
