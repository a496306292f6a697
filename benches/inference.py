#!/usr/bin/env python3
"""Measures our inference beside ONNX Runtime's and OpenVINO's on the same weights and chips, and prints tables.

Every contender is a process of its own with one thread. They compute in turn, round by round, so that a drifting
machine slows all; times are of the processor. Before that their embeddings are compared with ours in f32: the cosine of
another f32 must be .99999. A peer is given several forms of the graph, of which its fastest takes part. The peers come
from PyPI, pinned, into target/bench-venv.
With --cosine it compares our own precisions' embeddings of all chips instead, and needs no peer.
Usage: make bench-inference, or benches/inference.py [--chips FOLDER] [--rounds 5] [--cpu avx2] [--only f32,bf16] [--cosine]
"""

import argparse
import ctypes
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
VENV = ROOT / "target/bench-venv"
DRAWN = ROOT / "target/bench-ships"
WORK = ROOT / "target/bench-inference"
PEER = ROOT / "benches/inference_peer.py"
OLDER = ROOT / "benches/older_processor.c"
PACKAGES = ["onnxruntime==1.32.0", "openvino==2026.4.1", "onnx==1.23.2", "numpy==2.4.6", "safetensors==0.8.0"]
CHIPS = 8
COSINE_MIN = 0.99999
# Chips of a batch, and how many forward passes one measurement takes.
BATCHES = {1: 4, 8: 1}
# Instruction sets to keep to.
CPUS = ["all", "avx512_vnni", "avx2"]
# The forms of the graph that were ever the fastest, see inference_graph.py.
FORMS = {"ONNX Runtime": ["plain", "contrib"], "OpenVINO": ["plain", "opset23"]}


def main():
    arguments = parse_arguments()
    print(f"{processor()}{'' if arguments.cpu == 'all' else f', limited to {arguments.cpu}'}\n", flush=True)
    if arguments.cosine:
        return compare_precisions(arguments)
    install()
    write_model(arguments)
    own, others = ours(arguments), peers(arguments)
    for contender in own:
        contender.start()
    for contender in own:
        contender.warm()
    contenders = own + [fastest(forms) for forms in others]
    running = [contender for contender in contenders if not contender.failure]
    check(running)
    for number in range(arguments.rounds):
        # Whoever goes first may find the caches of the one before.
        for contender in running[number % len(running):] + running[:number % len(running)]:
            contender.measure()
    for contender in running:
        contender.stop()
    print(table(contenders))
    print("\n" + ratios(running))


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", type=Path, help="a folder of HOSS; default: drawn ships")
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/shipreid")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu", choices=CPUS, default="all", help="the instruction sets to use")
    parser.add_argument("--only", default=["f32", "bf16", "int8"], type=lambda text: text.split(","),
                        help="precisions, separated by commas")
    parser.add_argument("--cosine", action="store_true", help="compare our precisions with f32 on all chips instead")
    return parser.parse_args()


def compare_precisions(arguments):
    """Prints how near the embeddings of all chips in other precisions are to those in f32, with seeded weights."""
    chips = sorted(arguments.chips.rglob("*.tif"))
    embeddings = {}
    for precision in ["f32", *(one for one in arguments.only if one != "f32")]:
        settings = ["model.preset=vit_base", f"encoder.precision={precision}", "encoder.precision_speed_min=0"]
        command = [arguments.binary, "bench", "forward", *chips, *(f"--set={one}" for one in settings)]
        contender = Contender("shipreid", "shipreid", precision, command, limits(arguments, "shipreid"))
        contender.start()
        contender.warm()
        if contender.failure:
            sys.exit(f"{precision}: {contender.failure}")
        embeddings[precision] = contender.ask(f"embed {len(chips)}")["embeddings"]
        contender.stop()
    print(f"| cosine to f32, {len(chips)} chips | mean | least |\n|---|---|---|")
    for precision in list(embeddings)[1:]:
        cosines = [cosine(*pair) for pair in zip(embeddings["f32"], embeddings[precision])]
        print(f"| {precision} | {statistics.mean(cosines):.5f} | {min(cosines):.5f} |")


def install():
    python = VENV / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"the peers cannot be installed into {VENV}, so there is nothing to compare with:\n{done.stderr}")


def write_model(arguments):
    """The model of the preset `vit_base` and some optical chips, for everyone to read."""
    chips = optical_chips(arguments)
    written, names = WORK / "chips.txt", "\n".join(map(str, chips))
    if written.exists() and written.read_text() == names:
        return
    shutil.rmtree(WORK, ignore_errors=True)
    command = [arguments.binary, "bench", "forward", *chips, "--set=model.preset=vit_base", "--set=encoder.linear=aten",
               "--set=encoder.workers=1", "--write", WORK]
    run(command)
    written.write_text(names)


