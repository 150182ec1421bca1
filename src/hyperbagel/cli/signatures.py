"""What settings classes take, read from their source: nothing of them is imported, so a typo is told at once."""

from __future__ import annotations

import ast
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

Options = dict[str, str | None]
"""Name of an option -> dotted path of the class that its type names, if it names one."""

_SEQUENCES = ("list", "Sequence", "Iterable")


@cache
def options(path: str) -> Options | None:
    """What the class at a dotted path takes; None where its source does not tell, as for further keyword arguments."""
    if (found := _class(path)) is None:
        return None
    module, node = found
    init = next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
    if init is not None:
        named = [*init.args.posonlyargs, *init.args.args, *init.args.kwonlyargs][1:]
        return None if init.args.kwarg else {arg.arg: _type(module, arg.annotation) for arg in named}
    taken: dict[str, str | None] = {}
    for written in node.bases:
        base = _type(module, written)
        inherited = None if base is None else options(base)
        if inherited is None:
            return None
        taken |= inherited
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        taken |= {
            part.target.id: _type(module, part.annotation)
            for part in node.body
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
        }
    elif not node.bases:
        return None
    return taken


@cache
def _module(name: str) -> ast.Module | None:
    """The syntax of a module outside of the standard library, None where there is no file of it, or a broken one."""
    root, *inner = name.split(".")
    try:
        spec = None if root in sys.stdlib_module_names else find_spec(root)
    except ValueError:  # of modules without a place, such as __main__
        spec = None
    if spec is None:
        return None
    folder = next(iter(spec.submodule_search_locations or ()), None)
    if folder is None:
        files = [Path(spec.origin)] if spec.origin and not inner else []
    else:
        place = Path(folder, *inner)
        files = [place / "__init__.py", place.with_suffix(".py")]
    try:
        return next((ast.parse(file.read_bytes()) for file in files if file.is_file()), None)
    except SyntaxError:
        return None


def _class(path: str) -> tuple[str, ast.ClassDef] | None:
    """A class and its module, also where others import it from there."""
    module, _, name = path.rpartition(".")
    tree = _module(module) if module else None
    for node in () if tree is None else tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
    elsewhere = _imported(module, name)
    return None if elsewhere is None else _class(elsewhere)


def _imported(module: str, name: str) -> str | None:
    """Where a module takes a name from by `from ... import`."""
    tree = _module(module) if module else None
    for node in () if tree is None else tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return f"{node.module}.{alias.name}"
    return None


def _type(module: str, written: ast.expr | None) -> str | None:
    """The class that a type names, alone, or None, or in a list."""
    if isinstance(written, ast.Name):
        return _imported(module, written.id) or f"{module}.{written.id}"
    if isinstance(written, ast.BinOp):
        return None if isinstance(written.left, ast.Constant) else _type(module, written.left)
    if isinstance(written, ast.Subscript) and ast.unparse(written.value) in _SEQUENCES:
        return _type(module, written.slice)
    return None
