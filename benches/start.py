#!/usr/bin/env python3
"""Measures the start of a server until it is ready, its first calls and its memory, beside an earlier build.

A ViT-B is served from a torch checkpoint and from a folder of our own format, each with a data folder that an earlier
start has filled. Starts of both builds take turns; ratios are medians over the rounds. Memory is proportional (PSS), of
a server that has had no call yet. The first call is compared with the median of those that follow.
Usage: make bench-start, or benches/start.py [--baseline BINARY] [--rounds 5] [--precision bf16] [--cpu avx2]
"""

import argparse
import collections
import io
import json
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import types
import zipfile
from pathlib import Path

from serving import cpu_name, log

ROOT = Path(__file__).parents[1]
WORK = ROOT / "target/bench-start"
FORMS = {".pth": "model.pth", "own format": "model"}
# What is measured of a start: its unit, and whether the ratio of two builds means anything.
FIGURES = {"start to ready": ("s", 2, True), "CPU time of it": ("s", 2, True), "idle, PSS": ("MiB", 0, True), "first call over the next": ("", 2, False)}


def main():
    arguments = parse_arguments()
    write_models(arguments)
    builds = {"ours": arguments.binary}
    if arguments.baseline:
        builds = {"baseline": arguments.baseline, **builds}
    with tempfile.TemporaryDirectory() as folder:
        starts = [Start(form, build, binary, Path(folder) / f"{form}-{build}", arguments)
                  for form in FORMS for build, binary in builds.items()]
        for start in starts:
            start.fill()
        for number in range(arguments.rounds):
            # Whoever goes first may find the files of the one before in the cache.
            for start in starts[number % len(starts):] + starts[:number % len(starts)]:
                start.measure()
    kept = f", limited to {arguments.cpu}" if arguments.cpu else ""
    print(f"CPU: {cpu_name()}{kept}; ViT-B in {arguments.precision}, {arguments.rounds} rounds\n")
    print(table(starts, builds))


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--baseline", type=Path, help="the binary of an earlier build")
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/shipreid")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="f32", choices=["f32", "bf16", "int8"])
    parser.add_argument("--linear", default="auto", choices=["auto", "aten", "onednn", "tiles"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cpu", choices=["avx2", "avx512"], help="the instruction sets to use; default: all")
    return parser.parse_args()


class Start:
    """A server that is started again and again."""

    def __init__(self, form, build, binary, data, arguments):
        self.form, self.build, self.binary = form, build, binary
        self.settings = [f"--set={setting}" for setting in (
            f"model.path={WORK / FORMS[form]}", f"store.data_dir={data}", f"encoder.precision={arguments.precision}",
            f"encoder.linear={arguments.linear}", f"encoder.workers={arguments.workers}",
            "server.listen=127.0.0.1:0", "server.metrics_listen=127.0.0.1:0")]
        self.environment = os.environ | ({"SHIPREID_CPU_MAX": arguments.cpu} if arguments.cpu else {})
        self.figures = collections.defaultdict(list)

    def fill(self):
        """The first start stores the model."""
        server = self.begin()[0]
        server.terminate()
        server.wait()

    def begin(self):
        began = time.monotonic()
        server = subprocess.Popen([self.binary, "serve", *self.settings], stdout=subprocess.PIPE, text=True,
                                  stderr=subprocess.DEVNULL, env=self.environment)
        address = server.stdout.readline().strip().removeprefix("gRPC on ")
        took = time.monotonic() - began
        if not address:
            sys.exit(f"{self.binary} does not serve {self.form}")
        metrics = server.stdout.readline().strip().removeprefix("metrics on http://").removesuffix("/metrics")
        return server, took, address, metrics

    def measure(self):
        server, took, address, metrics = self.begin()
        try:
            self.figures["start to ready"].append(took)
            self.figures["CPU time of it"].append(cpu_seconds(server.pid))
            self.figures["idle, PSS"].append(proportional_memory(server.pid))
            calls = run(self.binary, "bench", "closed", WORK / "chips/synthetic_hoss/query", "--json", f"--endpoint=http://{address}",
                        f"--metrics={metrics}", "--concurrency=1", "--warm-up=0", "--duration=2")["latency_ms"]
            self.figures["first call over the next"].append(calls["max"] / calls["p50"])
        finally:
            server.terminate()
            server.wait()
        log(f"{self.form}, {self.build}: ready after {took:.2f} s")


def cpu_seconds(process):
    # The fields after the program's name, which may have spaces.
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def proportional_memory(process):
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr}")
    return json.loads(done.stdout)


def table(starts, builds):
    lines = [f"| | | {' | '.join(builds)} |{' ratio (rounds) |' if len(builds) > 1 else ''}",
             f"|---|---|{'---|' * len(builds)}{'---|' if len(builds) > 1 else ''}"]
    for figure, (unit, digits, has_ratio) in FIGURES.items():
        for form in FORMS:
            of_form = {start.build: start.figures[figure] for start in starts if start.form == form}
            cells = [spread(of_form[build], unit, digits) for build in builds]
            if len(builds) > 1:
                ratios = [ours / theirs for ours, theirs in zip(of_form["ours"], of_form["baseline"])]
                listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
                cells.append(f"**{statistics.median(ratios):.2f}** ({listed})" if has_ratio else "")
            lines.append(f"| {figure} | {form} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values, unit, digits):
    shown = [f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values))]
    return f"{shown[0]} {unit} ({shown[1]} to {shown[2]})".replace("  ", " ")


