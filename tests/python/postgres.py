"""PostgreSQL as Debian installs it, in a folder and on a Unix socket of its own."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import quote

# The user that it runs as, since it refuses to run as root.
NOBODY = 65534


def programs():
    """Where the newest one is, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found else None


class Postgres:
    """A database server with these settings; its log is in `folder`."""

    def __init__(self, settings=(), parent=None):
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-", dir=parent))
        os.chown(self.folder, NOBODY, NOBODY)
        self.run("initdb", "-D", self.data, "-U", "shipreid", "-A", "trust", "-E", "UTF8", stdout=subprocess.DEVNULL)
        words = [word for setting in ("listen_addresses=", *settings) for word in ("-c", setting)]
        self.log = open(self.folder / "log", "w+")
        self.process = subprocess.Popen(self.command("postgres", "-D", self.data, "-k", self.folder, *words),
                                        cwd=self.folder, stderr=self.log)
        while "ready to accept connections" not in Path(self.log.name).read_text():
            assert self.process.poll() is None, Path(self.log.name).read_text()

    @property
    def data(self):
        return self.folder / "data"

    @property
    def url(self):
        return f"postgres://shipreid@{quote(str(self.folder), safe='')}/postgres"

    def command(self, program, *words):
        return ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "--pdeathsig", "KILL",
                programs() / program, *words]

    def run(self, program, *words, **options):
        return subprocess.run(self.command(program, *words), cwd=self.folder, check=True, **options)

    def query(self, sql):
        """What psql prints of it, without decoration."""
        return self.psql("-c", sql)

    def psql(self, *words):
        return self.run("psql", "-h", self.folder, "-U", "shipreid", "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-XAtq",
                        *words, stdout=subprocess.PIPE, text=True).stdout

    def end(self):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder)
