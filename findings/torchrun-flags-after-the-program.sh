#!/bin/sh
# torchrun: some flags of the program that it is to start are refused as flags of its own.
#
# One would expect: torchrun's own flags end where the program's name stands, as its usage says (torchrun [options]
# training_script ...), and whatever follows is the program's.
# What happens (torch 2.13.0 with Python 3.11): a flag after the program's name that abbreviates several of torchrun's own is
# refused, "ambiguous option: --local could match --local-ranks-filter, ...". One that abbreviates a single flag of
# torchrun, or is one, is passed on to the program. With `--` before the program's name all are passed on. The cause is
# argparse, which classes every argument before it knows where the remaining ones begin; torchrun leaves abbreviations on.
# Why it matters here: `torchrun --no-python shipreid train --local run.toml` ends with this message, and docs/training.md
# puts `--` before the program.
# Only the parser is of interest, and torch cannot be imported without gigabytes of CUDA: two files of the wheel
# (530 MB to download) are used, with stand-ins for the rest of it.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --no-cache-dir --dest "$folder" torch==2.13.0
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import contextlib
import importlib.util
import io
import platform
import sys
import types
import zipfile
from pathlib import Path
from unittest.mock import MagicMock

folder = Path(sys.argv[1])
wheel = next(folder.glob("torch-2.13.0-*.whl"))
REAL = {f"torch.distributed.{name}": folder / f"torch/distributed/{name}.py" for name in ("run", "argparse_util")}
zipfile.ZipFile(wheel).extractall(folder, [str(path.relative_to(folder)) for path in REAL.values()])


class StandIn(types.ModuleType):
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock()


class Finder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name in REAL:
            return importlib.util.spec_from_file_location(name, REAL[name])
        return importlib.util.spec_from_loader(name, cls) if name.split(".")[0] == "torch" else None

    @staticmethod
    def create_module(spec):
        return StandIn(spec.name)

    @staticmethod
    def exec_module(module):
        pass


sys.meta_path.insert(0, Finder)
parser = importlib.import_module("torch.distributed.run").get_args_parser()
parser.prog = "torchrun"


def parse(words):
    """What torchrun takes as the program and its arguments, or why it refuses."""
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            parsed = parser.parse_args(words.split())
    except SystemExit:
        found = message.getvalue().splitlines()[-1]
    else:
        found = " ".join([parsed.training_script, *parsed.training_script_args])
    print(f"torchrun {words}\n    {found}")
    return found


print("torch 2.13.0, Python", platform.python_version())
as_seen = (
    parse("--no-python program --local x").startswith("torchrun: error: ambiguous option: --local could match --local-")
    and parse("--no-python program --rdzv-b x") == "program --rdzv-b x"
    and parse("--no-python program --nnodes 2") == "program --nnodes 2"
    and parse("--no-python -- program --local x") == "program --local x"
)
sys.exit(0 if as_seen else "another behaviour than was seen")
PYTHON
