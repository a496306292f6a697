"""Compares durable enrolment and opening with those of an earlier build, both by their own `benches/enrolment.rs`.

Runs of the two alternate, so that drift of the disk and the machine affects both equally; the table has medians and
ranges over the runs. The benches are built by `cargo bench --no-run --bench enrolment` in each checkout.
"""

import argparse
import json
import statistics
import subprocess
import tempfile


def measure(bench: str, options: argparse.Namespace, folder: str) -> dict[str, float]:
    """Entries per second, the sync's milliseconds and the seconds of opening, by the bench at that path."""
    command = [bench, "--callers", str(options.callers), "--rounds", "1", "--seconds", str(options.seconds)]
    command += ["--reopened", str(options.entries), "--folder", folder]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures = json.loads(output.splitlines()[-1])
    enrolment, reopening = figures["enrolment"][0], figures["reopening"][0]
    return {
        "entries per second": enrolment["entries_per_second"],
        "a sync, ms": enrolment["sync_seconds"] * 1e3,
        "opening, s": reopening["open_seconds"],
        "opening without a saved index, s": reopening["open_without_codes_seconds"],
    }


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--baseline", required=True, help="the earlier build's bench")
    parser.add_argument("--bench", required=True, help="this build's bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--callers", type=int, default=64, help="concurrent enrolments")
    parser.add_argument("--seconds", type=float, default=3.0, help="of enrolling in each run")
    parser.add_argument("--entries", type=int, default=100_000, help="of the gallery that is opened")
    parser.add_argument("--folder", default="target", help="on the disk to measure")
    options = parser.parse_args()
    runs: list[tuple[dict[str, float], dict[str, float]]] = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            runs.append((measure(options.baseline, options, folder), measure(options.bench, options, folder)))
    print(f"{options.callers} in flight, {options.entries} entries opened, {options.rounds} rounds, medians (ranges)\n")
    print("| | baseline | this build | ratio |\n|---|---|---|---|")
    for name in runs[0][0]:
        ratios = [ours[name] / before[name] for before, ours in runs]
        columns = [[before[name] for before, _ in runs], [ours[name] for _, ours in runs], ratios]
        print(f"| {name} | " + " | ".join(spread(values) for values in columns) + " |")


if __name__ == "__main__":
    main()
