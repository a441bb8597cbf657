"""Imports point down only, rooms have no side doors, and files stay readable."""

import ast
import importlib
import inspect
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "inrun"

# Each room may import from the rows below its own, never from its own row's other rooms or above.
ROWS = [
    {"cli"},
    {"demo"},
    {"report"},
    {"uses"},
    {"training"},
    {"integrations"},
    {"attribution"},
    {"momentum"},
    {"scoring"},
    {"truth", "replay"},
    {"ledger"},
    {"directions", "capture"},
    {"owners"},
    {"operations", "optim", "utility"},
    {"factors"},
    {"distributed", "kernels"},
    {"answers", "errors"},
]
HEIGHT = {room: len(ROWS) - i for i, row in enumerate(ROWS) for room in row}
CLOSED = set("optim momentum scoring attribution replay truth".split())  # see the test of objects
TOP = "__init__"  # the package itself: gathers the public names


def room_of(path):
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[0]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "inrun":
            yield node.module.split(".")[1:], [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "inrun":
                    yield alias.name.split(".")[1:], []


def files():
    return sorted(SOURCE.rglob("*.py"))


def test_every_room_has_a_row():
    rooms = {room_of(path) for path in files()} - {TOP}
    assert rooms == set(HEIGHT)


def test_imports_point_down_only():
    wrong = []
    for path in files():
        own = room_of(path)
        if own == TOP:
            continue
        for module, names in imports(path):
            if not module:  # `import inrun`: the public surface, for rooms above all it gathers
                if HEIGHT[own] <= HEIGHT["attribution"]:
                    wrong.append(f"{path.name} imports the whole package")
                continue
            other = module[0]
            if other != own and HEIGHT[other] >= HEIGHT[own]:
                wrong.append(f"{path.relative_to(SOURCE)} imports {'.'.join(module)} {names}")
    assert not wrong, "\n".join(wrong)


def test_private_files_are_imported_by_their_own_room_only():
    wrong = []
    for path in files():
        for module, names in imports(path):
            private = [part for part in [*module[1:], *names] if part.startswith("_")]
            private = [name for name in private if not name.startswith("__")]
            if module and private and module[0] != room_of(path):
                wrong.append(f"{path.relative_to(SOURCE)} imports {'.'.join(module)} {private}")
    assert not wrong, "\n".join(wrong)


def test_every_file_says_what_it_holds():
    assert all(ast.get_docstring(ast.parse(path.read_text())) for path in files())


def test_every_method_says_what_it_does_or_its_base_does():
    silent = []
    for path in files():
        name = ".".join(("inrun", *path.relative_to(SOURCE).with_suffix("").parts))
        if room_of(path) in {"directions", "factors", "optim"} and path.stem != "__init__":
            for kind in vars(importlib.import_module(name)).values():
                if inspect.isclass(kind) and kind.__module__ == name and kind.__name__[0] != "_":
                    silent += [
                        f"{kind.__name__}.{method}"
                        for method, value in vars(kind).items()
                        if method[0] != "_" and (callable(value) or isinstance(value, property))
                        if not inspect.getdoc(getattr(kind, method))
                    ]
    assert not silent, silent


def test_objects_change_themselves_alone():
    """No attribute is set on another object after its construction, but torch's own."""
    of_torch = {"grad", "data", "training", "state", "width"}  # parameters, modules, contexts
    foreign = []
    for path in files():
        if room_of(path) in CLOSED:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    own = isinstance(node.value, ast.Name) and node.value.id == "self"
                    if not own and node.attr not in of_torch:
                        foreign.append(f"{path.relative_to(SOURCE)}:{node.lineno} {node.attr}")
    assert not foreign, foreign


def test_threads_are_left_to_the_user():
    assert not [path for path in files() if "set_num_threads" in path.read_text()]
