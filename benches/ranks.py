#!/usr/bin/env python3
"""Trains in two processes of one thread and in one of two threads, in turn, and prints how fast each is.

Both take the same batches of synthetic ships from scratch; the first epoch is not counted. Ratios are medians over the
pairs of runs, so that a drifting machine slows both. The all-reduce is the time in which rank 0 averages gradients.
Usage: make bench-ranks, or benches/ranks.py [--rounds 3] [--preset vit_base] [--processes 2]
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
EPOCH = re.compile(r"^epoch (\d+): .*?([\d.]+) images/s(?:, all-reduce ([\d.]+) %)?$", re.MULTILINE)
CONFIG = """
seed = 5
objective = "fine_tune"
data = {{ root = "{root}", loader_threads = 1 }}
model = {{ preset = "{preset}", size_token = true, drop_path = 0.1 }}
start = {{ from = "scratch" }}
batch = {{ images = {images}, images_per_identity = 4 }}
optimizer = {{ kind = "sgd", momentum = 0.9, weight_decay = 1e-4 }}
schedule = {{ base_rate = 1e-3, warm_up_epochs = 1, epochs = {epochs} }}
checkpoint = {{ epochs = {epochs}, keep = 1 }}
"""


def main():
    arguments = parse_arguments()
    several, alone = (arguments.processes, 1), (1, arguments.processes)
    pairs = []
    with tempfile.TemporaryDirectory(prefix="shipreid-ranks-") as folder:
        config = prepare(arguments, Path(folder))
        for number in range(arguments.rounds):
            # Whoever goes first may find the caches of the other.
            order = [several, alone] if number % 2 == 0 else [alone, several]
            done = {shape: train(arguments, config, Path(folder) / f"{number}-{shape[0]}", *shape) for shape in order}
            pairs.append((done[several], done[alone]))
            print(*(f"{speed:.2f} images/s" for speed, _ in pairs[-1]), file=sys.stderr)
    report(arguments, pairs)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/shipreid")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--preset", default="vit_base")
    parser.add_argument("--images", type=int, default=8, help="in a batch of all processes together")
    parser.add_argument("--epochs", type=int, default=3, help="of which the first is not counted")
    return parser.parse_args()


def prepare(arguments, folder):
    """Images of as many ships as four batches need, and the configuration; its path."""
    synth = ["synth", "--ids", str(2 * arguments.images), "--pairs", "1", "--views", "2", "--out", str(folder)]
    subprocess.run([arguments.binary, *synth], check=True, capture_output=True)
    config = folder / "train.toml"
    values = {name: getattr(arguments, name) for name in ("preset", "images", "epochs")}
    config.write_text(CONFIG.format(root=folder / "synthetic_hoss", **values))
    return config


def train(arguments, config, out, processes, threads):
    """Images per second of all processes, and the share of the time in which rank 0 averages gradients."""
    command = [arguments.binary, "train", "--local", config, "--out", out, "--processes", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    epochs = [(float(speed), float(share or 0)) for number, speed, share in EPOCH.findall(said) if number != "1"]
    # Every epoch has as many images: the harmonic mean is that of all steps.
    speeds, shares = zip(*epochs)
    return statistics.harmonic_mean(speeds), statistics.mean(shares)


def report(arguments, pairs):
    count = arguments.processes
    several, alone = zip(*pairs)
    middle = lambda runs, what: statistics.median(run[what] for run in runs)
    ratios = [mine[0] / other[0] for mine, other in pairs]
    each = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    print(f"{processor()}; {arguments.preset}, batches of {arguments.images} images in all, f32\n")
    print("| | images/s | all-reduce, share of the time |\n|---|---|---|")
    print(f"| {count} processes, 1 thread each | {middle(several, 0):.2f} | {middle(several, 1):.2f} % |")
    print(f"| 1 process, {count} threads | {middle(alone, 0):.2f} | - |")
    print(f"| the first over the second (pairs) | **{statistics.median(ratios):.3f}** ({each}) | |")


def processor():
    names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return names[0] if names else "an unknown processor"


if __name__ == "__main__":
    main()
