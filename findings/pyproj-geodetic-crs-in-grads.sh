#!/bin/sh
# Ground lengths by pyproj: the geodetic coordinates of a projected system need not be degrees.
#
# One would guess: inverting a projection with Transformer.from_crs(crs, crs.geodetic_crs) gives longitudes and
# latitudes in degrees, which Geod.inv takes.
# What happens: the geodetic system of the French NTF grids (EPSG:27571 to 27574 and others), NTF (Paris), counts in
# grads, 400 to a turn, from Paris. The numbers look like degrees, nothing warns, and every length comes out 10 % too
# long from north to south (less so from west to east, since the wrong latitude shortens it).
# Why it matters here: src/chip/georeference was compared with pyproj over all projected systems of EPSG; 19 of them
# seemed to be 10 % wrong, until the comparison scaled by crs.geodetic_crs.axis_info[0].unit_conversion_factor.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyproj==3.7.2
"$folder/venv/bin/python" - <<'PYTHON'
import math
import sys

import pyproj

print("pyproj", pyproj.__version__, "PROJ", pyproj.proj_version_str)
crs = pyproj.CRS.from_epsg(27572)
inverse = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
geod = pyproj.Geod(ellps="WGS84")
x, y = 600_000, 2_400_000
south, north = inverse.transform(x, y - 500), inverse.transform(x, y + 500)
factor = crs.geodetic_crs.axis_info[0].unit_conversion_factor / math.radians(1)
guessed = geod.inv(*south, *north)[2]
scaled = geod.inv(*(factor * number for number in south + north))[2]
print(f"{crs.name}: unit of {crs.geodetic_crs.name} is {crs.geodetic_crs.axis_info[0].unit_name}, {factor:.3f} degrees")
print(f"1000 m from south to north: {guessed:.1f} m as if in degrees, {scaled:.1f} m scaled")
as_seen = abs(factor - 0.9) < 1e-9 and 1100 < guessed < 1120 and 998 < scaled < 1002
sys.exit(0 if as_seen else "another behaviour than was seen")
PYTHON
