#!/usr/bin/env python3
"""Measures Embed before, during and after a training job on the same server and prints a table for docs/benchmarks.md.

Calls come at random times, at a share of what the idle server can do. Every round measures all three on one server;
ratios are medians over the rounds. Usage: make bench-beside, or benches/beside_training.py --chips FOLDER
"""

import argparse
import statistics
import subprocess
import tempfile
from pathlib import Path

from serving import BINARY, Server, cpu_name, log

PHASES = ("before", "during", "after")
JOB = Path(__file__).parents[1] / "configs/train/demo.toml"


def main():
    arguments = parse_arguments()
    print(f"CPU: {cpu_name()}; {arguments.preset}, {arguments.rounds} rounds of {arguments.seconds:.0f} s, calls at "
          f"{arguments.share:.0%} of capacity\n")
    print("| training threads | | before | during | after | during over before (rounds) |\n|---|---|---|---|---|---|")
    failed = 0
    for threads in arguments.threads:
        rounds = measure(arguments, threads)
        for figure in ("p50", "p99"):
            print(row(threads, figure, rounds))
        failed += sum(sum(figures[phase]["calls_failed"].values()) for figures in rounds for phase in PHASES)
    print(f"\n{failed} calls failed.")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", required=True)
    parser.add_argument("--preset", default="vit_base", choices=["vit_base", "small", "tiny"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--share", type=float, default=0.3, help="of the idle server's images per second")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="that the job may use")
    return parser.parse_args()


def measure(arguments, threads):
    with tempfile.TemporaryDirectory() as folder:
        job = write_job(Path(folder))
        server = Server(["--set", f"model.preset={arguments.preset}", "--set", f"store.data_dir={folder}/data",
                         "--set", f"training.data_roots={folder}", "--set", f"training.threads={threads}"])
        try:
            capacity = server.bench("closed", arguments, "--concurrency=32")["images_per_second"]
            rounds = []
            for _ in range(arguments.rounds):
                figures = {}
                for phase in PHASES:
                    job_id = start_job(server, job) if phase == "during" else None
                    figures[phase] = server.bench("open", arguments, f"--rate={arguments.share * capacity}")
                    if job_id:
                        stop_job(server, job_id)
                p99 = ", ".join(f"{latency(figures[phase], 'p99'):.0f} ms" for phase in PHASES)
                log(f"{threads} training threads: p99 {p99}")
                rounds.append(figures)
            return rounds
        finally:
            server.stop()


def write_job(folder):
    """The demo's job on ships of its own, without an end."""
    subprocess.run([BINARY, "synth", "--ids", "80", "--out", folder], check=True, capture_output=True)
    text = JOB.read_text().replace("data/synthetic", str(folder)).replace("epochs = 24", "epochs = 100000")
    job = folder / "job.toml"
    job.write_text(text.replace("[validation]\nepochs = 6", "[validation]\nepochs = 0"))
    return job


def start_job(server, job):
    """Its id, once it has learned for an epoch."""
    command = [BINARY, "train", job, f"--endpoint=http://{server.address}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as watcher:
        job_id = None
        for line in watcher.stdout:
            job_id = job_id or line.split()[0]
            if line.startswith("epoch 1:"):
                break
        watcher.kill()
    return job_id


def stop_job(server, job_id):
    endpoint = f"--endpoint=http://{server.address}"
    for command in (["cancel"], ["watch"], ["delete", "--yes"]):
        subprocess.run([BINARY, "jobs", *command, job_id, endpoint], capture_output=True, check=False)


def latency(report, figure):
    return report["latency_ms"][figure]


def row(threads, figure, rounds):
    middle = {phase: statistics.median(latency(figures[phase], figure) for figures in rounds) for phase in PHASES}
    ratios = [latency(figures["during"], figure) / latency(figures["before"], figure) for figures in rounds]
    times = " | ".join(f"{middle[phase]:.0f} ms" for phase in PHASES)
    listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return f"| {threads} | {figure} | {times} | **{statistics.median(ratios):.2f}** ({listed}) |"


if __name__ == "__main__":
    main()
