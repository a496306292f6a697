#!/usr/bin/env python3
"""Runs the short form of every benchmark that has a target, beside an earlier build, and writes one report.

Inference beside ONNX Runtime and OpenVINO; memory and start, search, enrolment, opening and a training step beside the
earlier build, which is built from a pinned commit into target/baseline unless BASELINE names its binary. The binaries of
its benches lie in a folder `deps` beside it. What cannot be measured here, for lack of a network or of the earlier
build, is one line of the report. The report is target/bench-all.md.
Usage: make bench-all [BASELINE=/path/to/shipreid], or benches/all.py [--only search,start] [--cpu avx2]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "target/bench-all.md"
# What every row that names an earlier build is compared with.
PINNED = "6c7b75e"
CHECKOUT = ROOT / "target/baseline"
# Seconds that all of them may take together, and one of them.
TIME_MAX = 40 * 60
STEP_TIME_MAX = 12 * 60
# Turns of both builds, each with both orders.
TURNS = 2
SEARCH = ["--entries", "1000000", "--rounds", "3", "--searches", "5"]
ENROLMENT = ["--callers", "64", "--rounds", "3", "--reopened", "1000000"]
STEPS = 3


def main():
    arguments = parse_arguments()
    started = time.monotonic()
    builds, without = find_builds(arguments)
    lines = [f"# Benchmarks\n\n{processor(builds.own, arguments)}\n"]
    if without:
        lines.append(f"No earlier build: {without}\n")
    for name, measure in MEASURES.items():
        if arguments.only and name not in arguments.only:
            continue
        begun = time.monotonic()
        print(f"{name} ...", file=sys.stderr, flush=True)
        if begun - started > TIME_MAX:
            text = "not measured: the time is up"
        else:
            text = attempt(measure, builds, arguments)
        lines.append(f"## {name}\n\n{text}\n\n({time.monotonic() - begun:.0f} s)\n")
    lines.append(f"All together: {(time.monotonic() - started) / 60:.0f} minutes.\n")
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text("\n".join(lines))
    print("\n".join(lines))


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--baseline", type=Path, default=os.environ.get("BASELINE") or None,
                        help="the binary of an earlier build; default: BASELINE, else built from a pinned commit")
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/shipreid")
    parser.add_argument("--chips", type=Path, help="a folder of HOSS, for inference")
    parser.add_argument("--cpu", choices=["avx2"], help="limits everything that can be limited")
    parser.add_argument("--only", type=lambda text: text.split(","), help=f"some of {', '.join(MEASURES)}")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.only or [] if name not in MEASURES]
    if unknown:
        parser.error(f"there is no {unknown[0]}; there are {', '.join(MEASURES)}")
    if arguments.baseline and not arguments.baseline.is_file():
        parser.error(f"--baseline {arguments.baseline} is not a file")
    if not arguments.binary.is_file():
        parser.error(f"--binary {arguments.binary} is not a file: run make build")
    return arguments


class Missing(Exception):
    """Why something is not measured, in one line."""


@dataclass
class Builds:
    """Binaries, and the folders with those of their benches; an earlier build may be missing."""

    own: Path
    earlier: Path | None

    def bench(self, binary, name):
        """The newest bench of this name that was built with a binary."""
        found = [path for path in (binary.parent / "deps").glob(f"{name}-*") if os.access(path, os.X_OK)]
        if not found:
            raise Missing(f"the bench {name} is not built beside {binary}: cargo bench --no-run --bench {name}")
        return max(found, key=lambda path: path.stat().st_mtime)

    def both(self):
        if self.earlier is None:
            raise Missing("there is no earlier build")
        return [self.earlier, self.own]


def find_builds(arguments):
    """The builds, and why there is no earlier one, if so."""
    own = arguments.binary.resolve()
    if arguments.baseline:
        return Builds(own, arguments.baseline.resolve()), None
    try:
        return Builds(own, build_pinned()), None
    except Missing as cause:
        return Builds(own, None), str(cause)


def build_pinned():
    """Builds the pinned commit in a worktree, once."""
    binary = CHECKOUT / "target/release/shipreid"
    if not CHECKOUT.exists():
        output(["git", "-C", ROOT, "worktree", "add", "--detach", CHECKOUT, PINNED])
    libtorch = CHECKOUT / "libtorch"
    if not libtorch.exists() and (ROOT / "libtorch").exists():
        libtorch.symlink_to((ROOT / "libtorch").resolve())
    if not binary.exists():
        print("building the earlier build ...", file=sys.stderr, flush=True)
        output(["cargo", "bench", "--no-run", "--locked", "--bench", "gallery", "--bench", "enrolment"], cwd=CHECKOUT,
               timeout=None)
    return binary


def attempt(measure, builds, arguments):
    try:
        return measure(builds, arguments)
    except Missing as cause:
        return f"not measured: {cause}"


def output(command, cwd=ROOT, timeout=STEP_TIME_MAX, cpu=None):
    """What a command prints; its last line of errors where it fails."""
    environment = {**os.environ, "SHIPREID_CPU_MAX": cpu} if cpu else None
    command = [str(part) for part in command]
    try:
        done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
                              env=environment)
    except FileNotFoundError:
        raise Missing(f"there is no program {command[0]}") from None
    except subprocess.TimeoutExpired:
        raise Missing(f"{Path(command[0]).name} took more than {timeout} s") from None
    if done.returncode != 0:
        lines = [line for line in (done.stderr.strip() or done.stdout.strip()).splitlines() if line.strip()]
        raise Missing(f"{Path(command[0]).name}: {lines[-1].strip() if lines else f'exit code {done.returncode}'}")
    return done.stdout


def processor(binary, arguments):
    report = output([binary, "serve", "--check-config", "--set", "model.preset=tiny", "--set", "store.data_dir="],
                    cpu=arguments.cpu)
    return "\n".join(line for line in report.splitlines() if line.startswith(("processor", "instruction sets")))


def inference(builds, arguments):
    command = [sys.executable, ROOT / "benches/inference.py", "--binary", builds.own, "--rounds", "3"]
    command += ["--chips", arguments.chips] if arguments.chips else []
    command += ["--cpu", arguments.cpu] if arguments.cpu else []
    return output(command).strip()


def start(builds, arguments):
    script = ROOT / "benches/start.py"
    if not script.exists():
        raise Missing("benches/start.py is missing")
    command = [sys.executable, script, "--binary", builds.own, "--rounds", "3"]
    command += ["--baseline", builds.earlier] if builds.earlier else []
    command += ["--cpu", arguments.cpu] if arguments.cpu else []
    return output(command).strip()


def search(builds, arguments):
    found = in_turn(builds, "gallery", [*SEARCH, "--python", "none"], arguments)
    sizes = [[run["sizes"][0] for run in runs] for runs in found]
    names = [name for name in sizes[0][0]["measured"] if name in sizes[1][0]["measured"]]
    rows = [row(f"{name}, p50 ms", [[size["measured"][name]["p50_ms"] for size in runs] for runs in sizes]) for name in names]
    rows.append(row("bytes an entry", [[size["bytes_per_entry"] for size in runs] for runs in sizes]))
    return table("1,000,000 entries, one thread", rows)


def enrolment(builds, arguments):
    found = in_turn(builds, "enrolment", ENROLMENT, arguments)
    enrolled = [[run["enrolment"][0] for run in runs] for runs in found]
    opened = [[run["reopening"][0] for run in runs] for runs in found]
    rows = [
        row("64 in flight, entries/s", [[one["entries_per_second"] for one in runs] for runs in enrolled]),
        row("a sync, ms", [[1e3 * one["sync_seconds"] for one in runs] for runs in enrolled]),
        row("opening 1,000,000 entries, s", [[one["open_seconds"] for one in runs] for runs in opened]),
    ]
    return table("durable enrolment, and opening after a clean end", rows)


def in_turn(builds, bench, arguments_of_bench, arguments):
    """What both builds' benches print last, as JSON, a list each of the runs in turn."""
    found = [[], []]
    for turn in range(TURNS):
        # Whoever goes first may find a cooler machine.
        for number in (0, 1) if turn % 2 == 0 else (1, 0):
            command = [builds.bench(builds.both()[number], bench), *arguments_of_bench]
            found[number].append(json.loads(output(command, cpu=arguments.cpu).strip().splitlines()[-1]))
    return found


