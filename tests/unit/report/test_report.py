"""`inrun report`'s page in a real browser: what it shows, how it filters, what it never runs."""

import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

import inrun
from inrun.ledger import PartId, TokenFolder, write_table
from inrun.report import write_report
from inrun.report._first import first_screen
from inrun.report._payload import contents, payload
from inrun.truth import AUDIT
from inrun.uses import harm_sums, rank
from tests.integration.browser import Opened, open_browser
from tests.integration.stored import random_run, stored_run
from tests.settings import flat

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

HOSTILE = "</script><script>window.pwned=1;alert(1)</script><img src=x onerror='window.pwned=2'>"
SAMPLES, TARGETS = 60, ("a", "b", "c")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = open_browser(playwright)
        yield opened
        opened.close()


def description(samples=SAMPLES):
    words = ["river", "stone", "cloud", "harvest", "lantern"]
    texts = [f"{words[i % 5]} number {i}" for i in range(samples)]
    texts[7] = "  RIVER  number 5".replace("5", "2")
    texts[9] = texts[7].lower()
    return {
        "sample_id": list(range(samples)),
        "text": texts,
        "label": [i % 3 for i in range(samples)],
        "source": ["north" if i % 4 else "south" for i in range(samples)],
        "length": [len(t) / 2 for t in texts],
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    stored = random_run(tmp_path_factory.mktemp("report") / "run", SAMPLES, targets=TARGETS)
    stored.describe(description())
    return stored


@pytest.fixture(scope="module")
def page_file(run):
    write_report(run, run.path / "report.html")
    return run.path / "report.html"


@pytest.fixture
def page(browser, page_file):
    opened = Opened(browser, page_file).ready()
    yield opened
    opened.context.close()


def test_the_page_asks_for_nothing_and_complains_of_nothing(page, page_file):
    assert page.requests == [page_file.resolve().as_uri()]
    assert page.complaints == []
    assert page.page.locator("svg, canvas").count() >= 5


def test_words_come_first_and_say_the_runs_own_numbers(page, run):
    text = page.page.inner_text("header")
    value = run.values()["value"].to_numpy()
    assert f"{SAMPLES} samples" in text
    assert f"{(value < 0).mean():.1%} of the samples raised" in text
    assert "This run was not audited" in text


def test_the_first_screen_asks_and_answers_four_questions(page):
    questions = page.page.locator(".summary h2").all_inner_texts()
    assert [q.split()[0] for q in questions] == ["How", "How", "Which", "Can"]
    assert all(text.strip() for text in page.page.locator(".summary .answer").all_inner_texts())
    first = page.page.locator("#first-labels button").evaluate_all("bs => bs.map(b => b.title)")
    cards = page.page.locator("#labels button").all_inner_texts()
    assert 0 < len(first) <= 10
    assert all(said in card for said, card in zip(first, cards, strict=False))


def drag(page, name, start, end):
    """Over a map, from one corner to the other, as shares of the chart."""
    place = page.page.locator(f'[data-live="{name}"] canvas')
    place.scroll_into_view_if_needed()
    box = place.bounding_box()
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    page.page.mouse.move(*at[0])
    page.page.mouse.down()
    page.page.mouse.move(*at[1])
    page.page.mouse.up()
    page.page.wait_for_timeout(500)  # the page follows a brush that has come to rest


@pytest.mark.parametrize("name", ["map", "worth"])
def test_dragging_over_a_map_selects_and_everything_follows(page, name):
    before = page.page.inner_text("#status")
    drag(page, name, (0.3, 0.25), (0.7, 0.7))
    page.page.wait_for_function(
        "before => document.getElementById('status').textContent !== before", arg=before
    )
    box = page.page.evaluate("report.state.box")
    dots = page.chart(name)
    inside = {
        int(dot["id"])
        for dot in dots
        if all(min(box[a]) <= dot[a] <= max(box[a]) for a in ("x", "y"))
    }
    assert 0 < len(inside) < SAMPLES
    assert {int(i) for i in page.downloaded("ids").split()} == inside
    assert {int(dot["id"]) for dot in page.chart("steps")} == inside
    assert {int(dot["id"]) for dot in page.chart(name) if dot["chosen"]} == inside
    page.filtered(lambda p: p.click(".unbrush"))
    assert page.page.inner_text("#status") == before
    assert page.complaints == []


def test_maps_are_coloured_by_value_kind_and_group(page, run):
    for by, expected in (("sign", {"helped", "harmed"}), ("0", {"0", "1", "2"})):
        page.page.select_option("#color", by)
        page.page.evaluate("report.update().then(() => null)")
        dots = page.chart("map")
        assert {dot["color"] for dot in dots} == expected
    assert {dot["id"]: dot["color"] for dot in dots} == {str(i): str(i % 3) for i in range(SAMPLES)}


def test_issues_are_counted_and_their_names_select(page, run):
    lines = page.page.locator("#issues tbody tr")
    found = {}
    for line in lines.all():
        cells = line.locator("td").all_inner_texts()
        found[line.locator("button").first.get_attribute("data-issue")] = int(cells[1])
    kinds = page.page.evaluate("report.data.kind")
    assert found["contradicting"] == found["copies"] == 2
    assert found.get("erratic", 0) == sum(kind == 2 for kind in kinds)
    page.filtered(lambda p: p.click('[data-issue="contradicting"]'))
    assert sorted(map(int, page.ids())) == [7, 9]


def importable(records, tasks, labels):
    """What argilla 2.8's Record.from_dict and its upload, and label-studio-sdk 2.1's LabelInterface
    (validate_task, validate_prediction) ask of a file; both took such files when this was written.
    """
    (field,) = {name for record in records for name in record["fields"]}
    for record in records:
        assert isinstance(record["id"], str)
        assert isinstance(record["fields"][field], str)
        assert all(type(v) in (int, float, str) for v in record["metadata"].values())
        assert set(record["suggestions"]) <= {"label"}
        for suggestion in record["suggestions"].values():
            assert set(suggestion) == {"value", "score", "agent"}
            assert suggestion["value"] in labels
        assert record["responses"] == record["vectors"] == {}
    for task in tasks:
        assert set(task) == {"data", "predictions"}
        assert isinstance(task["data"][field], str)  # the variable of the object that is labelled
        (prediction,) = task["predictions"]
        assert isinstance(prediction["model_version"], str)
        for region in prediction["result"]:
            assert set(region) == {"from_name", "to_name", "type", "value"}
            names = (region["from_name"], region["to_name"], region["type"])
            assert names == ("label", field, "choices")
            assert set(region["value"]) == {"choices"}
            assert set(region["value"]["choices"]) <= labels


def test_a_selection_goes_back_as_rows_and_to_annotation_tools(page):
    page.filtered(lambda p: p.select_option("#show", "contradicting"))
    rows = [json.loads(line) for line in page.downloaded("jsonl").splitlines()]
    assert sorted(row["sample_id"] for row in rows) == ["7", "9"]
    assert {row["text"] for row in rows} == {description()["text"][i] for i in (7, 9)}
    records, tasks = (json.loads(page.downloaded(kind)) for kind in ("argilla", "labelstudio"))
    importable(records, tasks, {"0", "1", "2", *TARGETS})
    for record in records:
        assert set(record) == {
            "id", "fields", "metadata", "suggestions", "responses", "vectors"
        }  # fmt: skip
        assert record["fields"]["text"] == description()["text"][int(record["id"])]
        assert record["metadata"]["given_label"] == str(int(record["id"]) % 3)
    for task in tasks:
        assert task["data"]["text"] == description()["text"][int(task["data"]["sample_id"])]
    page.filtered(lambda p: p.click("#filters button[type=reset]"))
    records, tasks = (json.loads(page.downloaded(kind)) for kind in ("argilla", "labelstudio"))
    assert len(records) == len(tasks) == SAMPLES
    importable(records, tasks, {"0", "1", "2", *TARGETS})


def test_axes_have_plain_numbers_and_say_their_unit(page):
    page.page.select_option("#rank", "value")
    page.page.wait_for_function("() => report.state.rank === 'value'")
    page.page.evaluate("report.update().then(() => null)")
    for name in ("groups", "distribution"):
        texts = page.page.locator(f'[data-live="{name}"] svg text').all_text_contents()
        assert any("of the validation loss" in text for text in texts), texts
    texts = page.page.locator(".chart svg text").all_text_contents()
    assert not [text for text in texts if re.search(r"\de[+\-\u2212]?\d", text)]


def test_sorting_orders_all_samples_not_one_page(page, run):
    values = run.values().sort_by("value")["sample_id"].to_pylist()
    page.page.click('#table [data-sort="value"]')
    assert page.ids() == [str(i) for i in values[:25]]
    page.page.click('#table [data-sort="value"]')
    assert page.ids() == [str(i) for i in values[::-1][:25]]
    assert page.page.get_attribute("#table th[aria-sort]", "aria-sort") == "descending"
    page.page.click("#after")
    assert page.ids() == [str(i) for i in values[::-1][25:50]]


def test_a_filter_acts_on_everything(page, run):
    chosen = [i for i in range(SAMPLES) if i % 3 == 2]
    values = run.values()["value"].to_numpy()
    page.filtered(lambda p: p.select_option('[data-group="0"]', label="2"))
    assert page.page.inner_text("#status").startswith(f"{len(chosen)} of {SAMPLES} samples")
    assert {int(i) for i in page.ids()} == set(chosen)
    assert sum(bar["samples"] for bar in page.chart("distribution")) == len(chosen)
    assert {int(dot["id"]) for dot in page.chart("steps")} == set(chosen)
    assert [bar["group"] for bar in page.chart("groups")] == ["2"]
    assert page.chart("books")[-1]["fall"] == pytest.approx(values[chosen].sum(), rel=1e-4)
    assert {cell["samples"] for cell in page.chart("harm")} == {len(chosen)}
    for name in ("harmful", "helpful"):
        cards = page.page.locator(f"#{name} button").evaluate_all(
            "buttons => buttons.map(b => Number(b.dataset.row))"
        )
        assert set(cards) <= set(chosen)
    assert {int(i) for i in page.downloaded("ids").split()} == set(chosen)
    page.filtered(lambda p: p.click("#filters button[type=reset]"))
    assert page.page.inner_text("#status").startswith(f"{SAMPLES} of")


def test_group_sums_are_those_of_rollup(page, run):
    page.page.select_option("#rank", "value")
    page.page.select_option("#by", label="source")
    page.page.wait_for_function("() => report.state.rank === 'value'")
    page.page.evaluate("report.update().then(() => null)")
    shown = {bar["group"]: bar["value"] for bar in page.chart("groups")}
    booked = {r["group"]: r["booked"] for r in inrun.rollup(run, "source").table.to_pylist()}
    assert shown == pytest.approx(booked, rel=1e-4)


def test_search_finds_text_labels_and_ids(page):
    page.filtered(lambda p: p.fill("#search", "LANTERN"))
    assert {int(i) for i in page.ids()} == {i for i in range(SAMPLES) if i % 5 == 4 and i != 9}
    page.filtered(lambda p: p.fill("#search", "nothing like this"))
    assert page.ids() == []
    assert page.page.inner_text("#status").startswith("0 of")
    assert page.complaints == []


def test_score_limits_and_rankings(page, run):
    ranked = rank(run.visits(), run.targets)
    page.page.select_option("#rank", "harm")
    page.page.wait_for_function("() => report.state.rank === 'harm'")
    limit = float(np.median(ranked.scores))
    page.filtered(lambda p: p.fill("#high", str(limit)))
    assert {int(i) for i in page.ids()} <= set(np.flatnonzero(ranked.scores <= limit).tolist())
    first = page.page.locator("#harmful button").first.get_attribute("data-row")
    assert int(first) == ranked.scores.argmin()


def test_a_sample_opens_by_keyboard_and_closes_again(page):
    page.page.focus("#table tbody button.open")
    page.page.keyboard.press("Enter")
    first = page.page.inner_text("#sample-title")
    assert first == f"Sample {page.ids()[0]}"
    assert "number" in page.page.inner_text("#sample-content")
    page.page.keyboard.press("ArrowRight")
    assert page.page.inner_text("#sample-title") == f"Sample {page.ids()[1]}"
    page.page.keyboard.press("Escape")
    assert not page.page.is_visible("#sample")
    assert page.page.evaluate("document.activeElement.className") == "open"


def test_every_control_is_reached_by_keyboard(page):
    reached = set()
    for _ in range(60):
        page.page.keyboard.press("Tab")
        reached.add(page.page.evaluate("document.activeElement.id || document.activeElement.type"))
    assert {
        "theme",
        "rank",
        "show",
        "search",
        "low",
        "high",
        "reset",
        "format",
        "export",
    } <= reached


def test_ticked_rows_are_what_is_downloaded(page):
    boxes = page.page.locator("#table tbody input[type=checkbox]")
    boxes.nth(1).check()
    boxes.nth(3).check()
    ids = page.ids()
    assert page.downloaded("ids").split() == [ids[1], ids[3]]
    table = list(csv.DictReader(io.StringIO(page.downloaded("csv"))))
    assert [row["sample_id"] for row in table] == [ids[1], ids[3]]
    assert table[0]["text"] == description()["text"][int(ids[1])]


def test_duplicates_are_shown_together_with_their_joint_value(page, run):
    values = run.values()["value"].to_pylist()
    line = page.page.locator("#copies tbody tr")
    assert line.count() == 1
    assert "id 7, 9" in line.inner_text()
    joint = page.page.evaluate("x => report.format(x)", float(f"{values[7] + values[9]:.6g}"))
    assert joint in line.inner_text()
    assert "1 / 0 (contradicting)" in line.inner_text()


def doubted(page):
    return page.page.locator("#labels button").evaluate_all(
        "buttons => buttons.map(b => [Number(b.dataset.row), b.innerText])"
    )


def test_labels_to_check_are_those_that_harm_another_class_most(browser, tmp_path):
    stored = random_run(tmp_path / "run", 20, targets=("class 0", "class 1", "class 2"))
    labels = [i % 3 for i in range(20)]
    stored.describe({"sample_id": range(20), "label": labels})
    write_report(stored, tmp_path / "page.html")
    opened = Opened(browser, tmp_path / "page.html").ready()
    profile = inrun.harm_profile(stored).table.sort_by("worst_value").to_pylist()
    wanted = [
        (row["sample_id"], row["worst_target"])
        for row in profile
        if row["worst_value"] < 0 and row["worst_target"] != f"class {labels[row['sample_id']]}"
    ]
    found = doubted(opened)
    assert [row for row, _ in found] == [row for row, _ in wanted[:12]]
    for (row, text), (_, target) in zip(found, wanted[:12], strict=True):
        assert f"labelled {labels[row]}, perhaps {target}" in text
    opened.context.close()


def test_a_stated_label_doubt_goes_before_the_harm_profile(browser, tmp_path):
    stored = random_run(tmp_path / "run", 20, targets=("0", "1"))
    doubt = np.random.default_rng(0).permutation(20) + 1
    stored.describe(
        {
            "sample_id": range(20),
            "label": ["0"] * 20,
            "doubt_rank": doubt.tolist(),
            "suggested_label": ["1"] * 20,
        }
    )
    write_report(stored, tmp_path / "page.html")
    opened = Opened(browser, tmp_path / "page.html").ready()
    found = doubted(opened)
    assert [row for row, _ in found] == np.argsort(doubt)[:12].tolist()
    assert "labelled 0, perhaps 1" in found[0][1]
    opened.context.close()


def test_light_and_dark_differ_and_follow_the_reader(browser, page_file):
    dark = Opened(browser, page_file, color_scheme="dark").ready()
    background = "getComputedStyle(document.body).backgroundColor"
    before = dark.page.evaluate(background)
    dark.page.click("#theme")
    after = dark.page.evaluate(background)
    assert (
        sum(map(int, re.findall(r"\d+", before))) < 200 < sum(map(int, re.findall(r"\d+", after)))
    )
    assert dark.complaints == []
    dark.context.close()


def test_a_phone_needs_no_sideways_scrolling(browser, page_file):
    phone = Opened(browser, page_file, viewport={"width": 390, "height": 800}).ready()
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert phone.page.evaluate("document.documentElement.scrollHeight") < 12_000
    phone.context.close()


def test_text_from_the_data_stays_text(browser, tmp_path):
    ids = [f"{HOSTILE} {i}" for i in range(30)]
    stored = random_run(tmp_path / "run", 30, ids=ids, targets=(HOSTILE, "b"))
    stored.describe(
        {
            "sample_id": ids,
            "text": [f"{HOSTILE} text {i % 29}" for i in range(30)],
            "label": [HOSTILE, "plain"] * 15,
            "source": ["=cmd()", "b"] * 15,
            HOSTILE: [HOSTILE] * 30,
        }
    )
    write_report(stored, tmp_path / "page.html")
    opened = Opened(browser, tmp_path / "page.html").ready()
    opened.page.click("#table tbody button.open")
    assert HOSTILE in opened.page.inner_text("#sample-content")
    opened.page.keyboard.press("Escape")
    bar = opened.page.locator('[data-live="groups"] .mark-rect path[aria-label*="script"]').first
    bar.evaluate("bar => bar.scrollIntoView({block: 'center'})")
    bar.hover(position={"x": 4, "y": 4})
    assert "script" in opened.page.inner_text("#vg-tooltip-element")
    assert opened.page.evaluate("window.pwned") is None
    assert opened.alerts == []
    assert opened.page.locator("img[src='x']").count() == 0
    cells = list(csv.reader(io.StringIO(opened.downloaded("csv"))))
    assert not [c for line in cells for c in line if c.startswith("=")]
    opened.page.evaluate(  # were markup to slip in after all, the policy would still not run it
        "() => { const s = document.createElement('script'); s.textContent = 'window.pwned = 3';"
        " document.body.append(s); const d = document.createElement('div');"
        ' d.innerHTML = \'<img src="data:," onerror="window.pwned = 4">\';'
        " document.body.append(d); }"
    )
    opened.page.wait_for_timeout(200)
    assert opened.page.evaluate("window.pwned") is None
    opened.context.close()


def test_large_ids_keep_every_digit(browser, tmp_path):
    ids = [2**60 + i for i in range(20)]
    write_report(random_run(tmp_path / "run", 20, ids=ids), tmp_path / "page.html")
    opened = Opened(browser, tmp_path / "page.html").ready()
    assert {int(i) for i in opened.ids()} == set(ids)
    assert {int(i) for i in opened.downloaded("ids").split()} == set(ids)
    opened.context.close()


def test_tokens_shade_a_text_by_their_sums_over_visits(browser, tmp_path):
    stored = random_run(tmp_path / "run", 20)
    visit = {"sample_id": 3, "tokens": ["good", " <b>bad</b>"], "values": [1.0, -4.0]}
    kept = TokenFolder(stored.path)
    kept.add(1, [visit])
    kept.add(2, [visit | {"values": [2.0, -2.0]}])
    kept.flush()
    write_report(stored, tmp_path / "page.html")
    opened = Opened(browser, tmp_path / "page.html").ready()
    opened.filtered(lambda p: p.fill("#search", "3"))
    opened.page.evaluate("report.openSample(3)")
    spans = opened.page.locator("#sample-content .token")
    assert spans.all_text_contents() == ["good", " <b>bad</b>"]
    assert spans.nth(0).get_attribute("title") == "good: +3"
    assert "209, 73, 91, 0.75" in spans.nth(1).evaluate("e => getComputedStyle(e).backgroundColor")
    opened.context.close()


def test_images_are_shown_as_images(browser, tmp_path):
    stored = random_run(tmp_path / "run", 20)
    pixels = np.random.default_rng(0).random((20, 8, 8))
    stored.describe({"sample_id": list(range(20)), "image": list(pixels)})
    write_report(stored, tmp_path / "page.html")
    opened = Opened(browser, tmp_path / "page.html").ready()
    shown = opened.page.locator("#harmful img").first.evaluate("i => i.naturalWidth")
    assert shown == 8
    assert opened.complaints == []
    opened.context.close()


def test_the_validation_rows_are_counted_and_shown_and_their_text_stays_text(browser, tmp_path):
    stored = random_run(tmp_path / "run", samples=30)
    texts = [f"judge {i}" for i in range(40)]
    texts[0] = HOSTILE
    judges = {"sample_id": list(range(40)), "text": texts, "label": [i % 4 for i in range(40)]}
    stored.describe({"sample_id": list(range(30))}, judges)
    write_report(stored, tmp_path / "page.html")
    opened = Opened(browser, tmp_path / "page.html").ready()
    section = opened.page.locator("details", has_text="The validation rows").last
    shown = section.locator(".cards li")
    assert 20 <= shown.count() < 40
    assert HOSTILE in shown.first.inner_text()
    counts = section.locator("tbody tr").all_inner_texts()
    assert [row.split() for row in counts] == [[str(label), "10"] for label in range(4)]
    assert opened.alerts == []
    assert opened.page.evaluate("window.pwned") is None


def test_a_run_of_one_target_and_no_description_has_a_page(browser, tmp_path):
    write_report(random_run(tmp_path / "run", 12, targets=("validation",)), tmp_path / "page.html")
    opened = Opened(browser, tmp_path / "page.html").ready()
    assert len(opened.ids()) == 12
    assert not opened.page.is_visible(".harm")
    assert opened.complaints == []
    opened.context.close()


def test_a_hundred_thousand_samples_are_filtered_and_sorted(browser, tmp_path):
    n = 100_000
    stored = random_run(tmp_path / "run", n, epochs=2, batch=1000, targets=("a", "b"))
    stored.describe(
        {
            "sample_id": np.arange(n).tolist(),
            "text": [f"text {i} of many" for i in range(n)],
            "label": (np.arange(n) % 7).tolist(),
        }
    )
    write_report(stored, tmp_path / "page.html")
    opened = Opened(browser, tmp_path / "page.html").ready()
    opened.filtered(lambda p: p.fill("#search", "text 99999 "))
    assert opened.ids() == ["99999"]
    opened.filtered(lambda p: p.click("#filters button[type=reset]"))
    opened.page.click('#table [data-sort="value"]')
    lowest = stored.values().sort_by("value")["sample_id"].slice(0, 25).to_pylist()
    assert opened.ids() == [str(i) for i in lowest]
    opened.context.close()


@pytest.mark.parametrize("samples", [1, 2])
def test_tiny_runs_have_a_page(browser, tmp_path, samples):
    write_report(random_run(tmp_path / "run", samples, epochs=1), tmp_path / "page.html")
    opened = Opened(browser, tmp_path / "page.html").ready()
    assert len(opened.ids()) == samples
    assert opened.complaints == []
    opened.context.close()


def test_many_groups_are_filtered_by_and_the_most_harmful_are_drawn(browser, tmp_path):
    stored = random_run(tmp_path / "run", 400)
    stored.describe({"sample_id": range(400), "label": [f"class {i % 150}" for i in range(400)]})
    write_report(stored, tmp_path / "page.html")
    opened = Opened(browser, tmp_path / "page.html").ready()
    opened.filtered(lambda p: p.select_option('[data-group="0"]', label="class 149"))
    assert {int(i) for i in opened.ids()} == {149, 299}
    opened.filtered(lambda p: p.click("#filters button[type=reset]"))
    cells = opened.chart("harm")
    ids, sums = harm_sums(stored.visits(), stored.targets)
    means = {g: sums[ids % 150 == g].mean(0).min() for g in range(150)}
    worst = sorted(means, key=means.get)[:24]
    assert {cell["group"] for cell in cells} == {f"class {g}" for g in worst}
    assert "of 150" in opened.page.inner_text("#harm-words")
    opened.context.close()


def trained_run(path, **options):
    """A run of a small model, 12 steps."""
    torch.manual_seed(0)
    x, y = torch.randn(80, 4), torch.randint(3, (80,))
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def loss_fn(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    utility = inrun.Utility(loss_fn, (x[60:], y[60:]))
    attribution = inrun.attach(
        model, optimizer, utility, store=path, **flat(progress=False, **options)
    )
    for ids in torch.arange(60).repeat(2).split(10):
        with attribution.batch(ids):
            loss_fn(model, (x[ids], y[ids])).backward()
        optimizer.step()
        optimizer.zero_grad()
    attribution.detach()
    return inrun.load(path)


@pytest.mark.parametrize(
    ("options", "words", "absent"),
    [
        ({"every": 3}, "each standing for 3", "NaN"),
        (
            {"momentum_window": 4},
            "through momentum in the steps after their own",
            "is booked apart",
        ),
        ({"momentum_window": 4}, "momentum from before the window", "It is the immediate effect"),
    ],
    ids=["sampled", "paid out", "the books of what was paid out"],
)
def test_every_kind_of_run_has_a_page_that_says_what_it_is(
    browser, tmp_path, options, words, absent
):
    run = trained_run(tmp_path / "run", **options)
    write_report(run, tmp_path / "page.html")
    opened = Opened(browser, tmp_path / "page.html").ready()
    text = opened.page.inner_text("body")
    assert words in text
    assert absent not in text
    assert opened.complaints == []
    opened.context.close()


def test_wrong_labels_are_counted_where_flips_were_planted(tmp_path):
    """Thirty planted flips and sixty wrong labels among 200, all with the loss of a wrong one."""
    rng = np.random.default_rng(0)
    n, planted, wrong = 200, np.arange(30), np.arange(30, 90)
    bad = np.isin(np.arange(n), [*planted, *wrong])
    sample = np.tile(np.arange(n), 8)
    values = np.where(bad, -1.0, 1.0)[sample, None] * [1.0, 0.5] + rng.normal(0, 0.1, (8 * n, 2))
    step = np.arange(8 * n) // 20 + 1
    stored = stored_run(tmp_path / "run", values, sample, step, list(range(n)), ("0", "1"))
    ids = {"sample_id": list(range(n)), "label": ["0", "1"] * (n // 2)}
    stored.describe(ids | {"planted": (np.arange(n) < 30).tolist()})
    high = np.where(bad, 0.9, 0.1) + rng.normal(0, 0.01, n)
    first = np.arange(n) % 2 == 0
    seen = ids | {
        "mean_loss": -np.log(1 - high), "0": np.where(first, 1 - high, high),
        "1": np.where(first, high, 1 - high),
    }  # fmt: skip
    found = inrun.wrong_labels(stored, planted.tolist(), seen)
    page = contents(stored, None)
    write_page = replace(page, wrong=found)
    answer = first_screen(write_page)[1]
    assert answer.answer == f"About {found.count:.0f} (95 %: {found.low:.0f} to {found.high:.0f})"
    assert found.low <= 60 <= found.high
    data = payload(write_page)
    assert [i for i, p in enumerate(data["wrong"]) if p is not None] == list(range(30, n))
    suspects = np.flatnonzero(data["suspect"])
    assert len(suspects) == round(found.count)
    assert set(suspects.tolist()) <= set(wrong.tolist()) or set(wrong.tolist()) <= set(
        suspects.tolist()
    )


def test_an_audit_that_saw_classes_without_validation_rows_is_a_doubt(tmp_path):
    stored = random_run(tmp_path / "run", 12)
    check = dict.fromkeys(AUDIT.names) | {
        "step": 50, "estimator": "path", "game": "shared", "capture": "hold", "samples": 12,
        "players": 4, "pearson": 0.999, "spearman": 1.0, "sum_ratio": 1.0, "relative_error": 0.01,
        "residual": 0.001, "age": 49, "covered": 1.0, "low_precision": False, "seconds": 1.0,
        "forecast_error": 0.0, "loss_noise": 0.0, "validation_rows": 90, "judged": "all rows",
        "truth": [0.2, 0.1], "validation_classes": 3, "unjudged": 0.7,
    }  # fmt: skip
    table = pa.Table.from_pylist([check], schema=AUDIT)
    write_table(stored.path / "audit.parquet", table, PartId("audit", stored.manifest["run"]))
    said = " ".join(first_screen(contents(stored, None))[3].sentences)
    assert "70% of the rows trained on in the checked steps are of classes that no" in said


def test_the_first_screen_names_a_source_by_its_labels_and_says_that_the_loss_rose(tmp_path):
    rng = np.random.default_rng(0)
    sample, step = np.tile(np.arange(80), 2), np.arange(160) // 10 + 1
    values = -rng.random((160, 1))  # all harm, the sources alike
    stored = stored_run(tmp_path / "run", values, sample, step, list(range(80)))
    source = np.array(list("nesw"))[np.arange(80) % 4]
    ranks = np.argsort(np.argsort(source != "w", kind="stable"), kind="stable") + 1  # w's first
    stored.describe({
        "sample_id": list(range(80)), "source": source.tolist(), "doubt_rank": ranks.tolist(),
    })  # fmt: skip
    fall, _, hurting, _ = first_screen(contents(stored, None))
    assert fall.answer.startswith("It rose by ")
    assert hurting.answer == "source w, by its labels"
    assert "Look at the labels of w: 40% of its samples" in " ".join(hurting.sentences)
