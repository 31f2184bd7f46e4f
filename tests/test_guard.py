"""The house rules of size, words and arrows, over every file of the package."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("taro", "shards", "preprocess", "train")
"""of the packages: the last three are `taro.shards`, ... by links inside taro/"""
MAY_IMPORT = {
    "core": set(),
    "grounding": {"core"},
    "pages": {"core", "grounding", "metrics"},
    "models": {"core", "grounding"},
    "annotations": {"core", "grounding"},
    "metrics": {"core", "grounding", "annotations"},
    "sandbox": {"core", "grounding", "metrics", "models"},
    "shards": {"core", "grounding", "models", "pages"},
    "preprocess": {"core", "grounding", "annotations", "models", "shards"},
    "train": {"core", "grounding", "metrics", "models", "pages", "shards"},
    "cli": {"core", "grounding", "annotations", "metrics", "models", "pages", "sandbox", "shards", "preprocess",
            "train"},
}
"""the arrows of the house: a folder of the package taro -> the folders that it may import, besides itself"""
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 400, 60, 8
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")
               if not any(parent.is_symlink() for parent in path.parents))
CODE = sorted([*FILES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])


def name_of(path: Path) -> str:
    """The path as the guard prints it."""
    return str(path.relative_to(ROOT))


@cache
def tree_of(path: Path) -> ast.Module:
    """The parsed file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=name_of(path))


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a file, nested ones too."""
    return [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def lines_of(node: ast.AST) -> int:
    """Lines from the `def` to the end of the body."""
    assert isinstance(node, ast.stmt) and node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_the_guard_sees_the_house() -> None:
    """A guard that looks at nothing passes: it must see every package, and a long function when there is one."""
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(FOLDERS)
    assert {room_of(module_of(path)) for path in FILES} == {*MAY_IMPORT, ""}
    body = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES
    assert lines_of(ast.parse(body).body[0]) == MAX_FUNCTION_LINES + 1


def test_files_are_short() -> None:
    long = {name_of(p): n for p in CODE if (n := len(p.read_text(encoding="utf-8").splitlines())) > MAX_FILE_LINES}
    assert not long, f"files over {MAX_FILE_LINES} lines: {long}"


def test_functions_are_short() -> None:
    long = {f"{name_of(p)}:{f.lineno} {f.name}": lines_of(f) for p in CODE for f in functions(p)
            if lines_of(f) > MAX_FUNCTION_LINES}
    assert not long, f"functions over {MAX_FUNCTION_LINES} lines: {long}"


def test_every_module_opens_with_a_docstring() -> None:
    bare = [name_of(p) for p in CODE if ast.get_docstring(tree_of(p)) is None and (p in FILES or tree_of(p).body)]
    assert not bare, f"modules without a docstring: {bare}"


def public_nodes(path: Path) -> list[tuple[str, ast.AST]]:
    """Public functions and classes of a module, and the public methods of its public classes."""
    found: list[tuple[str, ast.AST]] = []
    for node in tree_of(path).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            found.append((node.name, node))
            if isinstance(node, ast.ClassDef):
                methods = [f for f in node.body if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)]
                found += [(f"{node.name}.{f.name}", f) for f in methods if not f.name.startswith("_")]
    return found


def test_every_public_name_has_a_docstring() -> None:
    bare = [f"{name_of(p)}: {name}" for p in FILES for name, node in public_nodes(p)
            if ast.get_docstring(node) is None and not overloaded(node)]  # type: ignore[arg-type]
    assert not bare, f"public names without a docstring: {bare}"


def overloaded(node: ast.AST) -> bool:
    """Overload stubs and setters borrow their docstring."""
    marks = [ast.unparse(mark) for mark in getattr(node, "decorator_list", [])]
    return any(mark.endswith(("overload", ".setter")) for mark in marks)


def imports(path: Path) -> list[tuple[int, str, str]]:
    """(line, module, where) of every import: where is "module", "function" or "typing" (under TYPE_CHECKING)."""
    found: list[tuple[int, str, str]] = []

    def visit(node: ast.AST, where: str) -> None:
        if isinstance(node, ast.Import):
            found.extend((node.lineno, alias.name, where) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: relative import; the house imports absolutely"
            found.append((node.lineno, node.module or "", where))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for inner in node.body:
                visit(inner, "typing")
            for inner in node.orelse:
                visit(inner, where)
            return
        deeper = "function" if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) else where
        for child in ast.iter_child_nodes(node):
            visit(child, deeper)

    visit(tree_of(path), "module")
    return found


def module_of(path: Path) -> str:
    """The import name of a file."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return name if name.partition(".")[0] == "taro" else f"taro.{name}"


def room_of(module: str) -> str:
    """The folder of the package that a module stands in: "core" of taro.core.errors; "" of taro itself."""
    first = [*module.split("."), ""][1]
    return "" if first == "__main__" else first


