"""A fresh virtual environment with the built wheel, what it needs, and nothing else.

Installing torch takes minutes and a network, so what the wheel declares (and what that declares,
and so on) is linked in from this environment, distribution by distribution. Whatever is not
declared is not there: extras that are not asked for least of all.
"""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import PathDistribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


class Fresh:
    """The environment's folder, its programs and the wheel that is installed in it, with extras."""

    def __init__(self, folder, *extras):
        self.wheel = built(folder / "dist")
        self.folder = folder / "venv"
        venv.create(self.folder, with_pip=False, symlinks=True)
        self.python = self.folder / "bin" / "python"
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", "--no-index", str(self.wheel)], check=True)
        self.site = next(self.folder.glob("lib/python*/site-packages"))
        for name in sorted(declared(self.wheel, *extras)):
            self._link(distribution(name))

    def _link(self, found):
        own = Path(sysconfig.get_path("purelib"))
        for name in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            if (own / name).exists() and not (self.site / name).exists():
                (self.site / name).symlink_to(own / name)

    def run(self, *command, cwd=None):
        """Runs a program of the environment; what it printed."""
        program = [str(self.folder / "bin" / command[0]), *command[1:]]
        return subprocess.run(program, cwd=cwd, capture_output=True, text=True, check=False)


def built(folder):
    """The wheel, of the sdist, as `make dist` makes them."""
    command = [sys.executable, "-m", "build", "--quiet", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def declared(wheel, *extras):
    """Names of the distributions that the wheel needs with these extras, directly or not."""
    with zipfile.ZipFile(wheel) as opened:
        folder = next(n for n in opened.namelist() if n.endswith(".dist-info/METADATA"))
        ours = PathDistribution(zipfile.Path(opened, folder.rpartition("/")[0] + "/"))
        waiting, wanted = _needs(ours), list(extras)
        while wanted:
            more = _requirements(ours, wanted.pop())
            wanted += [extra for r in more if r.name == "inrun" for extra in r.extras]
            waiting |= {r.name for r in more} - {"inrun"}
    found = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting |= _needs(distribution(name))
    return found


def _needs(found):
    return {r.name for r in _requirements(found, "")}


def _requirements(found, extra):
    every = [Requirement(text) for text in found.requires or []]
    return [r for r in every if r.marker is None or r.marker.evaluate({"extra": extra})]
