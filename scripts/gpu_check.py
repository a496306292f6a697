#!/usr/bin/env python3
"""Checks shipreid on a GPU within eight minutes, and prints one table. Needs neither a network nor cargo.

Usage: make gpu-check, or scripts/gpu_check.py [--device cuda:0] [--binary PATH] [--tests PATH] [--torch FOLDER]

--binary is the program, --tests the library's test binary, which holds the recorded behaviour of the reference
(`make gpu-check-build` puts both into target/gpu-check). libtorch is that of an installed PyTorch.
With --device cpu the same steps run in small sizes on any machine, with --short in seconds.

Exit code: 0 where every check passed, 1 where one failed, 2 where nothing could be checked, with the cause in one line.
docs/gpu.md explains the checks and their bounds.
"""

import argparse
import contextlib
import importlib.util
import json
import math
import os
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from libtorch import VERSION as PINNED

ROOT = Path(__file__).absolute().parents[1]
BUILT = ROOT / "target/gpu-check"
TRAINING = ROOT / "configs/train/hoss_transoss.toml"
RECORDED_MODEL = ROOT / "tests/golden/tiny_weights.safetensors"
MIB = 1 << 20
# Tests of the library that run on the device which SHIPREID_TEST_DEVICE names.
GOLDEN = "model::transoss::golden::"
SERVING_TESTS = [
    GOLDEN + "every_variant_and_batch_gives_the_recorded_features",
    GOLDEN + "every_stage_gives_the_recorded_activations",
    GOLDEN + "every_layout_of_a_recorded_checkpoint_gives_the_recorded_features",
    GOLDEN + "every_kernel_points_in_bf16_and_in_int8_where_f32_does",
    GOLDEN + "training_moves_the_neck_and_drops_branches",
    GOLDEN + "a_branch_is_dropped_as_recorded",
    "model::encoder::tests::a_chip_has_one_embedding_alone_in_any_batch_and_in_any_order",
    "model::encoder::tests::prepared_pixels_have_the_embedding_of_their_chip_beside_chips_and_alone",
    "model::encoder::tests::bf16_points_where_f32_does",
    GOLDEN + "the_full_size_model_gives_the_recorded_features",
]
TRAINING_TESTS = [
    "train::learner::tests::three_fine_tuning_steps_are_the_recorded_ones",
    "train::learner::tests::two_pretraining_steps_are_the_recorded_ones",
    "train::learner::tests::a_batch_of_one_modality_decays_the_other_convolution",
    "train::learner::tests::bf16_learns_like_f32_and_keeps_every_small_step",
]
# Those that take long where nothing is optimised.
SLOW_TESTS = {*SERVING_TESTS[-4:], TRAINING_TESTS[1]}
# Steps, and the seconds that each may take.
STEPS = {"machine": 20, "serving goldens": 120, "training goldens": 60, "batching": 150, "training speed": 75,
         "swaps": 120}
# Share of the bare loop's images per second that a server of ViT-B must reach on a GPU.
SERVER_OVER_BARE = 0.5
# Growth of memory over the second half of the swaps. A copy of the model that stays at every swap is 80 MiB.
GROWTH_MIB_MAX = 32


@dataclass(frozen=True)
class Sizes:
    """How much each step does."""

    slow_tests: bool
    precisions: tuple[str, ...]
    presets: tuple[str, ...]
    bench_seconds: float
    warm_up_seconds: float
    concurrency: int
    batch: int
    ships: int
    train_preset: str
    train_batch: int
    train_steps: int
    swaps: int


ON_GPU = Sizes(True, ("f32", "bf16"), ("tiny", "vit_base"), 4, 1, 128, 64, 16, "vit_base", 32, 10, 200)
ON_CPU = Sizes(True, ("f32",), ("tiny", "small"), 4, 1, 32, 8, 8, "small", 8, 3, 60)
SHORT = Sizes(False, ("f32",), ("tiny",), 1.5, 0.2, 8, 4, 2, "tiny", 4, 2, 6)


class Unusable(Exception):
    """Why nothing can be checked, in one line."""


class Failed(Exception):
    """Why a step cannot be finished, in one line."""


