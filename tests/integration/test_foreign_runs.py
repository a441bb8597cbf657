"""A run, its samples and its pictures from somebody else: shown as text, at the cost of a cell."""

import dataclasses
import io
import json
import shutil
import struct
import subprocess
import sys
import warnings
import zlib
from contextlib import nullcontext

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import vl_convert
from PIL import Image

from inrun.cli import main
from inrun.errors import InRunWarning, MisuseError
from inrun.ledger import read_samples
from inrun.report import charts, write_report
from inrun.report._live import live_charts
from inrun.report._page import _asset
from inrun.report._shown import small_image
from inrun.training import TrainConfig
from inrun.training._samples import read_splits
from inrun.truth import AUDIT
from tests.integration.stored import as_older_version, random_run

EVIL = "\x1b]0;pwned\x07\x1b[2J\x9b31m\u202e"


def png(size=(4, 4)):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def bomb(width=60_000, height=60_000):
    """A PNG of a few bytes that says it has 3.6 thousand million pixels."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


DAMAGED = {
    "cut": png()[:40], "signature": png()[:8], "empty": b"", "noise": bytes(range(256)),
    "checksum": flipped(png(), 45), "header": flipped(png(), 20), "bomb": bomb(),
    "large": bomb(9_000, 9_000), "tiff": b"II*\0" + b"\xff" * 40, "gif": b"GIF89a" + b"\xff" * 9,
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_picture_costs_its_own_cell(name, tmp_path):
    assert small_image(DAMAGED[name]) is None
    run = random_run(tmp_path / "run", 5)
    run.describe({"sample_id": range(5), "image": [png()] * 5})
    samples = run.samples().to_pylist()
    samples[2]["image"] = DAMAGED[name]
    pq.write_table(pa.Table.from_pylist(samples), tmp_path / "rows.parquet")
    good = run.samples().set_column(1, "image", [[s["image"] for s in samples]])
    run.write_samples(good)
    write_report(run, tmp_path / "report.html")
    with pytest.warns(InRunWarning, match="1 pictures") if name not in PNGS else nullcontext():
        read_samples(tmp_path / "rows.parquet")


PNGS = {"cut", "signature", "checksum", "header", "bomb", "large"}  # kept as they are, unread


def test_pictures_are_read_from_the_datas_own_folder_alone(tmp_path):
    (tmp_path / "data" / "in").mkdir(parents=True)
    for place in ("data/a.png", "data/in/b.png", "secret.png"):
        (tmp_path / place).write_bytes(png())
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    names = ["a.png", "in/b.png", str(tmp_path / "data" / "a.png"), "in/../a.png"]
    others = ["../secret.png", str(tmp_path / "secret.png"), "link.png", "/etc/passwd", "a\0b"]
    rows = [{"sample_id": i, "image": name} for i, name in enumerate(names + others)]
    file = tmp_path / "data" / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.warns(InRunWarning, match=r"5 pictures .*--pictures FOLDER"):
        table = read_samples(file)
    assert [cell is not None for cell in table["image"].to_pylist()] == [True] * 4 + [False] * 5
    with pytest.warns(InRunWarning, match="pictures"):
        told = read_samples(file, pictures=tmp_path)["image"].to_pylist()
    assert told[5] is not None  # named whole, and in the folder that was said
    assert told[7] is None


def test_training_rows_name_pictures_of_their_own_folder_alone(tmp_path):
    (tmp_path / "data").mkdir()
    lines = ["image,label"]
    for number in range(24):
        (tmp_path / "data" / f"{number}.png").write_bytes(png())
        lines.append(f"{number}.png,{number % 2}")
    (tmp_path / "secret.png").write_bytes(png())
    file = tmp_path / "data" / "rows.csv"
    file.write_text("\n".join(lines))
    config = TrainConfig("image-classification", "cnn", str(file), batch=4)
    assert len(read_splits(config).training) == 20
    for secret in ("../secret.png", str(tmp_path / "secret.png"), "/etc/passwd"):
        file.write_text("\n".join([*lines, f"{secret},0"]))
        with pytest.raises(MisuseError, match=r"the data's own folder, and other.*--pictures"):
            read_splits(config)
    file.write_text("\n".join([*lines, f"{tmp_path / 'secret.png'},0"]))
    told = dataclasses.replace(config, pictures=str(tmp_path))
    with pytest.raises(MisuseError, match=r"0\.png"):  # relative names begin there
        read_splits(told)
    file.write_text(
        "\n".join(lines).replace("\n", f"\n{tmp_path}/data/") + f"\n{tmp_path}/secret.png,0"
    )
    assert len(read_splits(told).training) > 20


def test_a_bomb_is_refused_where_it_is_described(tmp_path):
    run = random_run(tmp_path / "run", 5)
    buffer = io.BytesIO()
    Image.new("1", (15_000, 15_000)).save(buffer, "GIF")
    with pytest.raises(MisuseError, match="pixels"):
        run.describe({"sample_id": [1], "image": [buffer.getvalue()]})


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A run of an older version, every name and text of which holds escape sequences."""
    folder = tmp_path_factory.mktemp("hostile") / "run"
    ids = [f"{EVIL}{i}" for i in range(30)]
    run = random_run(folder, 30, targets=(f"a{EVIL}", f"b{EVIL}"), ids=ids)
    kinds = [f"[red]{EVIL}{i % 2}" for i in range(30)]
    run.describe({"sample_id": ids, "text": [EVIL] * 30, "label": kinds, "source": kinds})
    as_older_version(folder)
    manifest = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(manifest | {"estimator": EVIL}))
    row = {
        f.name: EVIL if f.type == pa.string() else 4 if f.type == pa.int64() else 0.5 for f in AUDIT
    }
    row |= {"low_precision": False, "values": [1.0, 2.0, 3.0, 4.0], "truth": [1.0, 2.0, 3.0, 5.0]}
    pq.write_table(pa.Table.from_pylist([row]).cast(AUDIT), folder / "audit.parquet")
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["audit", "RUN"], ["prune", "RUN"], ["rollup", "RUN"], ["rollup", "RUN", "--by", "label"],
        ["report", "RUN"], ["trace", "RUN", "--target", f"a{EVIL}"],
        ["trace", "RUN", "--target", EVIL], ["prune", "RUN", "--balanced", EVIL],
        ["audit", f"RUN{EVIL}"], ["rollup", "RUN", "--by", EVIL],
    ],
    ids=lambda c: ascii(" ".join(c)),
)  # fmt: skip
def test_no_command_prints_an_escape_of_a_foreign_run(command, hostile, monkeypatch, capsys):
    arguments = [word.replace("RUN", str(hostile)) for word in command]
    monkeypatch.setattr(sys, "argv", ["inrun", *arguments])
    monkeypatch.setattr(warnings, "showwarning", None)  # put back afterwards
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code in (None, 0, 2)  # what is wrong is said; 1 would be a fault
    said = "".join(capsys.readouterr())
    assert said
    bad = {c for c in said if not (c.isprintable() or c == "\n")}
    assert not bad, ascii(said)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_charts_are_drawn_where_no_string_is_compiled(tmp_path):
    assert "unsafe-eval" not in _asset("page.html")
    assert "ast: true" in _asset("page.js")
    ledger = random_run(tmp_path / "run").ledger()
    rows = [{
        "step": 1, "fall": 0.1, "from": 0, "to": 1, "samples": 3, "every": 4, "sign": "helped",
        "id": "7", "value": 0.5, "group": "g", "low": 0.4, "high": 0.6, "target": "t",
        "x": 0.1, "y": 0.2, "color": "c", "chosen": 1,
    }]  # fmt: skip
    drawn = live_charts(ledger, 3) | {
        "residuals": charts.residuals(ledger).to_dict(),
        "bars": charts.bars([("a", 1.0), ("b", 0.5)], "title", (0, 1)).to_dict(),
        "scatter": charts.scatter([(0.0, 0.1, "g"), (1.0, 0.9, "h")], "x", "y").to_dict(),
        "errors": charts.with_error_bars([("a", [1.0, 2.0, 3.0])], "title").to_dict(),
    }
    for spec in drawn.values():
        spec.setdefault("datasets", {})["rows"] = rows
    written = json.dumps(drawn).replace("[factor]", "1000")  # as the page's script does
    (tmp_path / "charts.json").write_text(written)
    bundle = vl_convert.javascript_bundle("window.vegaEmbed=vegaEmbed;")
    (tmp_path / "renderer.js").write_text(bundle)

    def svg(options, *flags):
        script = __file__.replace("test_foreign_runs.py", "charts_without_eval.js")
        files = [str(tmp_path / name) for name in ("renderer.js", "charts.json")]
        return subprocess.run(
            ["node", *flags, script, *files, json.dumps(options)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    strict = "--disallow-code-generation-from-strings"
    found = json.loads(svg({"ast": True, "actions": False}, strict).stdout.splitlines()[-1])
    assert found["refused"]
    compiled = json.loads(svg({"actions": False}).stdout.splitlines()[-1])
    assert found["svg"] == compiled["svg"]
    assert "EvalError" in svg({"actions": False}, strict).stderr
