"""Draws valid images from a seed and says what each one shows: one line of JSON each in `manifest.jsonl`.

    python tests/python/images FOLDER --seed 16 --tiff 2000 --other 500

File N of a seed is the same whatever else is drawn; `--only N` draws it alone.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import traceback
import warnings

import numpy as np

import oracle
import pictures
import tiff

PICTURES = 1_000_000


def draw(task):
    folder, seed, number = task
    rng = np.random.default_rng([seed, number])
    stem = str(folder / f"{number:07d}")
    drawn = pictures.draw(rng, stem) if number >= PICTURES else tiff.draw(rng, stem)
    return oracle.judge(drawn)


def quiet():
    """Libraries in C tell of codecs they lack on the standard error; what matters comes back as a line."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    warnings.simplefilter("ignore")


def draw_or_tell(task):
    try:
        return draw(task)
    except Exception as error:
        return {"number": task[2], "error": f"{error!r}\n{traceback.format_exc()}"}


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=pathlib.Path)
    arguments.add_argument("--seed", type=int, default=16)
    arguments.add_argument("--tiff", type=int, default=2000)
    arguments.add_argument("--other", type=int, default=500)
    arguments.add_argument("--only", type=int)
    arguments.add_argument("--jobs", type=int, default=os.cpu_count())
    given = arguments.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    numbers = [*range(given.tiff), *range(PICTURES, PICTURES + given.other)]
    if given.only is not None:
        numbers = [given.only]
    tasks = [(given.folder, given.seed, number) for number in numbers]
    # A folder that is run as a program can be forked only, and a worker that dies must end it.
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(given.jobs, context, quiet) as pool:
        lines = list(pool.map(draw_or_tell, tasks, chunksize=25))
    failed = [line for line in lines if "error" in line]
    for line in failed[:20]:
        print(f"file {line['number']} of seed {given.seed}: {line['error']}")
    with open(given.folder / "manifest.jsonl", "w") as manifest:
        manifest.writelines(json.dumps(line) + "\n" for line in lines if "error" not in line)
    raise SystemExit(f"{len(failed)} files could not be drawn" if failed else 0)


if __name__ == "__main__":
    main()