def optical_chips(arguments):
    folder = arguments.chips or DRAWN
    if folder == DRAWN and not folder.exists():
        run([arguments.binary, "synth", "--ids", str(2 * CHIPS), "--out", folder])
    files = sorted(folder.rglob("*_RGB.tif"))[:CHIPS]
    if len(files) < CHIPS:
        sys.exit(f"{folder} has {len(files)} optical chips (*_RGB.tif), {CHIPS} are needed")
    return files


def run(command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {last_line(done.stderr)}")


@dataclass
class Contender:
    """A program in one precision: its process, and what was measured of it."""

    program: str
    name: str
    precision: str
    command: list
    environment: dict
    process: subprocess.Popen = None
    failure: str = ""
    # CPU seconds from the start of the process to its first embedding.
    start_seconds: float = 0.0
    # Resident bytes after batches of every size.
    memory: int = 0
    embeddings: list = field(default_factory=list)
    cosines: list = field(default_factory=list)
    # Images per CPU-second by chips of a batch.
    speeds: dict = field(default_factory=lambda: {chips: [] for chips in BATCHES})

    @property
    def is_ours(self):
        return self.program == "shipreid"

    def start(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **self.environment}
        self.process = subprocess.Popen(list(map(str, self.command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, env=environment,
                                        start_new_session=True)

    def warm(self):
        """Waits for the first embedding and runs every batch size."""
        ready = self.process.stdout.readline()
        if not ready:
            self.failure = last_line(self.process.stderr.read())
            self.process.wait()
            return
        self.start_seconds = json.loads(ready)["cpu_seconds"]
        self.embeddings = self.ask(f"embed {CHIPS}")["embeddings"]
        for chips in BATCHES:
            self.ask(f"time {chips} 1")
        self.memory = resident(self.process.pid)

    def best_cost(self):
        """CPU seconds of an image, at its best, summed over the batch sizes."""
        return sum(1 / max(speeds) for speeds in self.speeds.values())

    def forget(self):
        self.speeds = {chips: [] for chips in BATCHES}

    def measure(self):
        for chips, passes in BATCHES.items():
            measured = self.ask(f"time {chips} {passes}")
            self.speeds[chips].append(measured["images"] / measured["cpu_seconds"])

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"{self.name} {self.precision} ended: {last_line(self.process.stderr.read())}")
        return json.loads(answer)

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def ours(arguments):
    """Every precision that is wanted, and every kernel in f32 beside the one that is chosen by timing. The first one is
    what all embeddings are compared with."""
    wanted = [("f32", "aten"), ("f32", "onednn"), ("f32", "tiles"), ("f32", "auto"), ("bf16", "auto"), ("int8", "auto")]
    taken = wanted[:1] + [one for one in wanted[1:] if one[0] in arguments.only]
    contenders = [own(arguments, precision, linear) for precision, linear in taken]
    if "bf16" in arguments.only:
        contenders.append(pytorch_in_bf16(arguments))
    return contenders


def pytorch_in_bf16(arguments):
    """The operators that PyTorch runs the authors' program with in bf16, here without Python; they also gain from computing
    the class token only in the last block."""
    contender = own(arguments, "bf16", "aten")
    contender.program, contender.name = "PyTorch", "PyTorch's operators"
    return contender


def own(arguments, precision, linear):
    settings = [f"model.path={WORK / 'model'}", f"encoder.precision={precision}", f"encoder.linear={linear}",
                "encoder.workers=1", "encoder.threads_per_worker=1", "encoder.precision_speed_min=0"]
    command = [arguments.binary, "bench", "forward", *optical_chips(arguments), *(f"--set={one}" for one in settings)]
    return Contender("shipreid", f"shipreid, {linear}", precision, command, limits(arguments, "shipreid"))


def peers(arguments):
    """Lists of contenders, one of which is to take part."""
    wanted = [("ONNX Runtime", precision) for precision in ("f32", "int8", "int8_reduced")]
    wanted += [("OpenVINO", precision) for precision in ("f32", "bf16")]
    return [[peer(arguments, program, precision, form) for form in FORMS[program]]
            for program, precision in wanted if precision.split("_")[0] in arguments.only]


def peer(arguments, program, precision, form):
    script = [VENV / "bin/python", PEER]
    what = [WORK, program.replace(" ", "").lower(), precision, form]
    run([*script, "convert", *what])
    name = f"{program}, {form}"
    if arguments.cpu != "all" and not can_limit():
        name += ", not limited"
    return Contender(program, name, precision, [*script, "run", *what], limits(arguments, program))


def limits(arguments, program):
    """Variables that keep a program to the wanted instruction sets. The peers have no switch for all of their kernels, so
    the processor answers them like an older one."""
    if arguments.cpu == "all":
        return {}
    if program == "shipreid":
        return {"SHIPREID_CPU_MAX": arguments.cpu}
    return {"LD_PRELOAD": older_processor(), "CPU_MAX": arguments.cpu} if can_limit() else {}


def can_limit():
    """Whether this processor can be made to answer like an older one."""
    set_cpuid, on = 0x1012, 1
    return ctypes.CDLL(None).syscall(158, set_cpuid, on) == 0


def older_processor():
    library = VENV / "older_processor.so"
    if not library.exists() or library.stat().st_mtime < OLDER.stat().st_mtime:
        run(["cc", "-O2", "-shared", "-fPIC", "-o", library, OLDER])
    return str(library)


def fastest(forms):
    """The fastest of several ways to ask the same of a program, running; the others are ended."""
    for contender in forms:
        contender.start()
    for contender in forms:
        contender.warm()
    able = [contender for contender in forms if not contender.failure]
    if not able:
        return forms[0]
    for contender in 2 * able:
        contender.measure()
    for contender in able:
        told = ", ".join(f"{max(speeds):.2f} in batches of {chips}" for chips, speeds in contender.speeds.items())
        print(f"{contender.name} {contender.precision}: {told}", file=sys.stderr, flush=True)
    able.sort(key=Contender.best_cost)
    for contender in able[1:]:
        contender.stop()
    able[0].forget()
    return able[0]


def check(contenders):
    """Whether all compute the same; the reference is our first in f32, which is libtorch's own arithmetic."""
    reference = contenders[0].embeddings
    for contender in contenders:
        contender.cosines = [cosine(*pair) for pair in zip(reference, contender.embeddings)]
        if contender.precision == "f32" and min(contender.cosines) < COSINE_MIN:
            sys.exit(f"{contender.name} computes something else than {contenders[0].name}: its embeddings have a cosine of "
                     f"{min(contender.cosines):.6f}")


def cosine(a, b):
    return sum(map(float.__mul__, a, b)) / math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))


