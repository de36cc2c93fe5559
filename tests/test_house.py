"""The house's rules, read from the source: which room may import which, and what may not be there at all."""

from __future__ import annotations

import ast
import dataclasses
import functools
import graphlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "st_gchb"
BASE = {
    "_constants",
    "_errors",
    "_logging",
    "_artifacts",
    "_compat",
    "_components",
    "_genes",
    "_counts",
    "_matrices",
    "_settings",
    "_signals",
    "_versions",
    "_citation",
    "_hub",
    "errors",
    "_advice",
    "_arguments",
    "_options",
    "_lazy",
}

# A room may import the rooms of its row, and what those may import.
ROOMS: dict[str, set[str]] = {
    "nn": set(),
    "io": set(),
    "pp": {"io"},
    "train": {"nn"},
    "retrieval": set(),
    "metrics": set(),
    # The measures stand on nothing, and there is one definition of a correlation.
    "model": {"nn", "io", "pp", "train", "retrieval", "metrics"},
    # Networks of their own, trained on what pp reads.
    "baselines": {"pp", "metrics"},
    "evaluate": {"model", "metrics", "pl", "baselines"},
    "datasets": {"io"},
    # A SpatialData is drawn as the AnnData that pp makes of it, and tissue as pp finds it.
    "pl": {"metrics", "pp"},
    # Whole slides from their files to results: it asks what stands below, and is asked by the command line alone.
    "cohort": {"io", "pp", "model"},
}
ROOMS["cli"] = set(ROOMS)

# Rooms within rooms: what each may import of its sisters. The room's own files may import all of them, and they the
# room's own files.
SUB_ROOMS: dict[str, dict[str, set[str]]] = {
    "io": {"images": set(), "sections": {"images"}},
    "pp": {
        "spots": set(),
        "expression": set(),
        "encoders": set(),
        "tissue": {"spots"},
        "patches": {"spots", "encoders"},
        "graph": {"spots", "patches"},
        "export": {"spots"},
    },
    "datasets": {"synthetic": set()},
    "pl": {"page": set()},
}

# Third-party packages that a room may import, where the table limits them.
ONLY: dict[str, set[str]] = {
    "nn": {"torch", "torch_geometric"},
    "retrieval": {"numpy", "pandas", "scipy", "torch", "faiss"},
    "metrics": {"numpy", "pandas", "scipy"},
    "_constants": set(),
    "_options": set(),
    "_errors": set(),
    "errors": set(),
    "_settings": {"platformdirs"},
    "_signals": set(),
    "_versions": set(),
    "_citation": set(),
    "_hub": {"huggingface_hub", "yaml"},
    "_artifacts": {"numpy", "safetensors", "torch"},
    "_logging": {"tqdm"},
    "_advice": set(),
    "_lazy": {"lazy_loader"},
    # Imported where an argument is first checked: what is imported at the top would be paid for by every room.
    "_arguments": {"pydantic"},
}
# Rooms that may import a package, where others must go through them.
KEPT_TO: dict[str, set[str]] = {
    "scvi": {"train", "model", "_compat", "_genes"},
    "lightning": {"train", "model", "_compat", "_genes"},
    "pooch": {"datasets"},
    "matplotlib": {"pl"},
    "matplotlib_scalebar": {"pl"},
    "squidpy": {"pp", "_compat", "_genes"},
    "distributed": {"cohort", "cli"},
    "huggingface_hub": {"_hub"},
    "lazy_loader": {"_lazy"},
}
# nn runs where torch and pydantic alone are installed, and _logging needs tqdm.
BASE_OF_NN = {"_constants", "_errors", "_advice", "_arguments", "_options"}

REACHED_BY_TESTS = 24
"""Private modules of which tests import; to become fewer."""

