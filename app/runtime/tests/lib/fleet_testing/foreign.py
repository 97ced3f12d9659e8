# SPDX-License-Identifier: MIT
"""Finds in the runtime's source each use of a name of Celery, kombu, billiard or redis-py that is not public.

The source is read, and its modules are imported to know the bases of its classes.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import fleet_runtime
from celery import bootsteps
from fleet_runtime.compat.surface import Name, resolve

PACKAGES = frozenset({"celery", "kombu", "billiard", "redis", "redbeat", "gevent", "flower", "vine"})
SOURCE = Path(fleet_runtime.__file__).parent
# Names of Python's data model. Celery's __trace__ only looks like one.
DUNDER = re.compile(r"__(?!trace__)\w+__")
# Python's own attributes of exceptions, which anybody may assign.
OF_EXCEPTIONS = frozenset({"__context__", "__cause__", "__traceback__", "__notes__"})
# Celery's documented base classes, whose methods are there to be overridden.
EXTENSION_POINTS = (bootsteps.Step, bootsteps.StartStopStep)
BY_NAME = frozenset({"getattr", "hasattr", "setattr", "delattr"})


class Use(NamedTuple):
    """A use of a foreign name.

    Attributes:
        file: Relative to the package.
        line: Its line.
        attribute: The name.
    """

    file: str
    line: int
    attribute: str

    @property
    def room(self) -> str:
        """The package of the runtime, or its module if it is in none."""
        return room_of(self.file)

    def __str__(self) -> str:
        """Return it as a line of a message."""
        return f"{self.file}:{self.line} {self.attribute}"


def room_of(file: str) -> str:
    """Return the room of a file: its first folder, or its own name if it is in none."""
    return file.partition("/")[0].removesuffix(".py")


@cache
def sources() -> dict[str, ast.Module]:
    """Return the runtime's files, read."""
    return {
        str(path.relative_to(SOURCE)): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(SOURCE.rglob("*.py"))
    }


def module_of(file: str) -> ModuleType | None:
    """Return a file's module; None for the entry, which loads an app as it is imported."""
    if file == "app.py":
        return None
    path = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return importlib.import_module("fleet_runtime" if path == "__init__" else f"fleet_runtime.{path}")


def is_foreign(cls: type[Any]) -> bool:
    """Return whether a class is of one of the packages."""
    return cls.__module__.partition(".")[0] in PACKAGES


@cache
def assigned_by(cls: Any) -> frozenset[str]:
    """Return the attributes that the source of one class assigns to `self`."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):  # it is built in
        return frozenset()
    return frozenset(
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value)
    )


def foreign_names(cls: type[Any] | None) -> frozenset[str]:
    """Return what a class inherits from the packages: what their classes define, and assign to `self`."""
    bases = cls.__mro__ if cls else ()
    return frozenset(name for base in bases if is_foreign(base) for name in (*vars(base), *assigned_by(base)))


def _is_self(node: ast.expr) -> bool:
    """Return whether an expression is the instance, or the class, of the method that it is in."""
    return isinstance(node, ast.Name) and node.id in {"self", "cls"}


def _is_private(name: str) -> bool:
    """Return whether a name is private, and none of Python's own."""
    return name.startswith("_") and not DUNDER.fullmatch(name)


@dataclass
class File:
    """What is to be known of a file of the runtime.

    Attributes:
        name: Relative to the package.
        tree: Its source.
        module: Its module.
        roots: The package of each name that it imports.
    """

    name: str
    tree: ast.Module
    module: ModuleType | None

    def __post_init__(self) -> None:
        """Look at its imports."""
        self.roots: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self.roots[alias.asname or alias.name.partition(".")[0]] = alias.name.partition(".")[0]
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    self.roots[alias.asname or alias.name] = node.module.partition(".")[0]

    def root(self, node: ast.expr) -> str | None:
        """Return the package from which the first name of `name.a.b` was imported, if it was."""
        while isinstance(node, ast.Attribute):
            node = node.value
        return self.roots.get(node.id) if isinstance(node, ast.Name) else None

    def walk(
        self, node: ast.AST | None = None, path: tuple[str, ...] = (), cls: type[Any] | None = None
    ) -> Iterator[tuple[ast.AST, type[Any] | None]]:
        """Yield each node, with the class in whose body it is."""
        for child in ast.iter_child_nodes(node or self.tree):
            if isinstance(child, ast.ClassDef):
                inner = (*path, child.name)
                found: Any = self.module
                for part in inner:
                    found = getattr(found, part, None)
                yield child, cls
                yield from self.walk(child, inner, found if inspect.isclass(found) else None)
            else:
                yield child, cls
                yield from self.walk(child, path, cls)

    def own_names(self) -> Iterator[str]:
        """Yield the private names that the file defines, but for those of the packages that it overrides."""
        for node, cls in self.walk():
            name = None
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                name = node.name
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                name = node.id
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
                name = node.attr
            if name and name.startswith("_") and name not in foreign_names(cls):
                yield name

    def private_uses(self, own: frozenset[str]) -> Iterator[Use]:
        """Yield each use of a private name of the packages.

        Args:
            own: The private names of the file's room. On objects other than `self`, they are taken to be the
                room's own.
        """
        for node, cls in self.walk():
            if isinstance(node, ast.ImportFrom) and node.module:
                parts = node.module.split(".")
                if parts[0] in PACKAGES:
                    is_hidden = any(map(_is_private, parts))
                    for alias in node.names:
                        if is_hidden or _is_private(alias.name):
                            yield Use(self.name, node.lineno, alias.name)
            elif isinstance(node, ast.Attribute):
                if self._is_foreign_use(node.value, node.attr, cls, own, isinstance(node.ctx, ast.Store)):
                    yield Use(self.name, node.lineno, node.attr)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BY_NAME:
                named = getattr(node.args[1], "value", None) if len(node.args) > 1 else None
                if isinstance(named, str) and self._is_foreign_use(node.args[0], named, cls, own, False):
                    yield Use(self.name, node.lineno, named)

    def _is_foreign_use(
        self, receiver: ast.expr, name: str, cls: type[Any] | None, own: frozenset[str], stores: bool
    ) -> bool:
        """Return whether `receiver.name` is a use of a private name of the packages."""
        if DUNDER.fullmatch(name) and stores and not _is_self(receiver):
            return name not in OF_EXCEPTIONS and self.root(receiver) in {None, *PACKAGES}
        if not _is_private(name):
            return False
        is_super = (
            isinstance(receiver, ast.Call)
            and isinstance(receiver.func, ast.Name)
            and receiver.func.id == "super"
        )
        if cls is not None and (_is_self(receiver) or is_super):
            return name in foreign_names(cls)
        root = self.root(receiver)
        if root is not None:
            return root in PACKAGES
        return name not in own

    def assignments(self) -> Iterator[Use]:
        """Yield each assignment to an attribute, or to an item, of what is imported from the packages."""
        for node, _ in self.walk():
            if isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
                continue
            if isinstance(node, ast.Attribute) and self.root(node) in PACKAGES:
                yield Use(self.name, node.lineno, node.attr)
            elif isinstance(node, ast.Subscript) and self.root(node.value) in PACKAGES:
                yield Use(self.name, node.lineno, ast.unparse(node.value).rpartition(".")[2])

    def overrides(self) -> Iterator[tuple[Use, type[Any]]]:
        """Yield what the file's classes override or assign of the packages' classes, and the class."""
        lines = {node.name: node.lineno for node, _ in self.walk() if isinstance(node, ast.ClassDef)}
        for cls in _classes(self.module):
            bases = [one for one in cls.__mro__ if is_foreign(one) and one not in EXTENSION_POINTS]
            known = {name for base in bases for name in (*vars(base), *assigned_by(base))}
            own: Any = cls
            if not issubclass(cls, BaseException):
                for name in sorted(known & {*vars(cls), *assigned_by(own)} - IMPLICIT):
                    yield Use(self.name, lines[cls.__name__], name), cls


