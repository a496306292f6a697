#!/usr/bin/env python3
"""Puts the pinned libtorch into the user's cache, once a machine, and links it into the checkout.

The default tree is the CPU part of PyTorch's wheel (540 MB to download, 490 MB on disk); `--cuda` installs the
whole wheel with its CUDA libraries (4.7 GB). Other Python packages are neither needed nor touched.
"""

import argparse
import fcntl
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "2.13.0"
# Wheels and their SHA-256. libtorch_cpu.so is linked against the CUDA run-time and profiling libraries, which it
# never calls without a GPU.
WHEELS = [
    ("torch", VERSION, "60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7"),
    ("nvidia-cuda-runtime", "13.0.96", "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548"),
    ("nvidia-cuda-cupti", "13.0.85", "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8"),
]
LIBRARIES = {
    "torch/lib/libc10.so",
    "torch/lib/libtorch_cpu.so",
    "torch/lib/libtorch.so",
    "torch/lib/libgomp.so.1",
    "nvidia/cu13/lib/libcudart.so.13",
    "nvidia/cu13/lib/libcupti.so.13",
}
HEADERS = "torch/include/"
FREE_BYTES = {"cpu": 2 << 30, "cuda": 12 << 30}
# A wheel is only unpacked, so the Python that runs this script need not match; pip compares these names exactly.
PLATFORMS = [f"--platform=manylinux{glibc}_x86_64" for glibc in ("2014", "_2_17", "_2_25", "_2_27", "_2_28")]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


class Unable(Exception):
    """Why there is no libtorch, in one line."""


def main():
    arguments = parse_arguments()
    try:
        tree = given_tree() or cached_tree("cuda" if arguments.cuda else "cpu")
        if arguments.link:
            link(Path(arguments.link), tree / "torch")
        else:
            print(tree)
    except Unable as cause:
        sys.exit(f"libtorch: {cause}")
    except KeyboardInterrupt:
        sys.exit("libtorch: interrupted; run the same command again")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--link", metavar="PATH", help="make PATH a link to the tree's torch folder")
    parser.add_argument("--cuda", action="store_true", help="the whole wheel with CUDA, not the CPU part")
    return parser.parse_args()


def given_tree():
    """A tree that the user keeps elsewhere: the folder that holds torch/lib and torch/include."""
    given = os.environ.get("SHIPREID_LIBTORCH_DIR")
    if given and not (Path(given) / "torch/lib/libtorch_cpu.so").is_file():
        raise Unable(f"SHIPREID_LIBTORCH_DIR={given} holds no torch/lib/libtorch_cpu.so")
    return Path(given).absolute() if given else None


def cached_tree(variant):
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(home) / "shipreid"
    tree = cache / f"libtorch-{VERSION}-{variant}"
    if not (tree / "complete").is_file():
        check_machine()
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with open(cache / "libtorch.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not (tree / "complete").is_file():
                    fetch(variant, tree)
        except OSError as cause:
            raise Unable(f"cannot write to {cache}: {cause}") from cause
    return tree


def check_machine():
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise Unable(f"pinned for x86_64 Linux, not {platform.machine()} {sys.platform}; "
                     "set SHIPREID_LIBTORCH_DIR to an unpacked PyTorch wheel")
    if subprocess.run([*PIP, "--version"], capture_output=True).returncode != 0:
        raise Unable(f"{sys.executable} has no pip; install it (Debian: apt install python3-pip)")


def fetch(variant, tree):
    """Builds the tree beside its place and moves it there whole, so that a tree is complete or absent."""
    free = shutil.disk_usage(tree.parent).free
    if free < FREE_BYTES[variant]:
        raise Unable(f"{tree.parent} has {free >> 20} MiB free and needs {FREE_BYTES[variant] >> 20}")
    for left_over in tree.parent.glob(f"{tree.name}.partial-*"):
        shutil.rmtree(left_over)
    partial = Path(tempfile.mkdtemp(prefix=f"{tree.name}.partial-", dir=tree.parent))
    try:
        if variant == "cuda":
            install_cuda(partial)
        else:
            for name, version, digest in WHEELS:
                unpack(download(tree.parent / "wheels", name, version, digest), partial)
        missing = sorted(name for name in LIBRARIES if not (partial / name).is_file())
        if missing:
            raise Unable(f"the wheels lack {', '.join(missing)}")
        (partial / "complete").touch()
        partial.chmod(0o755)
        shutil.rmtree(tree, ignore_errors=True)
        partial.rename(tree)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(tree.parent / "wheels", ignore_errors=True)
    print(f"libtorch: {tree} is ready", file=sys.stderr)


def download(folder, name, version, digest):
    """The wheel's path; wheels that an interrupted run had finished are not fetched again."""
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    requirement = target / "requirement.txt"
    requirement.write_text(f"{name}=={version} --hash=sha256:{digest}\n")
    print(f"libtorch: fetching {name} {version}", file=sys.stderr)
    command = [*PIP, "download", "--no-deps", "--only-binary=:all:", "--require-hashes", "--retries=10",
               *PLATFORMS, "--python-version=3.11", "--implementation=cp", f"--dest={target}",
               f"--requirement={requirement}"]
    # pip's progress belongs on the terminal; standard output is for the path.
    if subprocess.run(command, stdout=sys.stderr).returncode != 0:
        raise Unable(f"pip could not fetch {name} {version}; run the same command again")
    return next(target.glob("*.whl"))


def unpack(wheel, tree):
    with zipfile.ZipFile(wheel) as archive:
        wanted = [name for name in archive.namelist() if name in LIBRARIES or name.startswith(HEADERS)]
        archive.extractall(tree, wanted)


def install_cuda(tree):
    command = [*PIP, "install", "--no-compile", "--only-binary=:all:", f"--target={tree}", f"torch=={VERSION}"]
    if subprocess.run(command, stdout=sys.stderr).returncode != 0:
        raise Unable(f"pip could not install torch {VERSION} with CUDA; run the same command again")


def link(place, target):
    if place.is_symlink() and place.readlink() == target:
        return
    if place.exists() and not place.is_symlink():
        raise Unable(f"{place} is in the way of a link to {target}")
    # Renamed into place, since another make may link at the same time.
    fresh = place.with_name(f".{place.name}-{os.getpid()}")
    fresh.symlink_to(target)
    fresh.rename(place)


if __name__ == "__main__":
    main()