def main():
    arguments = parse_arguments()
    try:
        with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
            check = Check(arguments, Path(folder))
            check.require_device()
            check.run()
    except Unusable as cause:
        print(f"gpu-check: {cause}", file=sys.stderr)
        sys.exit(2)
    except subprocess.TimeoutExpired as late:
        print(f"gpu-check: one training step took more than {late.timeout:.0f} s", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("gpu-check: interrupted")
    print(check.table.text())
    sys.exit(0 if check.table.passed() else 1)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to try the script itself")
    parser.add_argument("--binary", type=Path, default=BUILT / "shipreid")
    parser.add_argument("--tests", type=Path, default=BUILT / "tests")
    parser.add_argument("--torch", type=Path, help="the folder that holds lib/libtorch_cpu.so")
    parser.add_argument("--short", action="store_true", help="seconds instead of minutes, for a test of this script")
    parser.add_argument("--step", action="append", choices=STEPS, help="only this one; may be repeated")
    parser.add_argument("--seconds", type=float, default=460, help="bound of all steps together")
    return parser.parse_args()


class Table:
    """What was checked: what, value, bound, verdict."""

    def __init__(self):
        self.rows = []

    def note(self, what, value, verdict="-"):
        self.rows.append((what, value, "-", verdict))

    def check(self, what, value, bound, passed):
        self.rows.append((what, value, bound, "ok" if passed else "FAILED"))

    def passed(self):
        return all(verdict != "FAILED" for *_, verdict in self.rows)

    def text(self):
        rows = [("what", "value", "bound", "verdict"), *self.rows]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join(lines)


class Check:
    """The steps, each with a bound of its own and all within one."""

    def __init__(self, arguments, folder):
        self.device, self.folder = arguments.device, folder
        self.is_gpu = arguments.device != "cpu"
        self.wanted = arguments.step
        self.sizes = SHORT if arguments.short else ON_GPU if self.is_gpu else ON_CPU
        self.binary, self.tests = (executable(path) for path in (arguments.binary, arguments.tests))
        self.torch = torch_folder(arguments.torch, self.is_gpu)
        self.table = Table()
        self.end = time.monotonic() + arguments.seconds
        self.until = self.end
        self.environment = {
            **os.environ,
            "LD_LIBRARY_PATH": library_path(self.torch),
            # The test binary may have been built elsewhere.
            "CARGO_MANIFEST_DIR": str(ROOT),
            "SHIPREID_TEST_DEVICE": self.device,
            # nvidia-smi counts GPUs in this order.
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        }

    def require_device(self):
        """Takes one training step of a tiny network on the device."""
        self.until = min(time.monotonic() + 90, self.end)
        started = self.command(self.binary, "--version")
        if started.returncode != 0:
            raise Unusable(f"{self.binary} does not start with libtorch {torch_version(self.torch)} of {self.torch} "
                           f"(it was built for {PINNED}): {last_line(started.stderr)}")
        settings = ["model.preset=tiny", "batch.images=4"]
        stepped = self.command(self.binary, "bench", "step", TRAINING, *sets(settings), "--device", self.device)
        if stepped.returncode != 0:
            raise Unusable(last_line(stepped.stderr))

    def run(self):
        for name in self.wanted or STEPS:
            step, seconds = getattr(self, name.replace(" ", "_")), STEPS[name]
            begun = time.monotonic()
            self.until = min(begun + seconds, self.end)
            try:
                step()
            except (Failed, OSError, ValueError) as cause:
                self.table.check(name, str(cause), "-", False)
            except subprocess.TimeoutExpired:
                self.table.check(name, "not finished", f"{self.until - begun:.0f} s", False)
            print(f"{name}: {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)

    def command(self, *command):
        """Runs a program until it ends, within the bound of the step."""
        return subprocess.run([str(part) for part in command], env=self.environment, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=max(self.until - time.monotonic(), 0.1))

    def output(self, *command):
        done = self.command(*command)
        if done.returncode != 0:
            raise Failed(last_line(done.stderr) or f"exit code {done.returncode}")
        return done.stdout

    # The steps.

    def machine(self):
        cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        self.table.note("machine", f"{cpu[1] if cpu else 'unknown CPU'}, {os.cpu_count()} cores")
        for fact in ("name", "driver_version", "memory.total") if self.is_gpu else ():
            self.table.note(f"GPU, {fact}", nvidia_smi(self.device, fact) or "unknown: nvidia-smi does not say")
        version = torch_version(self.torch)
        same = version.split("+")[0] == PINNED
        self.table.note("libtorch", f"{version} in {self.torch}", "ok" if same else f"pinned is {PINNED}; tried")
        self.table.note("device", self.device)

    def serving_goldens(self):
        self.goldens(SERVING_TESTS)

    def training_goldens(self):
        self.goldens(TRAINING_TESTS)

    def goldens(self, tests):
        """Runs tests of the library, and finds the difference that comes nearest to its bound in each."""
        tests = [test for test in tests if self.sizes.slow_tests or test not in SLOW_TESTS]
        done = self.command(self.tests, "--exact", "--nocapture", "--test-threads=1", *tests)
        for test, (difference, passed) in judged(done.stdout, tests).items():
            value, bound = (f"{difference[0]:.1e}", f"{difference[1]:.1e}") if difference else ("-", "-")
            self.table.check(test.rsplit("::", 1)[1].replace("_", " "), value, bound, passed)
        if done.returncode < 0:
            raise Failed(f"the tests were ended by signal {-done.returncode}: {last_line(done.stderr)}")

    def batching(self):
        """The server under load beside the bare model."""
        ships = self.folder / "ships"
        self.output(self.binary, "synth", "--ids", max(self.sizes.ships, 2), "--pairs", 1, "--out", ships)
        chips = ships / "synthetic_hoss/bounding_box_test"
        for preset in self.sizes.presets:
            for precision in self.sizes.precisions:
                self.bench(preset, precision, chips)

    def bench(self, preset, precision, chips):
        seconds = [f"--duration={self.sizes.bench_seconds}"]
        settings = [f"model.preset={preset}", f"encoder.precision={precision}", f"encoder.batch_max={self.sizes.batch}"]
        settings.append(f"encoder.device={self.device}")
        with self.server([*settings, "store.data_dir="]) as server:
            load = ["bench", "closed", chips, "--json", f"--endpoint=http://{server.address}",
                    f"--metrics={server.metrics}", f"--warm-up={self.sizes.warm_up_seconds}", *seconds]
            idle = json.loads(self.output(self.binary, *load, "--concurrency=1"))
            before = server.batches()
            busy = json.loads(self.output(self.binary, *load, f"--concurrency={self.sizes.concurrency}"))
            chips_done, batches = (after - before for after, before in zip(server.batches(), before))
        batch = chips_done / max(batches, 1)
        bare = json.loads(self.output(self.binary, "bench", "bare", chips, *sets(settings), *seconds))
        name = f"{preset} {precision}"
        if not (busy["images"] and bare["images"]):
            raise Failed(f"{name}: not one image was embedded in {self.sizes.bench_seconds} s")
        ratio = busy["images_per_second"] / bare["images_per_second"]
        self.table.note(f"{name}: images per second, served", f"{busy['images_per_second']:.1f}")
        self.table.note(f"{name}: images per second, bare loop", f"{bare['images_per_second']:.1f}")
        if self.is_gpu and preset == "vit_base":
            self.table.check(f"{name}: served over bare", f"{ratio:.2f}", f">= {SERVER_OVER_BARE}",
                             ratio >= SERVER_OVER_BARE)
        else:
            self.table.note(f"{name}: served over bare", f"{ratio:.2f}")
        self.table.note(f"{name}: one idle chip, p50", f"{idle['latency_ms']['p50']:.1f} ms")
        self.table.check(f"{name}: chips in a batch, mean", f"{batch:.1f}", "> 1", batch > 1)
        failed = sum(sum(report["calls_failed"].values()) for report in (idle, busy))
        answered = idle["calls_ok"] + busy["calls_ok"]
        self.table.check(f"{name}: calls failed", f"{failed} of {failed + answered}", "0 of some",
                         failed == 0 and answered > 0)

    def training_speed(self):
        """Steps of fine-tuning on noise."""
        for precision in self.sizes.precisions:
            settings = [f"model.preset={self.sizes.train_preset}", f"model.precision={precision}",
                        f"batch.images={self.sizes.train_batch}", "model.precision_speed_min=0"]
            command = ["bench", "step", TRAINING, *sets(settings), "--device", self.device]
            with self.child(self.binary, *command) as trainer:
                trainer.line("ready")
                steps = [trainer.answer("step") for _ in range(self.sizes.train_steps)]
            losses = [step["loss"] for step in steps]
            images = self.sizes.train_batch * len(steps) / sum(step["seconds"] for step in steps)
            name = f"training {self.sizes.train_preset} {precision}"
            self.table.note(f"{name}: images per second", f"{images:.1f}")
            self.table.check(f"{name}: loss", f"{losses[0]:.3f} to {losses[-1]:.3f}", "finite",
                             all(map(math.isfinite, losses)))

    def swaps(self):
        """Memory while two models are activated in turns."""
        models = two_models(self.folder)
        settings = ["model.preset=tiny", f"encoder.device={self.device}", f"store.data_dir={self.folder / 'data'}"]
        with self.server(settings) as server:
            endpoint = f"--endpoint=http://{server.address}"
            digests = []
            for model in models:
                hints = ["--heads=3", "--image=64x32"]
                listed = self.output(self.binary, "model", "import", model, endpoint, *hints)
                digests.append(re.search(r"\b[0-9a-f]{12,64}\b", listed)[0])
            memory, source = self.memory(server.process.pid)
            seen = []
            for number in range(self.sizes.swaps):
                if time.monotonic() > self.until - 15:
                    break
                self.output(self.binary, "model", "activate", digests[number % 2], endpoint)
                seen.append(memory())
        least = self.sizes.swaps // 4
        self.table.check("swaps in time", f"{len(seen)} of {self.sizes.swaps}", f">= {least}", len(seen) >= least)
        if len(seen) < 2:
            return
        half = len(seen) // 2
        growth = max(seen[half:]) - max(seen[:half])
        self.table.note(f"memory ({source}) after one swap", f"{seen[0]:.0f} MiB")
        self.table.check(f"its growth over swaps {half + 1} to {len(seen)}", f"{growth:.1f} MiB",
                         f"<= {GROWTH_MIB_MAX} MiB", growth <= GROWTH_MIB_MAX)

    def memory(self, pid):
        """A function that measures MiB, and what it measures."""
        if not self.is_gpu:
            return lambda: resident_mib(pid), "resident, of the process"
        if nvidia_smi_process(pid) is not None:
            return lambda: known(nvidia_smi_process(pid)), "of the process on the GPU"
        if as_number(nvidia_smi(self.device, "memory.used")) is not None:
            return lambda: known(as_number(nvidia_smi(self.device, "memory.used"))), "used on the GPU"
        return torch_memory(self.device), "used on the GPU"

    # Programs that run beside this one.

    @contextlib.contextmanager
    def child(self, *command):
        """A program that is talked to line by line, and killed at the end of the step."""
        with open(self.folder / "log", "w+") as log:
            process = subprocess.Popen([str(part) for part in command], env=self.environment, text=True, stderr=log,
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            child = Child(process, log)
            killer = threading.Timer(max(self.until - time.monotonic(), 0.1), child.kill)
            killer.start()
            try:
                yield child
            finally:
                killer.cancel()
                process.terminate()
                try:
                    process.communicate(timeout=15)
                except (BrokenPipeError, subprocess.TimeoutExpired):
                    process.kill()
                    process.wait()

    @contextlib.contextmanager
    def server(self, settings):
        ports = ["server.listen=127.0.0.1:0", "server.metrics_listen=127.0.0.1:0", "server.drain_notice_seconds=0"]
        with self.child(self.binary, "serve", *sets([*ports, *settings])) as server:
            server.address = server.line("gRPC on ")
            server.metrics = server.line("metrics on http://").removesuffix("/metrics")
            yield server


class Child:
    def __init__(self, process, log):
        self.process, self.log = process, log
        self.address = self.metrics = None
        self.was_late = False

    def kill(self):
        self.was_late = True
        self.process.kill()

    def line(self, start):
        """The rest of the next line, which begins like that."""
        line = self.process.stdout.readline().strip()
        if not line.startswith(start):
            self.process.kill()
            self.process.wait()
            self.log.seek(0)
            said = "not finished in time" if self.was_late else last_line(self.log.read()) or "it ended"
            raise Failed(f"{said} (expected {start.strip()!r})")
        return line.removeprefix(start)

    def answer(self, question):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(question + "\n")
            self.process.stdin.flush()
        return json.loads("{" + self.line("{"))

    def batches(self):
        """Chips and batches since the server started."""
        page = urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10).read().decode()
        series = (re.findall(rf"^shipreid_batch_size_chips_{part}\S* (\S+)$", page, re.MULTILINE)
                  for part in ("sum", "count"))
        return [sum(map(float, values)) for values in series]


def sets(settings):
    return [part for setting in settings for part in ("--set", setting)]


def last_line(text):
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def executable(path):
    if not os.access(path, os.X_OK) or path.is_dir():
        raise Unusable(f"{path} is not there or cannot be run; `make gpu-check-build` makes it where there is cargo")
    return path.absolute()


def torch_folder(given, is_gpu):
    """The folder whose lib has libtorch: the given one, LIBTORCH, this Python's torch, or the one of `make setup`."""
    installed = importlib.util.find_spec("torch")
    places = [given] if given else [
        os.environ.get("LIBTORCH"), Path(installed.origin).parent if installed else None, ROOT / "libtorch"]
    places = [Path(place) for place in places if place and (Path(place) / "lib/libtorch_cpu.so").is_file()]
    # The CPU part alone is of no use on a GPU where there is another.
    complete = [place for place in places if not is_gpu or (place / "lib/libtorch_cuda.so").is_file()]
    if not places:
        raise Unusable(f"no libtorch {f'in {given}' if given else 'found'}: name the folder that holds "
                       "lib/libtorch_cpu.so with --torch")
    return (complete or places)[0].absolute()


def torch_version(folder):
    """Of PyTorch's own files; wheels have both, a tree of `make setup` the header only."""
    python, header = folder / "version.py", folder / "include/torch/headeronly/version.h"
    if python.is_file() and (found := re.search(r"^__version__ = ['\"](.+)['\"]$", python.read_text(), re.MULTILINE)):
        return found[1]
    if header.is_file():
        return ".".join(re.findall(r"#define TORCH_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", header.read_text()))
    return "unknown"


def library_path(torch):
    nvidia = sorted(torch.parent.glob("nvidia/*/lib"))
    given = os.environ.get("LD_LIBRARY_PATH")
    return os.pathsep.join([str(torch / "lib"), *map(str, nvidia), *([given] if given else [])])


def judged(output, tests):
    """For each test the difference nearest to its bound, as (difference, bound) or None, and whether it passed."""
    results = {test: (None, False) for test in tests}
    test = None
    for line in output.splitlines():
        if found := re.match(r"test (\S+) \.\.\. ", line):
            test = found[1]
            line = line[found.end():]
        if test not in results:
            continue
        nearest, _ = results[test]
        if found := re.match(r"difference (\S+) of (\S+) in ", line):
            pair = (float(found[1]), float(found[2]))
            if nearest is None or pair[0] * nearest[1] > nearest[0] * pair[1]:
                results[test] = (pair, False)
        elif line.strip() == "ok":
            results[test] = (nearest, True)
    return results


def two_models(folder):
    """The recorded tiny model, and the same with one other number, as checkpoints."""
    file = RECORDED_MODEL.read_bytes()
    size = struct.unpack("<Q", file[:8])[0]
    header, data = json.loads(file[8:8 + size]), file[8 + size:]
    tensors = {name: (about, bytearray(data[slice(*about["data_offsets"])])) for name, about in header.items()
               if name != "__metadata__" and not name.startswith("stride12.")}
    paths = [folder / "first.safetensors", folder / "second.safetensors"]
    for path in paths:
        path.write_bytes(safetensors(tensors))
        tensors["base.cls_token"][1][:4] = struct.pack("<f", 0.5)
    return paths


def safetensors(tensors):
    header, data = {}, b""
    for name, (about, values) in tensors.items():
        header[name] = {**about, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def nvidia_smi(device, fact):
    """What nvidia-smi says of a GPU; None where it says nothing."""
    number = int(device.removeprefix("cuda:"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    named = visible.split(",")[number] if visible else number
    return smi("-i", str(named), f"--query-gpu={fact}", "--format=csv,noheader,nounits")


def nvidia_smi_process(pid):
    """MiB that a process has on all GPUs; None where nvidia-smi does not know it, as in containers."""
    lines = (smi("--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits") or "").splitlines()
    used = [as_number(line.split(",")[1]) for line in lines if line.split(",")[0].strip() == str(pid)]
    return sum(used) if used and None not in used else None


def smi(*arguments):
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def known(value):
    if value is None:
        raise Failed("nvidia-smi no longer tells the memory in use")
    return value


def as_number(text):
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def torch_memory(device):
    """Where nvidia-smi says nothing. The context that this makes on the GPU stays as large as it is."""
    try:
        import torch
    except ImportError:
        raise Failed("neither nvidia-smi nor torch tells the memory of the GPU") from None

    def used():
        free, total = torch.cuda.mem_get_info(torch.device(device))
        return (total - free) / MIB

    return used


def resident_mib(pid):
    return int(re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[1]) / 1024


if __name__ == "__main__":
    main()
