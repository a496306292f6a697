#!/usr/bin/env python3
"""Measures a server of the release binary beside the bare model and prints a table for docs/benchmarks.md.

Rounds alternate between the server and the bare loop, so that a drifting machine slows both; ratios are medians
over the rounds. Usage: make bench, or benches/serving.py --chips FOLDER [--preset small] [--rounds 3]
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

BINARY = Path(__file__).parents[1] / "target/release/shipreid"


def main():
    arguments = parse_arguments()
    print(f"CPU: {cpu_name()}; {arguments.preset}, {arguments.rounds} rounds of {arguments.seconds:.0f} s\n")
    rows = [measure(arguments, precision) for precision in ("f32", "bf16")]
    names = list(rows[0])
    print("| | f32 | bf16 |\n|---|---|---|")
    for name in names:
        print(f"| {name} | " + " | ".join(row[name] for row in rows) + " |")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", required=True)
    parser.add_argument("--preset", default="vit_base", choices=["vit_base", "small"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--deadline", type=float, default=2, help="of the calls in the overload, in seconds")
    return parser.parse_args()


def measure(arguments, precision):
    settings = ["--set", f"model.preset={arguments.preset}", "--set", f"encoder.precision={precision}"]
    server = Server(settings)
    try:
        throughput, idle = [], []
        for _ in range(arguments.rounds):
            served = server.bench("closed", arguments, "--concurrency=32")
            bare = run("bench", "bare", arguments.chips, *settings, f"--duration={arguments.seconds}")
            throughput.append((served, bare))
            idle.append(server.bench("closed", arguments, "--concurrency=1"))
            log(f"{precision}: {served['images_per_server_cpu_second']:.2f} served, "
                f"{bare['images_per_cpu_second']:.2f} bare images per CPU-second")
        capacity = statistics.median(served["images_per_second"] for served, _ in throughput)
        overload = server.bench("open", arguments, f"--rate={3 * capacity}", f"--timeout={arguments.deadline}")
        after = server.bench("closed", arguments, "--concurrency=1")
    finally:
        server.stop()
    return table(arguments, throughput, idle, capacity, overload, after)


def table(arguments, throughput, idle, capacity, overload, after):
    def middle(values):
        return statistics.median(list(values))

    efficiency = [served["images_per_server_cpu_second"] / bare["images_per_cpu_second"]
                  for served, bare in throughput]
    failed = overload["calls_failed"]
    return {
        "images per second, server": f"{capacity:.1f}",
        "images per server CPU-second": f"{middle(s['images_per_server_cpu_second'] for s, _ in throughput):.2f}",
        "images per CPU-second, bare loop": f"{middle(b['images_per_cpu_second'] for _, b in throughput):.2f}",
        "server over bare (rounds)":
            f"**{middle(efficiency):.3f}** ({', '.join(f'{value:.3f}' for value in efficiency)})",
        "one idle chip, p50": f"{middle(i['latency_ms']['p50'] for i in idle):.1f} ms",
        "of that outside the model, p50":
            f"**{middle(i['latency_without_forward_ms']['p50'] for i in idle):.2f} ms**",
        f"3x overload, deadline {arguments.deadline:g} s: goodput over capacity":
            f"**{overload['images_per_second'] / capacity:.3f}**",
        "p99 of accepted calls": f"{overload['latency_ms']['p99']:.0f} ms",
        "p50 and p99 of refused calls":
            f"{overload['failed_latency_ms']['p50']:.1f} ms, {overload['failed_latency_ms']['p99']:.0f} ms",
        "refused, by code": ", ".join(f"{code} {count}" for code, count in sorted(failed.items())) or "none",
        "latest forward pass past a deadline": f"{overload['server_late_seconds_max'] * 1e3:.0f} ms",
        "peak memory under load, idle before":
            f"{mib(overload['server_memory_peak_bytes'])}, {mib(idle[0]['server_memory_peak_bytes'])}",
        "one idle chip after it, p50": f"{after['latency_ms']['p50']:.1f} ms",
    }


class Server:
    def __init__(self, settings):
        ports = ["--set", "server.listen=127.0.0.1:0", "--set", "server.metrics_listen=127.0.0.1:0"]
        self.process = subprocess.Popen([BINARY, "serve", *ports, *settings], stdout=subprocess.PIPE, text=True,
                                        stderr=subprocess.DEVNULL)
        self.address = self.line("gRPC on ")
        self.metrics = self.line("metrics on http://").removesuffix("/metrics")

    def line(self, start):
        line = self.process.stdout.readline().strip()
        if not line.startswith(start):
            sys.exit(f"the server did not start: {line!r}")
        return line.removeprefix(start)

    def bench(self, kind, arguments, *flags):
        return run("bench", kind, arguments.chips, "--json", f"--endpoint=http://{self.address}",
                   f"--metrics={self.metrics}", f"--duration={arguments.seconds}", *flags)

    def stop(self):
        self.process.terminate()
        self.process.wait()


def run(*command):
    finished = subprocess.run([BINARY, *command], capture_output=True, text=True)
    if finished.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {finished.stderr}")
    return json.loads(finished.stdout)


def cpu_name():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores"


def mib(count):
    return f"{count / (1 << 20):.0f} MiB"


def log(text):
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