def write_models(arguments):
    """A ViT-B in both forms and some chips, once."""
    if (WORK / "model.pth").exists():
        return
    shutil.rmtree(WORK, ignore_errors=True)
    done = subprocess.run([arguments.binary, "synth", "--ids", "8", "--out", WORK / "chips"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"no chips: {done.stderr}")
    chip = next((WORK / "chips").rglob("*_RGB.tif"))
    run(arguments.binary, "bench", "forward", chip, "--set=model.preset=vit_base", "--set=encoder.linear=aten",
        "--write", WORK / "written")
    (WORK / "written/model").rename(WORK / "model")
    write_torch((WORK / "model/model.safetensors").read_bytes(), WORK / "model.pth")


def write_torch(safetensors, path):
    """The tensors of a safetensors file as torch.save writes a state dict, without torch."""
    length = int.from_bytes(safetensors[:8], "little")
    header, data = json.loads(safetensors[8:8 + length]), memoryview(safetensors)[8 + length:]
    header.pop("__metadata__", None)
    rebuild = stand_in("torch._utils", "_rebuild_tensor_v2")
    storage = stand_in("torch", "FloatStorage")
    entries, tensors = {}, collections.OrderedDict()
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        key, shape = str(len(entries)), tuple(tensor["shape"])
        entries[key] = data[begin:end]
        strides = tuple(product(shape[axis + 1:]) for axis in range(len(shape)))
        stored = Stored(("storage", storage, key, "cpu", (end - begin) // 4))
        tensors[name] = Reduced(rebuild, (stored, 0, shape, strides, False, collections.OrderedDict()))
    written = io.BytesIO()
    Pickler(written, protocol=2).dump(tensors)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", written.getvalue())
        archive.writestr("model/byteorder", "little")
        for key, values in entries.items():
            archive.writestr(f"model/data/{key}", values)
        archive.writestr("model/version", "3\n")


def stand_in(module, name):
    """Something that pickles by the name of a function or class of torch."""
    sys.modules.setdefault("torch", types.ModuleType("torch"))
    found = sys.modules.setdefault(module, types.ModuleType(module))
    thing = type(name, (), {"__module__": module})
    setattr(found, name, thing)
    return thing


class Stored(tuple):
    """A storage, which is pickled by its key."""


class Reduced:
    def __init__(self, function, arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return tuple(value) if isinstance(value, Stored) else None


def product(lengths):
    total = 1
    for length in lengths:
        total *= length
    return total


if __name__ == "__main__":
    main()