def table(contenders):
    columns = [f"batch {chips}" for chips in BATCHES]
    lines = ["| images per CPU-second | | " + " | ".join(columns) + " | cosine, mean and least | memory | start, CPU |",
             "|---|---|" + "---|" * (len(columns) + 3)]
    for contender in contenders:
        if contender.failure:
            lines.append(f"| {contender.name} | {contender.precision} | does not run here: {contender.failure} |"
                         + " |" * (len(columns) + 2))
            continue
        cells = [contender.name, contender.precision, *(spread(speeds, 2) for speeds in contender.speeds.values()),
                 f"{statistics.mean(contender.cosines):.5f}, {min(contender.cosines):.5f}",
                 f"{contender.memory / (1 << 20):.0f} MiB", f"{contender.start_seconds:.1f} s"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratios(contenders):
    """Our fastest over each program's fastest, by precision and batch, round by round."""
    lines = ["| ours over | | " + " | ".join(f"batch {chips}" for chips in BATCHES) + " |",
             "|---|---|" + "---|" * len(BATCHES)]
    for precision in dict.fromkeys(contender.precision.split("_")[0] for contender in contenders):
        of_precision = [c for c in contenders if c.precision.split("_")[0] == precision]
        mine = [contender for contender in of_precision if contender.is_ours]
        for other in (contender for contender in of_precision if not contender.is_ours):
            if not mine:
                continue
            cells = []
            for chips in BATCHES:
                own = max(mine, key=lambda contender: statistics.median(contender.speeds[chips]))
                pairs = zip(own.speeds[chips], other.speeds[chips])
                cells.append(f"{spread([a / b for a, b in pairs], 3)}, {own.name.split(', ')[1]}")
            lines.append(f"| {other.name} | {other.precision} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values, digits):
    """The median in bold with the range."""
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"**{middle}** ({low} to {high})"


def resident(process):
    """The resident memory of a process in bytes, which is its PSS where it alone maps its program and libraries."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Rss:"))


def processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {line.split(":")[0].strip(): line.split(":")[1].strip() for line in lines if ":" in line}
    sets = [flag for flag in fields["flags"].split() if flag.startswith(("avx", "amx", "fma"))]
    name = f"{fields['model name']}, family {fields['cpu family']} model {fields['model']}"
    return f"CPU: {name}, {os.cpu_count()} cores, {' '.join(sets)}"


def last_line(text):
    lines = text.strip().splitlines()
    return lines[-1] if lines else "without a message"


if __name__ == "__main__":
    main()