@cache
def edges() -> dict[str, set[str]]:
    """Imports among our own modules, wherever they stand; the lazy table of `taro` imports nothing when it is read."""
    ours = {module_of(path): path for path in FILES}
    found: dict[str, set[str]] = {name: set() for name in ours}
    for name, path in ours.items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                named = [inner if (inner := f"{node.module}.{alias.name}") in ours else node.module
                         for alias in node.names]
            else:
                continue
            found[name] |= {module for module in named if module in ours and module != name}
    found["taro"] = {"taro.core.version"}
    return found


def test_imports_follow_the_arrows() -> None:
    against = [f"{name} imports {module}" for name, imported in edges().items() for module in sorted(imported)
               if room_of(name) and room_of(module) not in {*MAY_IMPORT[room_of(name)], room_of(name)}]
    assert not against, "\n".join(["imports against the arrows:", *against])


def test_no_import_goes_in_a_circle() -> None:
    """Every file can be read after all that it imports: what is left when files without an import that is left are
    taken away, again and again, is a circle."""
    left = {name: set(imported) for name, imported in edges().items()}
    while free := {name for name, imported in left.items() if not imported & left.keys()}:
        left = {name: imported for name, imported in left.items() if name not in free}
    assert not left, f"files in circles, or above one: {sorted(left)}"


def test_the_stages_are_imported_by_their_full_names() -> None:
    """`import train` would load a second copy of every class, or a user's own file."""
    bare = [f"{name_of(p)}:{line} {module}" for p in CODE for line, module, _ in imports(p)
            if module.partition(".")[0] in FOLDERS[1:]]
    assert not bare, f"bare names of stages: {bare}"


FORMULAS = {"policy_loss"}
"""equations, whose symbols are their parameters"""


def test_functions_have_few_parameters() -> None:
    """A function with more takes what belongs together as one value."""
    many = {}
    for path in FILES:
        for f in functions(path):
            names = [arg.arg for arg in [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]]
            if len([name for name in names if name not in {"self", "cls"}]) > MAX_PARAMETERS and f.name not in FORMULAS:
                many[f"{name_of(path)}:{f.lineno} {f.name}"] = len(names)
    assert not many, f"functions with more than {MAX_PARAMETERS} parameters: {many}"


HEAVY = {"torch", "transformers", "av", "decord", "open_clip", "webdataset", "datasets", "PIL", "torchvision", "pandas"}
LIGHT_FILES = ("taro/__init__.py", "taro/__main__.py", "taro/cli/app.py")


def test_the_front_door_is_light() -> None:
    """No heavy library is imported by the front door, nor at the top of a command's module."""
    paths = [p for p in FILES if name_of(p) in LIGHT_FILES or name_of(p).startswith("taro/cli/")]
    heavy = [f"{name_of(p)}:{line} {module}" for p in paths for line, module, where in imports(p)
             if where == "module" and module.partition(".")[0] in HEAVY]
    assert not heavy, f"heavy imports at the front door: {heavy}"


NOT_FOR_TRAINING = {"av", "decord", "open_clip", "webdataset", "datasets"}


def test_training_and_shards_do_not_import_decoding_libraries_at_module_level() -> None:
    """`datasets`, `webdataset` and the decoders may be named inside the function that needs them, nowhere else."""
    paths = [p for p in FILES if p.relative_to(ROOT).parts[0] in {"shards", "train"} or "/models/" in name_of(p)]
    found = [f"{name_of(p)}:{line} {module}" for p in paths for line, module, where in imports(p)
             if where == "module" and module.partition(".")[0] in NOT_FOR_TRAINING]
    assert not found, f"training would need: {found}"


NUMBER_PATTERN = re.compile(r"(?<!\[\^\\W)\\d|\[\^?[0-9]-[0-9](?![A-Za-z_-]*[A-Za-z])")
FIXED_FORMS = {
    "taro/core/files.py": "the number of a disk error", "taro/models/resolve.py": "cuda:0",
    "taro/sandbox/tokens.py": "splits a text into tokens", "shards/format.py": "a version",
    "shards/store.py": "names of shards", "shards/manifest.py": "names of shards",
    "shards/text_search.py": "repeats in a regular expression", "shards/transfer/redact.py": "an address with a port",
    "train/report/data.py": "names of steps", "taro/grounding/clock.py": "a unit between two digits",
    "taro/core/yaml_text.py": "what YAML 1.2 calls a number"}
"""files with patterns of digits that read no number of a text -> what they are for"""


def constants(path: Path) -> list[tuple[int, str]]:
    """(line, text) of every string of a file but its docstrings."""
    bare = {id(node.value) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Expr)}
    return [(node.lineno, node.value) for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare]