FILES = sorted(SOURCE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = ("st_gchb", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def room_of(module: str) -> str:
    """Room, or base module, that a module of the package belongs to; empty for the package itself."""
    return (*module.split("."), "")[1]


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@functools.cache
def nodes_of(path: Path) -> list[ast.AST]:
    """All that a file is made of; most rules look at it."""
    return list(ast.walk(tree_of(path)))


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


@functools.cache
def imports_of(path: Path) -> list[tuple[int, str]]:
    """Line and full dotted name of everything that a file imports, at its top or inside a function."""
    return list(_imports(path))


def name_of(node: ast.expr) -> str:
    """Last part of a dotted name, as ``ast.unparse`` of the whole would end; empty for what is no name."""
    return getattr(node, "attr", None) or getattr(node, "id", "")


def own_module(name: str) -> str:
    """Module of the package from which ``name`` is imported: ``st_gchb.io.open_image`` from ``st_gchb.io``."""
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


@functools.cache
def door_of(package: str) -> dict[str, str]:
    """Full names of what a door hands on, by the name there: of its stub where it imports on first use."""
    stub = MODULES[package].with_suffix(".pyi")
    names = {}
    for node in tree_of(stub if stub.exists() else MODULES[package]).body:
        if isinstance(node, ast.ImportFrom):
            base = f"{package}.{node.module}" if node.level else node.module
            names |= {alias.asname or alias.name: f"{base}.{alias.name}" for alias in node.names}
    return names


def defined_in(name: str) -> str:
    """Module in which ``name`` is defined, through as many doors as there are."""
    module = own_module(name)
    while MODULES[module].name == "__init__.py" and module != "st_gchb" and name != module:
        handed_on = door_of(module).get(name.removeprefix(f"{module}."))
        if handed_on is None:
            break
        name, module = handed_on, own_module(handed_on)
    return module


@functools.cache
def reachable(room: str) -> frozenset[str]:
    return frozenset(ROOMS[room]).union(*(reachable(other) for other in ROOMS[room] if other != room))


def is_own(name: str) -> bool:
    return name.split(".")[0] == "st_gchb"


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def check(findings: list[str]) -> None:
    assert not findings, "\n" + "\n".join(findings)


def test_there_is_something_to_read():
    assert "st_gchb._errors" in MODULES


def test_every_file_is_in_a_room_of_the_table():
    check([f"{module} is in no room of the table" for module in MODULES if room_of(module) not in {"", *BASE, *ROOMS}])


def test_rooms_import_in_one_direction():
    findings = []
    for module, path in MODULES.items():
        room = room_of(module)
        if room == "":
            continue
        allowed = BASE if room in BASE else {room, *BASE, *reachable(room)}
        if room == "nn":
            allowed = {room, *BASE_OF_NN}
        for line, name in imports_of(path):
            # The package itself holds the version alone.
            if is_own(name) and name != "st_gchb.__version__" and room_of(own_module(name)) not in allowed:
                findings.append(f"{where(path, line)}: {room} may not import {name}")
    check(findings)


def test_rooms_within_rooms_import_in_one_direction():
    findings = []
    for module, path in MODULES.items():
        _, room, *rest = (*module.split("."), "", "")
        inner = SUB_ROOMS.get(room, {})
        if rest[0] not in inner:
            continue
        for line, name in imports_of(path):
            if not is_own(name):
                continue
            parts = (*defined_in(name).split("."), "", "")
            if parts[1] == room and parts[2] in inner and parts[2] not in {rest[0], *inner[rest[0]]}:
                findings.append(f"{where(path, line)}: {room}.{rest[0]} may not import {name}")
    check(findings)


def test_every_room_within_a_room_is_in_the_table():
    found = {module for module, path in MODULES.items() if path.name == "__init__.py" and module.count(".") == 2}
    assert found == {f"st_gchb.{room}.{inner}" for room, table in SUB_ROOMS.items() for inner in table}


def test_a_room_is_entered_by_its_door():
    """From outside of a room or of a room within it, what its ``__init__`` hands on is imported, and nothing else."""
    findings = []
    for module, path in MODULES.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for line, name in imports_of(path):
            if not is_own(name):
                continue
            imported = own_module(name)
            home = imported if MODULES[imported].name == "__init__.py" else imported.rpartition(".")[0]
            inside = home == "st_gchb" or package == home or package.startswith(f"{home}.")
            if not inside and (imported != home or name.rpartition(".")[2].startswith("_")):
                findings.append(f"{where(path, line)}: {name} is private to {home}")
    check(findings)


def test_doors_hand_on_what_is_there():
    findings = []
    for module, path in MODULES.items():
        stub = path.with_suffix(".pyi")
        if path.name != "__init__.py" or module == "st_gchb":
            continue
        findings += [
            f"{module}: {name} is not in {full}"
            for name, full in door_of(module).items()
            if is_own(full) and full not in MODULES and own_module(full) == "st_gchb"
        ]
        if stub.exists():
            tree = ast.unparse(tree_of(path))
            assert "attach_stub(__name__, __file__)" in tree, f"{module} has a stub that it does not read"
    check(findings)


# Of a private module, or of a private name: most files have none, and need not be parsed.
MAY_REACH_BEHIND = re.compile(r"from\s+st_gchb\.\w+(?:[\w.]*\._|[\w.]*\s+import\s*(?:\([^)]*|(?:.*\\\n)*.*)\b_)")


def test_private_modules_are_tested_where_a_unit_has_no_door():
    """Tests, too, import from doors: what they reach behind them stands in the way of every change."""
    behind = {
        (str(path.relative_to(ROOT)), name)
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if MAY_REACH_BEHIND.search(text := path.read_text(encoding="utf-8"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("st_gchb.")
        for name in [f"{node.module}.{alias.name}" for alias in node.names]
        if own_module(name).count(".") > 1 and own_module(name).rpartition(".")[2].startswith("_")
    }
    modules = {own_module(name) for _, name in behind}
    assert len(modules) <= REACHED_BY_TESTS, sorted(modules)


def test_the_package_imports_no_room():
    """Rooms are imported on first use; a checker of types may see them."""
    init = SOURCE / "__init__.py"
    for_types = {
        sub.lineno
        for node in ast.walk(tree_of(init))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for sub in ast.walk(node)
        if isinstance(sub, ast.Import | ast.ImportFrom)
    }
    check(
        [
            f"{where(init, line)}: {name} is imported when the package is"
            for line, name in imports_of(init)
            if line not in for_types and name.split(".")[0] not in sys.stdlib_module_names
        ]
    )


def test_third_party_packages_stay_in_their_rooms():
    findings = []
    for module, path in MODULES.items():
        room = room_of(module)
        for line, name in imports_of(path):
            package = name.split(".")[0]
            if package in sys.stdlib_module_names or package == "st_gchb":
                continue
            if room in ONLY and package not in ONLY[room]:
                findings.append(f"{where(path, line)}: {room} may import {sorted(ONLY[room])} alone, not {name}")
            if package in KEPT_TO and room not in KEPT_TO[package]:
                findings.append(f"{where(path, line)}: {package} belongs to {sorted(KEPT_TO[package])}")
    check(findings)


def test_private_and_experimental_names_of_others_are_in_compat_alone():
    def hidden(name: str) -> bool:
        return any(
            (part.startswith("_") and not part.endswith("__")) or part == "experimental" for part in name.split(".")
        )

    check(
        [
            f"{where(path, line)}: {name} is private or experimental: import it in _compat.py"
            for path in FILES
            if path.name != "_compat.py"
            for line, name in imports_of(path)
            if not is_own(name) and name.split(".")[0] not in sys.stdlib_module_names and hidden(name)
        ]
    )


def test_layers_are_listed_by_their_names_alone():
    """From anndata 0.13 on, ``adata.layers`` holds X too, under None: what lists, copies or sorts asks ``_compat``."""
    listers = {"dict", "list", "set", "tuple", "sorted", "iter", "next"}
    findings = []
    for path in FILES:
        if path.name == "_compat.py":
            continue
        for node in nodes_of(path):
            listed: list[ast.expr] = []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in listers:
                listed += node.args
            elif isinstance(node, ast.For | ast.comprehension):
                listed.append(node.iter)
            elif isinstance(node, ast.Attribute) and node.attr in {"keys", "values", "items", "copy", "update"}:
                listed.append(node.value)
            elif isinstance(node, ast.Starred):
                listed.append(node.value)
            elif isinstance(node, ast.Dict):
                listed += [value for key, value in zip(node.keys, node.values, strict=True) if key is None]
            findings += [
                f"{where(path, each.lineno)}: {ast.unparse(each)} is listed: use named_layers"
                for each in listed
                if isinstance(each, ast.Attribute) and each.attr == "layers"
            ]
    check(findings)


def test_one_file_reads_and_writes_what_is_stored_of_a_slice():
    """Layouts of other programs are brought into the usual one where they are read; all else asks ``io._library``."""
    owners = {"_library.py", "_annotated.py", "_companions.py", "_constants.py"}
    parts = {"Keys.IMAGES", "Keys.SCALEFACTORS", "Keys.METADATA"}
    findings = []
    for path in FILES:
        for node in nodes_of(path):
            if path.name in owners:
                break
            is_entry = isinstance(node, ast.Subscript) and name_of(node.value) == "uns"
            if is_entry and ast.unparse(node.slice) in ("Keys.SPATIAL", "'spatial'"):
                findings.append(f"{where(path, node.lineno)}: {ast.unparse(node)}")
            if isinstance(node, ast.Attribute) and name_of(node.value) == "Keys" and ast.unparse(node) in parts:
                findings.append(f"{where(path, node.lineno)}: {ast.unparse(node)}")
    check(findings)


def test_no_module_imports_itself_by_a_detour():
    # The package itself imports rooms for the checker of types alone.
    graph = {
        module: {defined_in(name) for _, name in imports_of(path) if is_own(name)} - {"st_gchb", module}
        for module, path in MODULES.items()
        if path.name != "__init__.py"
    }
    graphlib.TopologicalSorter(graph).prepare()


def test_docstrings_say_what_is_done():
    """Of functions, ruff asks for the imperative; no summary is half a question either."""
    findings = []
    for path in FILES:
        for node in nodes_of(path):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                summary = (ast.get_docstring(node) or " ").splitlines()[0]
                if summary.split(" ")[0] in {"What", "How", "Where", "Whether"}:
                    findings.append(f"{where(path, getattr(node, 'lineno', 1))}: {summary}")
    check(findings)


def constants_of(nodes: list[ast.expr]) -> tuple[str, ...]:
    """Values of a closed set, sorted as text; empty for fewer than two, or where one is not a plain value."""
    plain = len(nodes) > 1 and all(isinstance(node, ast.Constant) for node in nodes)
    return tuple(sorted(map(ast.unparse, nodes))) if plain else ()


def test_a_closed_set_of_values_is_spelled_once():
    """A ``Literal`` is imported, and the command line offers ``get_args`` of it: two spellings come to differ."""
    places: dict[tuple[str, ...], list[str]] = {}
    findings = []
    for path in FILES:
        for node in nodes_of(path):
            if isinstance(node, ast.Subscript) and name_of(node.value).endswith("Literal"):
                values = constants_of(node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice])
                places.setdefault(values, []).append(where(path, node.lineno))
            elif isinstance(node, ast.keyword) and node.arg == "choices":
                listed = getattr(node.value, "elts", [])
                findings += [f"{where(path, node.value.lineno)}: choices of its own"] * bool(constants_of(listed))
    places.pop((), None)
    assert len(places) > 10
    check(findings + [f"{' and '.join(at)}: {', '.join(values)}" for values, at in places.items() if len(at) > 1])


def defaults_of(node: ast.FunctionDef | ast.ClassDef) -> Iterator[tuple[int, str, str]]:
    """Line, name and default of each argument of a function, or of each field of a class."""
    if isinstance(node, ast.ClassDef):
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and field.value is not None:
                yield field.lineno, ast.unparse(field.target), ast.unparse(field.value)
        return
    placed, named = [*node.args.posonlyargs, *node.args.args], node.args.kwonlyargs
    for argument, default in zip(reversed(placed), reversed(node.args.defaults), strict=False):
        yield argument.lineno, argument.arg, ast.unparse(default)
    for argument, default in zip(named, node.args.kw_defaults, strict=True):
        if default is not None:
            yield argument.lineno, argument.arg, ast.unparse(default)


def test_a_default_is_stated_once():
    """Public functions that share an argument and its default share a constant, or one is changed without the other."""
    # Values that stand for "as usual", and those that switch something off or leave it as it is.
    no_choice = {"None", "True", "False", "0", "1", "0.0", "1.0", "()", "''", "'auto'", "'default'"}
    places: dict[tuple[str, str], list[str]] = {}
    for path in FILES:
        for node in nodes_of(path):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            if any(ast.unparse(decorator).startswith("checked") for decorator in node.decorator_list):
                for line, name, default in defaults_of(node):
                    is_spelled = isinstance(ast.parse(default, mode="eval").body, ast.Constant)
                    if is_spelled and default not in no_choice:
                        places.setdefault((name, default), []).append(where(path, line))
    assert len(places) > 20
    check([f"{' and '.join(at)}: {name}={default}" for (name, default), at in places.items() if len(at) > 1])


def test_settings_of_the_network_are_those_of_the_model():
    """``nn`` states no default, and what it shares with the settings of a model has the same limits."""
    from typing import get_type_hints

    from st_gchb.model import ModelSettings
    from st_gchb.nn import LossSettings, NetworkSettings

    of_model = get_type_hints(ModelSettings, include_extras=True)
    of_data = {"n_features", "n_genes", "n_image_inputs", "n_expression_inputs"}
    for one in (NetworkSettings, LossSettings):
        assert all(field.default is field.default_factory is dataclasses.MISSING for field in dataclasses.fields(one))
        hints = get_type_hints(one, include_extras=True)
        assert {name: hints[name] for name in hints.keys() - of_data} == {
            name: of_model[name] for name in hints.keys() - of_data
        }


def test_nothing_reads_or_writes_pickle():
    modules = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    # torch.load raises pickle's error on a file that holds more than tensors.
    errors = {"pickle.UnpicklingError", "pickle.PickleError"}
    findings = []
    for path in FILES:
        findings += [
            f"{where(path, line)}: imports {name}"
            for line, name in imports_of(path)
            if name.split(".")[0] in modules and name not in {"pickle", *errors}
        ]
        for node in nodes_of(path):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle":
                findings += [f"{where(path, node.lineno)}: {ast.unparse(node)}"] * (ast.unparse(node) not in errors)
            if not isinstance(node, ast.Call) or not name_of(node.func).endswith(("load", "save", "pickle")):
                continue
            called = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            unsafe = (
                (called == "torch.load" and given.get("weights_only") != "True")
                or (called.endswith(".load") and given.get("allow_pickle", "False") != "False")
                or called == "torch.save"
                or called.endswith(("read_pickle", "to_pickle"))
            )
            if unsafe:
                findings.append(f"{where(path, node.lineno)}: {ast.unparse(node)}")
    check(findings)


@pytest.mark.parametrize("rooms", [(), ("metrics",)])
def test_importing_is_quick(rooms):
    """Importing scvi-tools takes ten seconds: neither the package nor the measures may bring it."""
    heavy = ["scvi", "scanpy", "squidpy", "spatialdata", "lightning", "torch", "torchvision", "matplotlib"]
    code = f"import sys, st_gchb\n[getattr(st_gchb, room) for room in {rooms!r}]\n"
    code += f"print(*[name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


COMMANDS = [(), ("train",), ("predict",), ("predict-many",), ("report",), ("evaluate",), ("hest-bench",)]


@pytest.fixture(scope="module")
def helped():
    """What each command answers, and what is imported by then: in one process, the first that is slow makes all."""
    code = f"""
import contextlib, io, json, sys
from st_gchb.cli import main
told = []
for command in {COMMANDS!r}:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main([*command, "--help"])
    told.append((out.getvalue(), list(sys.modules)))
print(json.dumps(told))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return dict(zip(COMMANDS, json.loads(result.stdout), strict=True))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_quick(helped, command):
    heavy = {"scvi", "scanpy", "anndata", "squidpy", "spatialdata", "lightning", "torch", "torchvision", "matplotlib"}
    heavy |= {"numpy", "pandas", "scipy"}
    told, imported = helped[command]
    assert told.startswith(" ".join(["usage: st-gchb", *command]))
    assert heavy.isdisjoint(imported)


def test_networks_need_torch_alone():
    """``nn`` runs where torch and pydantic alone are installed, and torch-geometric for networks that pass messages."""
    heavy = ["scvi", "scanpy", "anndata", "squidpy", "spatialdata", "lightning", "torchvision", "torch_geometric"]
    code = f"import sys, st_gchb.nn\nprint(*[name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_no_package_index_is_named():
    """Packages come from wherever the user's installer is set to look."""
    # Put together here, so that this file does not name them either.
    words = ["py" + r"pi\.org", "python" + "hosted", r"anaconda\." + "org", r"download\.pytorch\." + "org/whl"]
    words += ["--" + "index-url", "--" + "extra-index-url", "--" + "find-links", "--" + "default-index"]
    pattern = re.compile("|".join(words), re.IGNORECASE)
    if not (ROOT / ".git").exists():
        pytest.skip(f"{ROOT} is no git checkout, so its files cannot be listed")
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    findings = []
    for name in filter(None, listed):
        path = ROOT / name
        if path.is_file() and path.suffix not in {".png", ".jpg", ".tif", ".safetensors"}:
            text = path.read_text(encoding="utf-8", errors="replace")
            findings += [f"{name}: {found.group()}" for found in pattern.finditer(text)]
    check(findings)


def test_constraints_pin_exactly():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pin = re.compile(r"[a-z0-9][a-z0-9._-]*==[A-Za-z0-9.!+]+( ; .+)?")
    check([line for line in lines if line and not line.startswith("#") and not pin.fullmatch(line)])
    assert len(lines) > 100