def training(builds, arguments):
    """Seconds of a step in f32, both builds taking steps in turn, by the earlier one's recipe, which both can read."""
    recipe = ROOT / "target/bench-all.toml"
    recipe.write_text(output(["git", "show", f"{PINNED}:configs/train/hoss_transoss.toml"]))
    command = ["bench", "step", recipe, "--set", "model.precision=f32", "--set", "batch.images=8"]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **({"SHIPREID_CPU_MAX": arguments.cpu} if arguments.cpu else {})}
    programs = [Stepper([binary, *command], environment) for binary in builds.both()]
    seconds = [[], []]
    for turn in range(STEPS):
        for number in (0, 1) if turn % 2 == 0 else (1, 0):
            seconds[number].append(programs[number].step())
    for program in programs:
        program.stop()
    return table("fine-tuning, ViT-B, batch 8, f32", [row("one step, s", seconds)])


class Stepper:
    def __init__(self, command, environment):
        self.process = subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
        if self.process.stdout.readline().strip() != "ready":
            raise Missing(f"bench step: {self.process.stderr.read().strip().splitlines()[-1:]}")
        self.step()

    def step(self):
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())["seconds"]

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def row(name, runs):
    """A figure of both builds: medians with their ranges, and the median of the ratios turn by turn."""
    earlier, own = runs
    ratios = [b / a for a, b in zip(earlier, own) if a]
    ratio = f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "-"
    return f"| {name} | {spread(earlier)} | {spread(own)} | {ratio} |"


def spread(values):
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def table(title, rows):
    head = f"| {title} | {PINNED} or BASELINE | this build | ratio (range) |\n|---|---|---|---|"
    return "\n".join([head, *rows])


MEASURES = {"inference": inference, "start": start, "search": search, "enrolment": enrolment, "training": training}


if __name__ == "__main__":
    main()