# What Python itself puts into each class.
IMPLICIT = frozenset(vars(type("Empty", (), {"__annotations__": {}}))) | {
    "__firstlineno__", "__static_attributes__", "__annotate__", "__annotations_cache__", "__orig_bases__",
    "__parameters__", "__abstractmethods__", "_abc_impl", "__slots__", "__qualname__", "__hash__",
}  # fmt: skip


def _classes(module: ModuleType | None) -> Iterator[type[Any]]:
    """Yield the classes that a module defines at its top level, unless they are for versions of before."""
    if not getattr(module, "IS_OLDER", True):
        return
    for value in vars(module).values() if module else ():
        if inspect.isclass(value) and value.__module__ == getattr(module, "__name__", ""):
            yield value


@cache
def files() -> tuple[File, ...]:
    """Return the runtime's files."""
    return tuple(File(name, tree, module_of(name)) for name, tree in sources().items())


@cache
def own_names() -> dict[str, frozenset[str]]:
    """Return the private names that each room defines."""
    found: dict[str, set[str]] = defaultdict(set)
    for file in files():
        found[room_of(file.name)].update(file.own_names())
    return {room: frozenset(names) for room, names in found.items()}


def private_uses() -> list[Use]:
    """Return each use of a private name of the packages in the runtime."""
    return [use for file in files() for use in file.private_uses(own_names()[room_of(file.name)])]


def assignments() -> list[Use]:
    """Return each assignment to what is the packages' own."""
    return [use for file in files() for use in file.assignments()]


def overrides() -> list[tuple[Use, type[Any]]]:
    """Return each override of a name of the packages' classes that are no extension points."""
    return [found for file in files() for found in file.overrides()]


@cache
def mentioned(room: str) -> frozenset[str]:
    """Return all words of a room's source."""
    text = "\n".join((SOURCE / name).read_text() for name in sources() if room_of(name) == room)
    return frozenset(re.findall(r"\w+", text))


def original_of(name: Name) -> Any:
    """Return the function behind a name: of a property its getter, of a wrapper what it wraps."""
    if name.seen_in:
        return inspect.unwrap(resolve(name.seen_in))
    owner = resolve(name.owner)
    found = (
        inspect.getattr_static(owner, name.attribute)
        if inspect.isclass(owner)
        else vars(owner)[name.attribute]
    )
    for inner in ("fget", "func", "__func__"):  # of a property, a cached property, a class method
        found = getattr(found, inner, None) or found
    return inspect.unwrap(found)


def hash_of(function: Any) -> str:
    """Return the hash of a function's source, without its indentation, empty lines and comments."""
    lines = [line.rstrip() for line in textwrap.dedent(inspect.getsource(function)).splitlines()]
    kept = [line for line in lines if line and not line.lstrip().startswith("#")]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:12]


def exists(name: Name) -> bool:
    """Return whether a name is there.

    It is in its module or class, or the class assigns it to `self`; where neither shows it, it is in the
    source of what `seen_in` names.
    """
    if name.seen_in:
        return name.attribute in inspect.getsource(original_of(name))
    try:
        owner = resolve(name.owner)
    except AttributeError:
        return False
    assigned = (assigned_by(base) for base in owner.__mro__) if inspect.isclass(owner) else ()
    return hasattr(owner, name.attribute) or any(name.attribute in names for names in assigned)
