#!/usr/bin/env python3
"""Trains from scratch on synthetic ships and on real optical-SAR tiles and prints what was learned, for docs/benchmarks.md.

Synthetic: identities that training never sees are to be found; the mean of several seeds. Recipes: families and losses
compared on the same data, from the same pretrained network, with the same images seen, by the model of the last epoch.
Real: tiles of scenes that training never sees, SAR asking for its optical partner. Runs that are done are not repeated;
delete --work to start anew.
Usage: make bench-learn, or benches/learning.py [--seeds 3] [--recipes] [--pairs ../shared/data/optisar_pair]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs/train"
PROTOCOLS = {"all": "ALL", "o2s": "optical to SAR", "s2o": "SAR to optical"}
# What the losses of a recipe in configs/train add to those of demo.toml.
ALIGNED = ("loss.alignment_weight=2.0", "loss.alignment_distance=euclidean")
ALIGNED_SQUARED = ("loss.alignment_weight=1.0", "loss.alignment_distance=squared")
CONTRAST = ("loss.label_smoothing=0.1", "loss.triplet_weight=0.3", "loss.triplet_margin=0.3", "loss.supcon_weight=0.5",
            "loss.info_nce_weight=1.0", "loss.temperature=0.07")
# Its start is the ViT of the pretrained TransOSS.
SDF_NET = ("model.family=sdf_net", "start.from=imagenet", "loss.orthogonality_weight=10.0", "loss.structure_weight=1.0")
RECIPES = {
    "TransOSS (`demo.toml`)": (),
    "TransOSS, aligned (`mos.toml`)": ALIGNED,
    "TransOSS, contrast": CONTRAST,
    "SDF-Net (`sdf_net.toml`)": SDF_NET,
    "SDF-Net, aligned (`sdf_net_aligned.toml`)": SDF_NET + ALIGNED_SQUARED,
    "SDF-Net, contrast (`contrast.toml`)": SDF_NET + CONTRAST,
}


def main():
    arguments = parse_arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.recipes:
        recipes(arguments)
    else:
        synthetic(arguments)
    if arguments.pairs:
        real(arguments)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/shipreid")
    parser.add_argument("--work", type=Path, default=ROOT / "target/learning")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ids", type=int, default=IDS, help="ships, half of them to train on")
    parser.add_argument("--pretraining-pairs", type=int, default=PAIRS)
    parser.add_argument("--recipes", action="store_true", help="compares RECIPES instead of starts")
    parser.add_argument("--pairs", help="a folder in the layout of OptiSar_Pair, for the real tiles")
    return parser.parse_args()


IDS = 1200
PAIRS = 4000


def draw(arguments):
    """The synthetic ships to fine-tune on and find, and the pairs to pretrain on."""
    data = arguments.work / "synthetic"
    if not (data / "synthetic_ships.png").exists():
        run(arguments, "synth", "--ids", arguments.ids, "--pairs", arguments.pretraining_pairs, "--views", 3,
            "--out", data)
    return data / "synthetic_hoss", data / "synthetic_pairs"


def synthetic(arguments):
    hoss, pairs = draw(arguments)
    by_size = json.loads(run(arguments, "eval", "--data", hoss, "--by-size", "--json"))["protocols"]
    rows = {"size alone": [scores(by_size)], "untrained": [], "fine-tuned": [], "pretrained": [],
            "pretrained, then fine-tuned": []}
    for seed in range(1, arguments.seeds + 1):
        alone = train(arguments, "demo.toml", f"fine_tuned_{seed}", f"seed={seed}", f"data.root={hoss}")
        pretrained, _ = train(arguments, "synthetic_pairs.toml", f"pretrained_{seed}", f"seed={seed}",
                              f"data.root={pairs}")
        both = train(arguments, "demo.toml", f"both_{seed}", f"seed={seed}", f"data.root={hoss}",
                     "start.from=model", f"start.path={pretrained / 'model'}")
        for name, evaluated in (("untrained", alone[1][0]), ("fine-tuned", alone[1][-1]),
                                ("pretrained", both[1][0]), ("pretrained, then fine-tuned", both[1][-1])):
            rows[name].append(scores(evaluated["protocols"]))
    show(arguments, rows)
    best = rows["pretrained, then fine-tuned"]
    for name in ("size alone", "untrained"):
        ratios = [mean(best, protocol) / mean(rows[name], protocol) for protocol in PROTOCOLS]
        print(f"| last row over {name} | " + " | ".join(f"{ratio:.1f}" for ratio in ratios) + " |")


def recipes(arguments):
    hoss, pairs = draw(arguments)
    rows = {name: [] for name in RECIPES}
    for seed in range(1, arguments.seeds + 1):
        pretrained, _ = train(arguments, "synthetic_pairs.toml", f"pretrained_{seed}", f"seed={seed}",
                              f"data.root={pairs}")
        for number, (name, settings) in enumerate(RECIPES.items()):
            # The first is the last row of the other table.
            folder = f"recipe_{number}_{seed}" if settings else f"both_{seed}"
            trained = train(arguments, "demo.toml", folder, f"seed={seed}", f"data.root={hoss}", "start.from=model",
                            f"start.path={pretrained / 'model'}", *settings)
            rows[name].append(scores(trained[1][-1]["protocols"]))
    show(arguments, rows)
    first, *others = rows.items()
    for name, seeds in others:
        ratios = [mean(seeds, protocol) / mean(first[1], protocol) for protocol in PROTOCOLS]
        print(f"| {name} over the first row | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")


def show(arguments, rows):
    print(f"\n{arguments.ids // 2} synthetic ships that training never saw, mAP / R1 in percent, "
          f"mean of {arguments.seeds} seeds (lowest to highest mAP):\n")
    print("| | " + " | ".join(PROTOCOLS.values()) + " |\n" + "|---" * (1 + len(PROTOCOLS)) + "|")
    for name, seeds in rows.items():
        print(f"| {name} | " + " | ".join(cell([seed[protocol] for seed in seeds]) for protocol in PROTOCOLS) + " |")


def real(arguments):
    curves = [
        train(arguments, "optisar_pairs.toml", f"optisar_{seed}", f"seed={seed}", f"data.root={arguments.pairs}")[1]
        for seed in range(1, arguments.seeds + 1)
    ]
    queries = next(row for row in curves[0][0]["protocols"] if row["protocol"] == "s2o")["queries"]
    print(f"\n{queries} real tiles of scenes that training never saw, SAR to optical, in percent, "
          f"mean of {arguments.seeds} seeds:\n")
    print("| epoch | R1 | R5 | R10 | mAP |\n|---|---|---|---|---|")
    chance = [100 * rank / queries for rank in (1, 5, 10)]
    average = 100 * sum(1 / rank for rank in range(1, queries + 1)) / queries
    print("| chance | " + " | ".join(f"{share:.1f}" for share in (*chance, average)) + " |")
    for evaluations in zip(*curves):
        rows = [next(row for row in evaluation["protocols"] if row["protocol"] == "s2o") for evaluation in evaluations]
        shares = [100 * statistics.mean(row[what] for row in rows) for what in ("R1", "R5", "R10", "mAP")]
        epoch = evaluations[0]["epoch"] or "untrained"
        print(f"| {epoch} | " + " | ".join(f"{share:.1f}" for share in shares) + " |")


def train(arguments, config, name, *settings):
    """The folder of a run, and its evaluations in order."""
    out = arguments.work / name
    done = out / "seconds"
    if not done.exists():
        started = time.monotonic()
        sets = [part for setting in settings for part in ("--set", setting)]
        run(arguments, "train", "--local", CONFIGS / config, "--out", out, *sets)
        done.write_text(f"{time.monotonic() - started:.0f}")
    print(f"{name}: {done.read_text()} s", file=sys.stderr)
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return out, [event for event in events if event["event"] == "evaluated"]


def run(arguments, *command):
    command = [str(part) for part in (arguments.binary, *command)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def scores(protocols):
    return {row["protocol"]: (100 * row["mAP"], 100 * row["R1"]) for row in protocols}


def mean(rows, protocol):
    return statistics.mean(row[protocol][0] for row in rows)


def cell(values):
    maps, r1 = [value[0] for value in values], statistics.mean(value[1] for value in values)
    spread = f" ({min(maps):.1f} to {max(maps):.1f})" if len(maps) > 1 else ""
    return f"{statistics.mean(maps):.1f} / {r1:.1f}{spread}"


if __name__ == "__main__":
    main()
