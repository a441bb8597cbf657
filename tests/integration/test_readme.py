"""The README's code runs as it stands there, one block after the other."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def blocks():
    text = (ROOT / "README.md").read_text()
    return re.findall(r"<!-- test: (\w+) -->\n```python\n(.*?)```", text, re.DOTALL)


def test_every_python_block_is_marked_for_testing():
    assert (ROOT / "README.md").read_text().count("```python") == len(blocks()) >= 2


def test_the_code_runs(tmp_path, capsys):
    namespace = {"folder": tmp_path}
    for name, code in blocks():
        exec(compile(code, f"README.md:{name}", "exec"), namespace)
    assert namespace["attribution"].values().num_rows == 200
    assert namespace["attribution"].covered == 1.0
    printed = capsys.readouterr().out
    assert "worst_target" in printed
    assert "Pearson R with exact Shapley values" in printed


def test_the_two_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    for command in ("demo", "test", "check"):
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)


def test_the_rooms_in_contributing_are_the_rooms_on_disk():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    listed = set(re.findall(r"^  (\w+)/ ", text.split("tests/\n")[0], re.MULTILINE))
    on_disk = {p.name for p in (ROOT / "src/inrun").iterdir() if (p / "__init__.py").exists()}
    assert listed == on_disk
