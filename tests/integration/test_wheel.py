"""What a user gets: the wheel in a fresh environment, with core dependencies only."""

import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import inrun
from tests.integration.fresh import Fresh, declared

EXTRAS = (
    "transformers", "accelerate", "lightning", "peft", "datasets", "trl", "altair",
    "vl_convert", "sklearn",
)  # fmt: skip
HEAVY = ("torch", "pyarrow", "scipy", "sklearn", "altair", "jinja2", "typer", "rich")

EVERY_MODULE = """
import importlib, json, pkgutil, inrun
failed = {}
for found in pkgutil.walk_packages(inrun.__path__, "inrun."):
    try:
        importlib.import_module(found.name)
    except ImportError as error:
        failed[found.name] = str(error)
print(json.dumps(failed))
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    return Fresh(tmp_path_factory.mktemp("fresh"))


def test_extras_are_not_what_the_wheel_needs(fresh):
    assert not set(EXTRAS) & declared(fresh.wheel)
    for name in EXTRAS:
        assert "No module named" in fresh.run("python", "-c", f"import {name}").stderr


def test_every_module_imports_or_names_its_extra(fresh):
    done = fresh.run("python", "-c", EVERY_MODULE)
    failed = json.loads(done.stdout)
    extras = {"inrun.integrations.transformers": "transformers", "inrun.report": "report"}
    extras |= {"inrun.integrations.lightning": "lightning", "inrun.demo": "demo"}
    extras |= {"inrun.integrations._trainer": "transformers"}
    extras |= {
        f"inrun.training.{n}": "train"
        for n in ("_arguments", "_checkpoints", "_plan", "_run", "_trainer")
    }
    assert set(failed) == set(extras)
    for name, said in failed.items():
        assert f"pip install 'inrun[{extras[name]}]'" in said


def test_a_command_that_needs_an_extra_names_it(fresh, tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\n" + "good,1\nbad,0\n" * 60)
    done = fresh.run("inrun", "train", "--model", "no/model", "--data", "rows.csv", cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'inrun[train]'" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_newcomer_without_extras_attaches_and_reads_values(fresh, tmp_path):
    script = tmp_path / "first.py"
    script.write_text(
        "import torch, inrun\n"
        "model = torch.nn.Linear(3, 2); optimizer = torch.optim.AdamW(model.parameters())\n"
        "x, y = torch.randn(16, 3), torch.randint(2, (16,))\n"
        "loss = lambda m, b: torch.nn.functional.cross_entropy(m(b[0]), b[1])\n"
        "utility = inrun.Utility(loss, (x[8:], y[8:]))\n"
        "attribution = inrun.attach(model, optimizer, utility, store='run')\n"
        "with attribution.batch(range(8)): loss(model, (x[:8], y[:8])).backward()\n"
        "optimizer.step(); attribution.detach()\n"
        "print(inrun.load('run').values().num_rows)\n"
    )
    done = fresh.run("python", str(script), cwd=tmp_path)
    assert done.stdout.strip() == "8", done.stderr
    assert fresh.run("inrun", "audit", "run", cwd=tmp_path).returncode in (0, 2)
    asked = fresh.run("inrun", "report", "run", cwd=tmp_path)
    assert asked.returncode == 2
    assert "pip install 'inrun[report]'" in " ".join(asked.stderr.split())
    assert "Traceback" not in asked.stderr


def test_types_and_assets_ship(fresh):
    with zipfile.ZipFile(fresh.wheel) as opened:
        names = set(opened.namelist())
    assert "inrun/py.typed" in names
    assert {
        f"inrun/report/assets/{name}" for name in ("page.html", "page.css", "export.js")
    } <= names
    assert all(name.startswith(("inrun/", f"inrun-{inrun.__version__}")) for name in names)
    with tarfile.open(next(fresh.wheel.parent.glob("*.tar.gz"))) as opened:
        inside = {name.split("/", 1)[1] for name in opened.getnames() if "/" in name}
    assert {"README.md", "docs/index.md", "tests/conftest.py", "Makefile"} <= inside


def test_the_public_names_pass_a_strict_type_checker_from_outside(fresh, tmp_path):
    script = tmp_path / "typed_user.py"
    script.write_text((Path(__file__).parent / "typed_user.py").read_text())
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(fresh.python)]
    options = ["--config-file", "", "--untyped-calls-exclude", "torch", "--follow-imports=silent"]
    checked = subprocess.run(
        [*command, *options, "--disable-error-code=import-untyped", str(script)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_importing_inrun_imports_nothing_heavy():
    asked = "import sys, inrun; inrun.attach if {0} else None; print(sorted(sys.modules))"
    for touched, absent in (
        (False, (*EXTRAS, *HEAVY, "numpy")),
        (True, (*EXTRAS, "scipy", "sklearn", "altair", "jinja2", "typer", "vl_convert")),
    ):
        command = [sys.executable, "-c", asked.format(touched)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert not set(absent) & set(eval(done.stdout)), touched


def test_all_public_names_are_there_and_listed():
    for name in inrun.__all__:
        assert getattr(inrun, name) is not None
        assert name in dir(inrun)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = inrun.nothing
