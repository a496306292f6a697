"""Records `jitter.safetensors`: pictures after changes of brightness, contrast and saturation, as Pillow makes them.

torchvision's ColorJitter applies these enhancements of Pillow in an order that it draws; here order and factors are given.

    python tests/golden/jitter.py          # numpy 2.4.6, Pillow 11.3.0, safetensors 0.7.0
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance
from safetensors.numpy import save_file

HERE = Path(__file__).parent
SIZE = (16, 24)
ENHANCEMENTS = {"b": ImageEnhance.Brightness, "c": ImageEnhance.Contrast, "s": ImageEnhance.Color}
# Order and factors of brightness, contrast, saturation.
CASES = [
    ("b", 0.8, 1.0, 1.0),
    ("b", 1.2, 1.0, 1.0),
    ("c", 1.0, 0.8125, 1.0),
    ("c", 1.0, 1.1875, 1.0),
    ("s", 1.0, 1.0, 0.8),
    ("s", 1.0, 1.0, 1.2),
    ("bcs", 1.17, 0.83, 1.05),
    ("scb", 0.93, 1.2, 0.81),
    ("csb", 1.2, 1.2, 1.2),
]


def main():
    whole = Image.open(HERE / "images" / "0001_a_33x97_RGB.tif").convert("RGB")
    picture = whole.resize(SIZE, Image.Resampling.BICUBIC)
    recorded = {"picture": np.asarray(picture), "count": np.array(len(CASES))}
    for number, (order, *factors) in enumerate(CASES):
        changed = picture
        by_name = dict(zip("bcs", factors))
        for name in order:
            changed = ENHANCEMENTS[name](changed).enhance(by_name[name])
        recorded[f"{number}.order"] = np.array(["bcs".index(name) for name in order])
        recorded[f"{number}.factors"] = np.array(factors)
        recorded[f"{number}.changed"] = np.asarray(changed)
    save_file(recorded, HERE / "jitter.safetensors")


if __name__ == "__main__":
    main()
