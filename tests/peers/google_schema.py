"""The Google provider's schema, read from the provider's generated bindings for Terraform's CDK.

Each type of the provider has a module there in which every argument stands with its name, its type, and
whether it has to be set, can be, or is only read. `make schemas` installs them.
"""

from __future__ import annotations

import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tests.peers.mock_vendor import REPOSITORY

SCHEMAS = REPOSITORY / "build/peers/schemas"
_BINDINGS = "cdktf_cdktf_provider_google/_jsii"
_MODULE = re.compile(r"package/lib/([\w-]+)/index\.js")
_CLASS = re.compile(r"^class (\w+) extends cdktf\.(\w+) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_ROOTS = ("TerraformResource", "TerraformDataSource", "TerraformProvider")
_VALUE = re.compile(r"get (\w+)\(\) \{\n\s+return .*this\.get(\w+)Attribute\('(\w+)'\)")
_NESTED = re.compile(
    r'// .* computed: (\w+), .* required: (\w+)\n\s+this\.\w+ = new ([\w.]+)\(this, "(\w+)"(.*)\)'
)
_OF_PROVIDER = re.compile(r"^ +(\w+): \{\n\s+value: cdktf\.(\w+)ToHclTerraform", re.MULTILINE)
_TYPES = {
    "String": '"string"',
    "Number": '"number"',
    "Boolean": '"bool"',
    "List": '["list","string"]',
    "NumberList": '["list","number"]',
    "StringMap": '["map","string"]',
}
_ANY_TYPE = '"dynamic"'


@dataclass(frozen=True, slots=True)
class Attribute:
    """An argument, or a value that is only read (neither required nor optional)."""

    name: str
    type: str  # as Terraform writes types in JSON
    required: bool = False
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Nested:
    """Blocks within a block; `most` is 0 where there may be any number."""

    name: str
    nesting: str  # `single`, `list` or `set`
    least: int
    most: int
    block: Block


@dataclass(frozen=True, slots=True)
class Block:
    """What may stand between two braces."""

    attributes: tuple[Attribute, ...]
    blocks: tuple[Nested, ...] = ()


@dataclass(frozen=True, slots=True)
class ProviderSchema:
    """Of the types that were asked for, as far as the provider has them."""

    provider: Block
    resources: dict[str, Block]
    data: dict[str, Block]


def read_schema(resources: set[str], data: set[str], root: Path = SCHEMAS) -> ProviderSchema:
    """The schema of these types (`google_storage_bucket`, …); those that do not exist are left out."""
    folders = {name.removeprefix("google_").replace("_", "-"): name for name in resources}
    data_folders = {f"data-{name.replace('_', '-')}": name for name in data}
    modules = _modules(root, {"provider", *folders, *data_folders})
    return ProviderSchema(
        provider=Block(
            tuple(
                Attribute(name, _TYPES[kind.capitalize()], optional=True)
                for name, kind in _OF_PROVIDER.findall(modules["provider"])
            )
        ),
        resources={name: _root(modules[folder]) for folder, name in folders.items() if folder in modules},
        data={name: _root(modules[folder]) for folder, name in data_folders.items() if folder in modules},
    )


def _modules(root: Path, wanted: set[str]) -> dict[str, str]:
    (archive,) = (root / _BINDINGS).glob("*.tgz")
    found = {}
    with tarfile.open(archive) as members:
        for member in members:
            name = _MODULE.fullmatch(member.name)
            if name is not None and name[1] in wanted:
                stream = members.extractfile(member)
                assert stream is not None
                found[name[1]] = stream.read().decode()
    return found


def _root(module: str) -> Block:
    classes = {name: body for name, _, body in _CLASS.findall(module)}
    (root,) = (name for name, base, _ in _CLASS.findall(module) if base in _ROOTS)
    return _block(classes, root)


def _block(classes: dict[str, str], name: str) -> Block:
    body = classes[name]
    nested = [found for found in _NESTED.findall(body) if not _is_read_only(*found)]
    read = [Attribute(found[3], _ANY_TYPE) for found in _NESTED.findall(body) if _is_read_only(*found)]
    return Block((*_values(body), *read), tuple(_nested(classes, *found) for found in nested))


def _is_read_only(computed: str, _required: str, kind: str, _name: str, _rest: str) -> bool:
    return computed == "true" or kind.startswith("cdktf.")


def _values(body: str) -> list[Attribute]:
    """A value with a setter is an argument, and one that can be reset is optional."""
    found = []
    for called, kind, name in _VALUE.findall(body):
        is_set = f" set {called}(" in body
        may_lack = f" reset{called[0].upper()}{called[1:]}(" in body
        found.append(
            Attribute(name, _TYPES.get(kind, _ANY_TYPE), is_set and not may_lack, is_set and may_lack)
        )
    return found


def _nested(classes: dict[str, str], _: str, required: str, kind: str, name: str, rest: str) -> Nested:
    least = int(required == "true")
    if kind.endswith("List"):
        within = _block(classes, f"{kind.removesuffix('List')}OutputReference")
        return Nested(name, "set" if "true" in rest else "list", least, 0, within)
    nesting = "single" if name == "timeouts" else "list"
    most = 0 if nesting == "single" else 1
    return Nested(name, nesting, least, most, _block(classes, kind))
