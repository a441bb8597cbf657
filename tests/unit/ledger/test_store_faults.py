"""Files that are not what was written are refused by name, in every kind of file and of fault."""

import errno
import json
import os
import random
import shutil
import warnings
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.errors import InRunError, InRunWarning, MisuseError, StoreError
from inrun.ledger import pack_state, read_state, token_parts, unpack_state, write_state
from tests.integration.small_run import SmallRun
from tests.integration.stored import as_older_version

FLIPS = 200


def token_terms(model, batch):
    losses = F.cross_entropy(model(batch[0]).transpose(1, 2), batch[1], reduction="none")
    return losses / batch[1].numel()


def of_every_kind(folder, *, after_detach=False):
    """A run that leaves every kind of file there is: books, tokens, audit, samples, a state."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 11))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x, y = torch.randint(11, (60, 5)), torch.randint(11, (60, 5))
    utility = inrun.Utility(
        lambda m, b: token_terms(m, b).sum(),
        targets={"a": (x[40:50], y[40:50]), "b": (x[50:], y[50:])},
    )
    attribution = inrun.attach(
        model,
        optimizer,
        utility,
        store=folder,
        options=inrun.Options(progress=False, contraction="dense", smoothed_steps=0),
    )
    attribution._record._folder._block_visits = 16
    attribution.audit(seconds=5, steps=6)
    tokens = attribution.per_token(token_terms, folder)
    for step in range(6):
        ids = torch.arange(8) + 8 * (step % 4)
        batch = x[ids], y[ids]
        with attribution.batch(ids), tokens.batch(ids, batch, [["word"] * 5] * 8):
            token_terms(model, batch).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    write_state(folder / "state.safetensors", attribution.state_dict())
    for last in (attribution.detach, tokens.flush)[:: 1 if after_detach else -1]:
        last()
    told = {"sample_id": list(range(32)), "text": [f"text {i}" for i in range(32)]}
    inrun.load(folder).describe(told, {"sample_id": [0, 1], "text": ["x", "y"]})
    return folder


def everything(folder):
    """All that can be read of it, to be compared."""
    run = inrun.load(folder)
    header, tensors = unpack_state(read_state(folder / "state.safetensors"))
    tables = [run.values(), run.visits(), run.books(), run.coverage(), run.audit()]
    tables += [run.samples(), run.samples("validation"), *token_parts(folder)]
    return tables, header, {name: t.numpy().tobytes() for name, t in tensors.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return of_every_kind(tmp_path_factory.mktemp("kinds") / "run")


def test_a_flipped_bit_anywhere_is_a_store_error(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    kinds = {path.parent.name if path.stem.isdigit() else path.name for path in files}
    assert kinds == {
        "visits", "ledger", "tokens", "run.json", "coverage.parquet", "audit.parquet",
        "samples.parquet", "validation.parquet", "state.safetensors",
    }  # fmt: skip
    everything(folder)
    draw = random.Random(0)
    for number in range(FLIPS):
        file = files[number % len(files)]
        content = file.read_bytes()
        at = draw.randrange(8 * len(content))
        bad = bytearray(content)
        bad[at // 8] ^= 1 << (at % 8)
        file.write_bytes(bytes(bad))
        with pytest.raises(StoreError):
            everything(folder)
            pytest.fail(f"bit {at} of {file.name} was flipped without an error")
        file.write_bytes(content)
    everything(folder)


def test_flipped_bits_of_a_run_without_checksums_raise_nothing_but_store_errors(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    as_older_version(folder)
    files = sorted(folder.rglob("*.parquet"))
    draw = random.Random(0)
    for number in range(FLIPS):
        file = files[number % len(files)]
        content = file.read_bytes()
        bad = bytearray(content)
        bad[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(bytes(bad))
        with warnings.catch_warnings(), suppress(StoreError):
            warnings.simplefilter("ignore", InRunWarning)
            everything(folder)
        file.write_bytes(content)


def several_parts(folder, seed=0):
    SmallRun(folder, seed=seed, block_visits=9).run().end()
    return sorted((folder / "visits").glob("*.parquet"))


@pytest.mark.parametrize("kind", ["visits", "ledger"])
def test_a_part_of_another_run_is_named(kind, tmp_path):
    several_parts(tmp_path / "one")
    several_parts(tmp_path / "two", seed=3)
    for place in ("000001.parquet", "000003.parquet"):
        folder = shutil.copytree(tmp_path / "one", tmp_path / place)
        shutil.copy(tmp_path / "two" / kind / "000001.parquet", folder / kind / place)
        with pytest.raises(StoreError, match=rf"{place} is (of another run|part)"):
            inrun.load(folder)


@pytest.mark.parametrize("name", ["coverage.parquet", "samples.parquet"])
def test_a_table_of_another_run_is_named(name, tmp_path):
    for run in ("one", "two"):
        several_parts(tmp_path / run)
        inrun.load(tmp_path / run).describe({"sample_id": [1], "text": [run]})
    shutil.copy(tmp_path / "two" / name, tmp_path / "one" / name)
    with pytest.raises(StoreError, match=rf"{name} is of another run"):
        inrun.load(tmp_path / "one")


@pytest.mark.parametrize("kind", ["visits", "ledger"])
def test_a_part_that_is_there_twice_is_named(kind, tmp_path):
    several_parts(tmp_path / "run")
    parts = sorted((tmp_path / "run" / kind).glob("*.parquet"))
    shutil.copy(parts[0], tmp_path / "run" / kind / f"{len(parts):06d}.parquet")
    with pytest.raises(StoreError, match="counted twice"):
        inrun.load(tmp_path / "run")


def test_an_earlier_part_of_the_same_name_is_not_taken_for_the_later_one(tmp_path):
    run = SmallRun(tmp_path / "run", block_visits=9).run(2)
    state = run.attribution.state_dict()
    run.run(4)
    run.attribution.flush()
    again = SmallRun(tmp_path / "run", resume=True, block_visits=9)
    again.attribution.load_state_dict(state)
    again.run(4).end()
    aside = next((tmp_path / "run" / "discarded").rglob("visits/*.parquet"))
    shutil.copy(aside, tmp_path / "run" / "visits" / aside.name)
    with pytest.raises(StoreError, match="not those that the run wrote"):
        inrun.load(tmp_path / "run")


@pytest.mark.parametrize("kind", ["visits", "ledger"])
@pytest.mark.parametrize("place", [0, 1, -1])
def test_a_part_that_is_missing_is_named(kind, place, tmp_path):
    several_parts(tmp_path / "run")
    part = sorted((tmp_path / "run" / kind).glob("*.parquet"))[place]
    part.unlink()
    with pytest.raises(StoreError, match=rf"{kind}/{part.name} is missing"):
        inrun.load(tmp_path / "run")


@pytest.mark.parametrize("after_detach", [False, True])
def test_a_last_part_of_the_values_per_token_that_is_missing_is_named(
    after_detach, tmp_path, monkeypatch
):
    monkeypatch.setattr("inrun.ledger._tokens.FLUSH_ROWS", 20)
    folder = of_every_kind(tmp_path / "run", after_detach=after_detach)
    parts = sorted((folder / "tokens").glob("*.parquet"))
    assert len(parts) > 1
    whole = pa.concat_tables(token_parts(folder))
    parts[-1].unlink()
    with pytest.raises(StoreError, match=rf"tokens/{parts[-1].name} is missing"):
        inrun.load(folder)
    with pytest.warns(InRunWarning, match=rf"tokens/{parts[-1].name} is missing"):
        inrun.load(folder, incomplete=True)
    left = pa.concat_tables(token_parts(folder))
    assert 0 < left.num_rows < whole.num_rows
    assert left.equals(whole.slice(0, left.num_rows))


@pytest.mark.parametrize("kind", ["visits", "ledger"])
@pytest.mark.parametrize("block_visits", [9, None], ids=["several parts", "one part"])
def test_a_kind_of_which_all_parts_are_missing_is_named(kind, block_visits, tmp_path):
    SmallRun(tmp_path / "run", block_visits=block_visits).run().end()
    shutil.rmtree(tmp_path / "run" / kind)
    with pytest.raises(StoreError, match=rf"{kind}/000000\.parquet is missing"):
        inrun.load(tmp_path / "run")


def test_what_comes_before_a_fault_is_read_where_that_is_said(tmp_path):
    parts = several_parts(tmp_path / "run")
    parts[1].write_bytes(parts[1].read_bytes()[:-30])
    with pytest.warns(InRunWarning, match=rf"{parts[1].name} is torn"):
        run = inrun.load(tmp_path / "run", incomplete=True)
    assert run.visits().num_rows == pq.read_metadata(parts[0]).num_rows


DEEP = "[" * 100_000 + "]" * 100_000
MANIFESTS = [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b'"format"', DEEP.encode(),
    ('{"format": 2, "targets": ' + DEEP + "}").encode(), b'{"format": 1}', b'{"format": true}',
    b'{"format": 2}', b'{"format": {}}', b'{"format": 1e999}', b"9" * 10_000,
]  # fmt: skip


@pytest.mark.parametrize("content", MANIFESTS, ids=range(len(MANIFESTS)))
def test_a_malformed_manifest_is_said(content, tmp_path):
    several_parts(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_bytes(content)
    for use in (inrun.load, lambda folder: SmallRun(folder, resume=True)):
        with pytest.raises(StoreError, match=r"run\.json"):
            use(tmp_path / "run")


STRANGE = [None, True, 1, -1.5, "x", "", [], {}, [1], ["a", "a"], {"visits": "x"}, {"a": [1]}]


@pytest.mark.parametrize("older", [True, False], ids=["format 1", "format 2"])
def test_a_manifest_of_other_types_is_a_store_error_or_changes_nothing(older, tmp_path):
    several_parts(tmp_path / "run")
    if older:
        as_older_version(tmp_path / "run")
    place = tmp_path / "run" / "run.json"
    told = json.loads(place.read_text())
    for name in told:
        for value in STRANGE:
            place.write_text(json.dumps(told | {name: value}))
            with warnings.catch_warnings(), suppress(StoreError):
                warnings.simplefilter("ignore", InRunWarning)
                run = inrun.load(tmp_path / "run")
                run.values(), run.visits(), run.ledger(), run.balance(), repr(run)
                assert older or told[name] == value


@pytest.mark.parametrize("kind", ["visits", "ledger"])
def test_renamed_columns_are_named(kind, tmp_path):
    several_parts(tmp_path / "run")
    as_older_version(tmp_path / "run")
    part = tmp_path / "run" / kind / "000000.parquet"
    table = pq.ParquetFile(part).read()
    names = table.column_names
    one = {"visits": "value", "ledger": "momentum"}[kind]
    at = names.index(one)
    changed = [
        table.rename_columns([f"{n}_" if n == one else n for n in names]),
        table.drop_columns([one]),
        table.append_column("more", table[one]),
        table.set_column(at, one, pa.array(["x"] * table.num_rows)),
        table.set_column(at, one, pa.array([None] * table.num_rows, pa.float64())),
    ]
    for spoiled, named in zip(changed, [one, one, "more", one, one], strict=True):
        pq.write_table(spoiled, part)
        with pytest.warns(InRunWarning, match="no checksums"):
            run = inrun.load(tmp_path / "run")
        with pytest.raises(StoreError, match=rf"000000\.parquet.*{named}"):
            run.visits() if kind == "visits" else run.ledger()
        if kind == "visits":
            with pytest.raises(StoreError, match=named):
                run.values()


NO_PATHS = ["", "  ", "a\0b", "\ud800", 5, b"bytes", ["a"]]


@pytest.mark.parametrize("path", NO_PATHS, ids=repr)
def test_what_can_be_no_folder_is_refused(path):
    for use in (
        lambda: SmallRun(path),
        lambda: inrun.load(path),
        lambda: SmallRun(None, momentum_window=2, held_in=path),
    ):
        with pytest.raises(MisuseError, match=r"no path|no folder|in bytes"):
            use()


def test_a_name_that_is_too_long_is_a_store_error(tmp_path):
    path = tmp_path / ("x" * 300)
    for use in (
        lambda: SmallRun(path),
        lambda: SmallRun(path, resume=True),
        lambda: inrun.load(path),
        lambda: SmallRun(None, momentum_window=2, held_in=path),
    ):
        with pytest.raises(StoreError, match="too long"):
            use()


def test_targets_and_ids_of_any_length_are_stored(tmp_path):
    names, ids = ("n" * 300, "m"), [f"{i}" * 300 for i in range(8)]
    run = SmallRun(tmp_path / "run", names=names)
    run.step(ids, range(8))
    assert run.end()["sample_id"].to_pylist() == sorted(ids)
    assert inrun.load(tmp_path / "run").targets == names


def test_an_id_that_is_no_text_is_refused_before_the_step(tmp_path):
    run = SmallRun(tmp_path / "run")
    run.step([*"abcdefgh"], range(8))
    before = run.model.weight.detach().clone()
    with pytest.raises(MisuseError, match=r"position 7.*surrogate"):
        run.step([*"abcdefg", "\ud800"], range(8))
    assert torch.equal(run.model.weight, before)
    run.optimizer.zero_grad()
    run.step([*"abcdefgh"], range(8))
    assert run.end()["visits"].to_pylist() == [2] * 8


STATES = [
    {"header": 1}, {"header": "{"}, {"header": "[]"}, {"header": DEEP}, {"tensors": None},
    {"tensors": [1]}, {"tensors": {"a": 1}}, {"digest": None}, {"format": [1]}, {"format": "1"},
]  # fmt: skip


@pytest.mark.parametrize("change", STATES, ids=lambda c: f"{c!s:.30}")
def test_malformed_states_are_refused(change, tmp_path):
    run = SmallRun(tmp_path / "run").run(2)
    state = {**run.attribution.state_dict(), **change}
    with pytest.raises(StoreError):
        run.attribution.load_state_dict(state)


def test_states_with_parts_of_other_types_are_refused(tmp_path):
    header, tensors = unpack_state(SmallRun(tmp_path / "run").run(2).attribution.state_dict())
    for spoiled in [*spoilt(header), *spoilt(header["record"], lambda r: header | {"record": r})]:
        again = SmallRun(tmp_path / "run", resume=True)
        with pytest.raises(InRunError):
            again.attribution.load_state_dict(pack_state(spoiled, tensors))
    for name in tensors:
        few = {n: t for n, t in tensors.items() if n != name}
        for other in (few, few | {name: torch.zeros(3, dtype=torch.uint8)}):
            again = SmallRun(tmp_path / "run", resume=True)
            with pytest.raises(StoreError):
                again.attribution.load_state_dict(pack_state(header, other))


def spoilt(header, within=dict):
    for name in ("kind", "record", "store", "residual", "latest", "scorer"):
        if name in header:
            yield within({n: v for n, v in header.items() if n != name})
            yield within(header | {name: 5 if isinstance(header[name], dict) else {}})


@pytest.fixture
def refusing_disk(monkeypatch):
    """Every file that would be written is refused, as a full or a read-only file system does."""

    def refuse(code):
        def refused(*_, **__):
            raise OSError(code, os.strerror(code))

        really = open

        def opened(file, mode="r", *rest, **named):
            return refused() if set(mode) & set("wax+") else really(file, mode, *rest, **named)

        monkeypatch.setattr("builtins.open", opened)
        for name in ("replace", "unlink", "mkdir", "rename"):
            monkeypatch.setattr(os, name, refused)

    return refuse


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("options", [{}, {"momentum_window": 2}], ids=str)
def test_a_disk_that_refuses_is_a_store_error_and_tables_still_answer(
    code, options, tmp_path, refusing_disk, monkeypatch
):
    run, memory = (SmallRun(f, **options).run(5) for f in (tmp_path / "run", None))
    run.attribution.flush()
    refusing_disk(code)
    for one in (run, memory):
        one.run(3)
    with pytest.raises(StoreError, match=os.strerror(code)):
        run.attribution.flush()
    stored = 8 - (options.get("momentum_window") or 0)
    for target in ("total", "b"):
        expected = memory.attribution.ledger(target).slice(0, stored)
        assert run.attribution.ledger(target).equals(expected)
        found, whole_run = (r.attribution.balance(target) for r in (run, memory))
        assert found == pytest.approx(whole_run)
    assert run.attribution.values().equals(memory.attribution.values())
    assert run.attribution.visits().num_rows == 8 * stored
    monkeypatch.undo()  # there is room again
    live = run.end()
    loaded = inrun.load(tmp_path / "run")
    assert loaded.values().equals(live)
    assert np.array_equal(loaded.ledger()["step"].to_numpy(), np.arange(1, 9))


def test_what_could_not_be_written_at_the_end_is_written_later(
    tmp_path, refusing_disk, monkeypatch
):
    run = SmallRun(tmp_path / "run").run(2)
    refusing_disk(errno.ENOSPC)
    with pytest.raises(StoreError):
        run.attribution.detach()
    assert run.attribution.ledger().num_rows == 2
    monkeypatch.undo()
    run.attribution.flush()
    assert inrun.load(tmp_path / "run").values().equals(run.attribution.values())
    SmallRun(tmp_path / "run", resume=True).attribution.detach()
