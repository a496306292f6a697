#!/usr/bin/env python3
"""Runs the fuzz targets of fuzz/, several at once, and prints a table of what came of it (see docs/fuzzing.md).

    fuzz.py --seconds 60               each target for a minute
    fuzz.py --campaign                 as many executions of each as its row below says; resumes where it stopped
    fuzz.py --seconds 60 yaml toml     these targets only
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FUZZ = ROOT / "fuzz"
MILLION = 1_000_000
# Threads of the server have as much.
STACK_BYTES = 2 << 20
# Beside the bounds that the targets keep by themselves: what C libraries and the fuzzer take, and what never ends.
RESIDENT_MIB_MAX = 2048
MALLOC_MIB_MAX = 256
ENDLESS_SECONDS = 30
# A campaign that is ended loses at most one of these parts.
PARTS = 20


@dataclass
class Target:
    name: str
    executions: int
    input_bytes_max: int
    # In the repository, beside fuzz/seeds/NAME: files, or folders of files.
    seeds: list = field(default_factory=list)


# Checks of the stack take a quarter of the time and find nothing in safe Rust; freed memory is watched for 8 MiB.
SANITIZER = "detect_leaks=0:detect_odr_violation=0:detect_stack_use_after_return=0:quarantine_size_mb=8"

TARGETS = [
    Target("manifest", 10 * MILLION, 2048),
    Target("yaml", 10 * MILLION, 4096),
    Target("toml", 10 * MILLION, 16384, ["configs/server.toml", "configs/train"]),
    Target("keys", 10 * MILLION, 2048),
    Target("page_token", 10 * MILLION, 128),
    Target("image", MILLION, 32768, ["tests/golden/images", "tests/cases/images"]),
    Target("pth", MILLION, 32768, ["tests/cases/checkpoints"]),
    Target("safetensors", MILLION, 16384, ["tests/golden", "tests/cases/checkpoints", "tests/fixtures/models-1"]),
    Target("archive", MILLION, 16384, ["tests/fixtures/export-1"]),
]


@dataclass
class Outcome:
    executions: int = 0
    seconds: float = 0.0
    coverage_first: int = 0
    coverage: int = 0
    slowest_us: int = 0
    heaviest_bytes: int = 0
    of_bound_per_mille: int = 0
    resident_mib: int = 0
    result: str = "clean"

    def add(self, other):
        self.executions += other.executions
        self.seconds += other.seconds
        self.coverage_first = self.coverage_first or other.coverage_first
        for key in ["coverage", "slowest_us", "heaviest_bytes", "of_bound_per_mille", "resident_mib"]:
            setattr(self, key, max(getattr(self, key), getattr(other, key)))
        self.result = other.result


def seeds(target):
    """Folders that the fuzzer reads, and never writes to."""
    folder = FUZZ / "corpus" / f"{target.name}.seeds"
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for place in [FUZZ / "seeds" / target.name, *(ROOT / seed for seed in target.seeds)]:
        found += sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
    for file in found:
        if file.is_file() and file.stat().st_size <= target.input_bytes_max:
            link = folder / str(file.relative_to(ROOT)).replace("/", "_")
            if not link.exists():
                link.symlink_to(file)
    return folder


def run(target, binaries, bound):
    """One process of the fuzzer, ended by `bound`, a flag."""
    corpus = FUZZ / "corpus" / target.name
    artifacts = FUZZ / "artifacts" / target.name
    corpus.mkdir(parents=True, exist_ok=True)
    artifacts.mkdir(parents=True, exist_ok=True)
    command = [
        binaries / target.name,
        corpus,
        seeds(target),
        bound,
        f"-max_len={target.input_bytes_max}",
        f"-timeout={ENDLESS_SECONDS}",
        f"-rss_limit_mb={RESIDENT_MIB_MAX}",
        f"-malloc_limit_mb={MALLOC_MIB_MAX}",
        f"-artifact_prefix={artifacts}/",
        "-print_final_stats=1",
        "-use_value_profile=0",
    ]
    dictionary = FUZZ / "dictionaries" / f"{target.name}.dict"
    if dictionary.exists():
        command.append(f"-dict={dictionary}")
    environment = os.environ | {"ASAN_OPTIONS": SANITIZER, "RUST_BACKTRACE": "1"}
    begun = time.monotonic()
    log = FUZZ / "artifacts" / f"{target.name}.log"
    with log.open("w") as out:
        code = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, preexec_fn=limited, cwd=ROOT
        ).returncode
    return outcome(log.read_text(errors="replace"), code, time.monotonic() - begun)


def limited():
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, hard))


def outcome(log, code, seconds):
    def last(pattern):
        return int((re.findall(pattern, log, re.MULTILINE) or [0])[-1])

    covered = [int(cover) for cover in re.findall(r"\bcov: (\d+)", log)] or [0]
    input_of = re.findall(r"Test unit written to (\S+)", log)
    return Outcome(
        executions=last(r"^stat::number_of_executed_units:\s+(\d+)") or last(r"^#(\d+)"),
        seconds=seconds,
        coverage_first=covered[0],
        coverage=covered[-1],
        slowest_us=last(r"^watched: .*slowest_us=(\d+)"),
        heaviest_bytes=last(r"^watched: .*heaviest_bytes=(\d+)"),
        of_bound_per_mille=last(r"^watched: .*heaviest_per_mille_of_bound=(\d+)"),
        resident_mib=last(r"^stat::peak_rss_mb:\s+(\d+)"),
        result="clean" if code == 0 else f"FAULT {input_of[-1] if input_of else f'exit code {code}'}",
    )


def campaign(target, binaries):
    """All executions of a target, part by part; what earlier calls have done counts."""
    account = FUZZ / "corpus" / f"{target.name}.json"
    total = Outcome(**json.loads(account.read_text())) if account.exists() else Outcome()
    while total.executions < target.executions:
        part = min(target.executions // PARTS, target.executions - total.executions)
        total.add(run(target, binaries, f"-runs={part}"))
        account.write_text(json.dumps(asdict(total)))
        print(f"{target.name}: {total.executions:,} executions, {total.result}", file=sys.stderr, flush=True)
        if total.result != "clean":
            break
    return total


def table(outcomes):
    rows = [["target", "executions", "per second", "coverage", "slowest input", "heaviest input", "peak RSS", "result"]]
    for name, done in outcomes.items():
        rows.append([
            name,
            f"{done.executions:,}",
            f"{done.executions / max(done.seconds, 1e-9):,.0f}",
            f"{done.coverage} (+{done.coverage - done.coverage_first})",
            f"{done.slowest_us / 1000:.1f} ms",
            f"{done.heaviest_bytes / 2**20:.2f} MiB ({done.of_bound_per_mille / 10:.0f} % of its bound)",
            f"{done.resident_mib} MiB",
            done.result,
        ])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    length = arguments.add_mutually_exclusive_group(required=True)
    length.add_argument("--seconds", type=int, help="how long each target runs")
    length.add_argument("--campaign", action="store_true", help="as many executions as each target is to have")
    arguments.add_argument("--build", default=ROOT / "target/fuzz", help="where cargo-fuzz has built the targets")
    arguments.add_argument("--jobs", type=int, default=5, help="targets at once")
    arguments.add_argument("targets", nargs="*", metavar="TARGET", help="all without one")
    flags = arguments.parse_args()
    known = {target.name: target for target in TARGETS}
    if unknown := set(flags.targets) - set(known):
        arguments.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    chosen = [known[name] for name in flags.targets] or TARGETS
    binaries = Path(flags.build).resolve() / "x86_64-unknown-linux-gnu/release"

    def work(target):
        if flags.campaign:
            return campaign(target, binaries)
        return run(target, binaries, f"-max_total_time={flags.seconds}")

    with ThreadPoolExecutor(flags.jobs) as pool:
        outcomes = dict(zip([target.name for target in chosen], pool.map(work, chosen)))
    print(table(outcomes))
    faults = [name for name, done in outcomes.items() if done.result != "clean"]
    for name in faults:
        print(f"\n{name}:\n" + "".join((FUZZ / "artifacts" / f"{name}.log").open(errors="replace").readlines()[-60:]))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