def test_numbers_are_read_by_one_module() -> None:
    """A pattern that reads a number is one of taro/core/numbers.py: others cut what is long, or stop at a comma."""
    assert NUMBER_PATTERN.search(r"(\d{1,9})") and NUMBER_PATTERN.search("[0-9]{1,9}[.][0-9]")
    assert not NUMBER_PATTERN.search("[A-Za-z0-9_-]+") and not NUMBER_PATTERN.search(r"[^\W\d]+"), "letters"
    found = [f"{name_of(p)}:{line} {text[:60]!r}" for p in FILES for line, text in constants(p)
             if NUMBER_PATTERN.search(text) and name_of(p) != "taro/core/numbers.py" and name_of(p) not in FIXED_FORMS]
    assert not found, "patterns of numbers outside taro/core/numbers.py:\n" + "\n".join(found)


def test_future_annotations_everywhere() -> None:
    missing = [name_of(p) for p in FILES
               if tree_of(p).body[1:] and not any(module == "__future__" for _, module, _ in imports(p))]
    assert not missing, f"modules without `from __future__ import annotations`: {missing}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_dunder_all_is_right(path: Path) -> None:
    """`__all__` exists, is sorted without a repeat, and names what the module defines or offers lazily. A package that
    is a docstring alone needs none."""
    if path.name == "__main__.py" or (path.name == "__init__.py" and not tree_of(path).body[1:]):
        return
    module = importlib.import_module(module_of(path))
    names = getattr(module, "__all__", None)
    assert names is not None, f"{name_of(path)} has no __all__"
    assert sorted(set(names)) == sorted(names), f"{name_of(path)}: __all__ repeats a name"
    if name_of(path) == "taro/__init__.py":
        return  # its names are looked up by tests/test_import.py
    missing = [name for name in names if not hasattr(module, name)]
    assert not missing, f"{name_of(path)}: __all__ names what is not there: {missing}"
    defined = {name for name, _ in public_nodes(path) if "." not in name}
    assert defined <= set(names), f"{name_of(path)}: public but not in __all__: {sorted(defined - set(names))}"


def test_code_is_ascii() -> None:
    odd = [f"{name_of(p)}:{i}" for p in CODE for i, line in enumerate(p.read_text(encoding="utf-8").splitlines(), 1)
           if not line.isascii()]
    assert not odd, f"characters outside ASCII (write them as escapes): {odd}"


def tracked_text() -> list[Path]:
    """Files of the repository that git knows or would add, text only; all files where there is no git."""
    try:
        listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True,
                                capture_output=True, text=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return [*CODE]
    paths = [ROOT / line for line in listed]
    suffixes = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".jsonl", ".html", ".svg", ""}
    return [p for p in paths if p.is_file() and p.suffix in suffixes and p.stat().st_size < 5_000_000]


MACHINE_PATH = re.compile(r"(?<![\w.<>])/(?:work|farm|root|home/[a-z]+)/")


def test_no_path_of_a_machine() -> None:
    """Nothing that is committed names a folder of the machine that it was written on."""
    assert MACHINE_PATH.search("see /wo" + "rk/main")
    found = []
    for path in tracked_text():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{name_of(path)}:{i}" for i, line in enumerate(text.splitlines(), 1) if MACHINE_PATH.search(line)]
    assert not found, f"paths of a machine: {found}"


def test_nothing_is_left_unwritten() -> None:
    """No NotImplementedError, no leftover marks, no bare except, no utils.py."""
    marks = re.compile(r"NotImplementedError|\bTO" + r"DO\b|\bFIX" + r"ME\b|\bXX" + r"X\b")
    found = [f"{name_of(p)}:{i}: {line.strip()}" for p in FILES
             for i, line in enumerate(p.read_text(encoding="utf-8").splitlines(), 1) if marks.search(line)]
    bare = [f"{name_of(p)}:{node.lineno} bare except" for p in FILES for node in ast.walk(tree_of(p))
            if isinstance(node, ast.ExceptHandler) and node.type is None]
    named = [name_of(p) for p in FILES if p.name == "utils.py"]
    assert not found + bare + named


@pytest.mark.parametrize("stage", ["preprocess", "train"])
def test_every_recipe_loads(stage: str) -> None:
    """Each recipe that ships is a configuration of its stage; --set of the obligatory paths is all it may want."""
    from taro.core.config import Config, load_config, recipe_names

    config = importlib.import_module(f"taro.{stage}.config")
    model: type[Config] = getattr(config, {"preprocess": "PreprocessConfig", "train": "TrainConfig"}[stage])
    wanted = [f"{name}=given" for name, field in model.model_fields.items() if field.is_required()]
    names = recipe_names(f"taro.{stage}.recipes")
    assert names
    for name in names:
        load_config(model, name, wanted, package=f"taro.{stage}.recipes")


def test_packages_say_that_they_are_typed() -> None:
    assert (ROOT / "taro/py.typed").is_file()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q"]))
