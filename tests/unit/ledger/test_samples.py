"""What the samples are: told to a run, or read from a file; bad rows are named."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from inrun.errors import MisuseError
from inrun.ledger import read_samples, samples_table
from tests.integration.stored import random_run

ROWS = [{"sample_id": 3, "text": "a", "n": 1}, {"sample_id": 1, "text": "b", "n": None}]


@pytest.mark.parametrize(
    "form",
    [
        ROWS,
        {"sample_id": [3, 1], "text": ["a", "b"], "n": [1, None]},
        {"sample_id": torch.tensor([3, 1]), "text": np.array(["a", "b"]), "n": [1, None]},
        pa.Table.from_pylist(ROWS),
    ],
    ids=["rows", "columns", "arrays", "arrow"],
)
def test_every_form_gives_the_same_table(tmp_path, form):
    run = random_run(tmp_path / "run", 5)
    run.describe(form, validation=ROWS)
    assert run.samples().to_pylist() == ROWS
    assert run.samples("validation").to_pylist() == ROWS


def test_a_run_that_was_told_nothing_has_no_samples(tmp_path):
    assert random_run(tmp_path / "run", 5).samples() is None


@pytest.mark.parametrize(
    ("samples", "id_type", "message"),
    [
        ({"id": [1]}, None, "no column 'sample_id'"),
        ({"sample_id": [1, 1]}, None, "1 came more often"),
        ({"sample_id": ["x"]}, "int64", "ids are integers"),
        ({"sample_id": [1, None]}, None, "1 of the samples have no id"),
        ({"sample_id": [1], "text": ["a", "b"]}, None, "different lengths"),
        ("a string", None, "came as str"),
        ({"sample_id": [1], "image": [b"not one"]}, None, "is not an image"),
    ],
)
def test_what_cannot_be_joined_or_shown_is_said(samples, id_type, message):
    with pytest.raises(MisuseError, match=message):
        samples_table(samples, id_type)


def test_ids_take_the_runs_own_type():
    assert samples_table({"sample_id": [7]}, "string")["sample_id"].to_pylist() == ["7"]
    assert samples_table({"sample_id": ["7"]}, "int64")["sample_id"].to_pylist() == [7]


def jpeg(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_images_of_every_form_are_the_same_pixels(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    Image.fromarray(pixels).save(tmp_path / "image.png")
    forms = [
        pixels, pixels / 255.0, torch.tensor(pixels).permute(2, 0, 1), Image.fromarray(pixels),
        str(tmp_path / "image.png"), jpeg(pixels), {"bytes": jpeg(pixels), "path": None},
    ]  # fmt: skip
    table = samples_table({"sample_id": list(range(len(forms))), "image": forms}, None)
    for image in table["image"].to_pylist():
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(image))), pixels)


def test_nested_cells_become_json():
    table = samples_table({"sample_id": [1, 2], "meta": [{"a": [1]}, None]}, None)
    assert table["meta"].to_pylist() == ['{"a": [1]}', None]


def written(tmp_path, form):
    path = tmp_path / f"rows.{form}"
    rows = [{"key": "007", "sentence": "a, b"}, {"key": "7", "sentence": "line\nbreak"}]
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif form == "csv":
        path.write_text('key,sentence\n007,"a, b"\n7,"line\nbreak"\n')
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_files_keep_ids_and_text_as_they_stand(tmp_path, form):
    path = written(tmp_path, form)
    table = read_samples(path, id_column="key", id_type="string", text_column="sentence")
    assert table.to_pylist() == [
        {"sample_id": "007", "text": "a, b"},
        {"sample_id": "7", "text": "line\nbreak"},
    ]
    numbered = read_samples(path, id_column=":row")
    assert numbered["sample_id"].to_pylist() == [0, 1]


def test_a_bad_line_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"sample_id": 1}\n\n{"sample_id": \n')
    with pytest.raises(MisuseError, match=r"rows\.jsonl, line 3: not JSON"):
        read_samples(path)
    path.write_text('{"sample_id": 1}\n[2]\n')
    with pytest.raises(MisuseError, match=r"line 2: a JSON object is wanted"):
        read_samples(path)


def test_missing_files_columns_and_unknown_forms_are_said(tmp_path):
    with pytest.raises(MisuseError, match="There is no file"):
        read_samples(tmp_path / "none.csv")
    path = written(tmp_path, "csv")
    with pytest.raises(MisuseError, match="--id-column"):
        read_samples(path)
    with pytest.raises(MisuseError, match="no column 'words'; it has key, sentence"):
        read_samples(path, id_column="key", text_column="words")
    other = tmp_path / "rows.xlsx"
    other.write_text("")
    with pytest.raises(MisuseError, match="no form that is read"):
        read_samples(other)
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(b"PAR1 nothing")
    with pytest.raises(MisuseError, match="torn or not a Parquet file"):
        read_samples(torn)
