"""Records `denoise.safetensors`: SAR chips as MOS prepares them (arXiv 2512.03404; its code at 98204db), in numpy.

Written from a description of the authors' program, none of whose text is here: the 5th percentile becomes 0, the maximum
255, truncated to bytes. The percentile is taken in f64, everything else in f32.

    python tests/golden/denoise.py          # numpy 2.4.6, Pillow 11.3.0, safetensors 0.7.0
"""

from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

HERE = Path(__file__).parent


def denoised(pixels):
    low = np.float32(np.percentile(pixels.astype(np.float64), 5))
    high = pixels.max()
    stretched = np.float32(255) * (pixels - low) / (high - low + np.float32(1e-8))
    return np.clip(stretched, 0, 255).astype(np.uint8)


def main():
    recorded = {}
    for name in ("0003_c_25x110_SAR.tif", "0004_d_31x61_SAR.tif", "0007_g_1x1_SAR.tif"):
        recorded[name] = denoised(np.asarray(Image.open(HERE / "images" / name), dtype=np.float32))
    save_file(recorded, HERE / "denoise.safetensors")


if __name__ == "__main__":
    main()
