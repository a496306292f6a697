#!/usr/bin/env python3
"""Measures a training step beside the same step in PyTorch, and how fast batches are loaded; prints a table.

Both programs stay alive and take steps in turn, so that a drifting machine slows both; ratios are medians over the
pairs. Without a Python that has torch (--python, else .venv-bench, else this one) only ours is measured.
`--cpu avx2` limits both to that instruction set, and `--baseline` adds another build of this program.
Usage: make bench-train, or benches/training.py [--rounds 7] [--cpu avx2] [--data HOSS_FOLDER]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BINARY = ROOT / "target/release/shipreid"
CONFIG = ROOT / "configs/train/hoss_transoss.toml"
# What keeps PyTorch to an instruction set; this program sets the same for itself.
LIMITS = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}


def main():
    arguments = parse_arguments()
    python = python_with_torch(arguments.python)
    if python is None:
        print("PyTorch is not installed: only this program is measured", file=sys.stderr)
    print(f"{processor()}{f', limited to {arguments.cpu}' if arguments.cpu else ''}, {arguments.threads} threads\n")
    print("| one step, ViT-B, batch 8 | ours | other | ratio (pairs) | CPU seconds, ratio |\n|---|---|---|---|---|")
    for precision in arguments.precisions.split(","):
        ours, *others = pairs(arguments, python, precision)
        for name, theirs in others or [(None, None)]:
            print(row(f"{precision}, beside {name}" if name else precision, ours[1], theirs))
    if arguments.data:
        print("\n" + loader(arguments))


def processor():
    names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return names[0] if names else "an unknown processor"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--python", help="an interpreter that has torch")
    parser.add_argument("--binary", default=str(BINARY), help="the program that is measured")
    parser.add_argument("--baseline", help="another build of it")
    parser.add_argument("--cpu", choices=LIMITS, help="the instruction set to which both are limited")
    parser.add_argument("--precisions", default="f32,bf16")
    parser.add_argument("--data", help="a HOSS folder, for the loader alone")
    return parser.parse_args()


def python_with_torch(asked):
    for python in [asked] if asked else [str(ROOT / ".venv-bench/bin/python"), sys.executable]:
        try:
            subprocess.run([python, "-c", "import torch"], check=True, capture_output=True)
            return python
        except (OSError, subprocess.CalledProcessError):
            continue
    return None


class Program:
    def __init__(self, command, arguments):
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(arguments.threads)}
        if arguments.cpu:
            environment |= {"SHIPREID_CPU_MAX": arguments.cpu, **LIMITS[arguments.cpu]}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout.readline().strip() == "ready"

    def step(self):
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def pairs(arguments, python, precision):
    """What each program measured, by its name, this program first."""
    settings = [f"model.precision={precision}", "batch.images=8"]
    sets = [part for setting in settings for part in ("--set", setting)]
    commands = {"ours": [arguments.binary, "bench", "step", str(CONFIG), *sets]}
    if arguments.baseline:
        commands["the baseline"] = [arguments.baseline, "bench", "step", str(CONFIG), *sets]
    if python:
        commands["PyTorch"] = [python, str(ROOT / "benches/torch_step.py"), "--precision", precision]
    programs = [Program(command, arguments) for command in commands.values()]
    rounds = []
    for number in range(arguments.rounds):
        # Whoever goes first may find the caches of the other.
        order = programs if number % 2 == 0 else programs[::-1]
        steps = {id(program): program.step() for program in order}
        rounds.append([steps[id(program)] for program in programs])
        print(precision, *(f"{step['seconds']:.2f} s" for step in rounds[-1]), file=sys.stderr)
    for program in programs:
        program.stop()
    return list(zip(commands, (list(column) for column in zip(*rounds))))


def row(precision, ours, theirs=None):
    def middle(steps, what):
        return statistics.median(step[what] for step in steps)

    cells = [precision, f"{middle(ours, 'seconds'):.2f} s"]
    if theirs is None:
        return "| " + " | ".join([*cells, "-", "-", f"{middle(ours, 'cpu_seconds'):.2f}"]) + " |"
    ratios = {
        what: [mine[what] / other[what] for mine, other in zip(ours, theirs)] for what in ("seconds", "cpu_seconds")
    }
    each = ", ".join(f"{ratio:.3f}" for ratio in ratios["seconds"])
    cpu = f"{middle(ours, 'cpu_seconds'):.2f} and {middle(theirs, 'cpu_seconds'):.2f}"
    cells += [
        f"{middle(theirs, 'seconds'):.2f} s",
        f"**{statistics.median(ratios['seconds']):.3f}** ({each})",
        f"{cpu}, {statistics.median(ratios['cpu_seconds']):.3f}",
    ]
    return "| " + " | ".join(cells) + " |"


def loader(arguments):
    settings = [f"data.root={arguments.data}", "start.from=scratch", "start.path=", "validation.epochs=0",
                "checkpoint.keep_best=false"]
    sets = [part for setting in settings for part in ("--set", setting)]
    command = [arguments.binary, "bench", "loader", str(CONFIG), *sets]
    measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return (f"Loader alone, {measured['threads']} threads: {measured['images_per_second']:.0f} images/s, "
            f"{measured['images_per_cpu_second']:.0f} per CPU-second.")


if __name__ == "__main__":
    main()
