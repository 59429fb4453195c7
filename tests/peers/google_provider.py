"""A Terraform provider that knows the Google provider's schema: for `terraform validate` and `plan`.

Terraform itself parses the files, resolves every reference, checks names, types and blocks, and works out
which resources there are and with which arguments; what it asks a provider for that is the schema
(`google_schema`). It speaks Terraform's plugin protocol 5 on a socket of loopback, and Terraform is pointed
at it by `TF_REATTACH_PROVIDERS`, so nothing has to be installed for it. It plans every resource as it is
written, and what the service would choose or give as known after apply; it makes nothing. What only the true
provider's code would say is not said: that two arguments exclude each other, that a value is none of those
allowed, that one is only read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tests.peers.google_schema import Block, ProviderSchema
from tests.peers.message_pack import NULL, UNKNOWN, fields_of, map_of

_PACKAGE = "tfplugin5"
_NESTING = {"single": 1, "list": 2, "set": 3}
_FIELDS: dict[str, dict[str, tuple[int, str]]] = {
    "Attribute": {
        "name": (1, "string"),
        "type": (2, "bytes"),
        "required": (4, "bool"),
        "optional": (5, "bool"),
        "computed": (6, "bool"),
    },
    "NestedBlock": {
        "type_name": (1, "string"),
        "block": (2, "Block"),
        "nesting": (3, "int32"),
        "min_items": (4, "int64"),
        "max_items": (5, "int64"),
    },
    "Block": {"attributes": (2, "Attribute*"), "block_types": (3, "NestedBlock*")},
    "Schema": {"version": (1, "int64"), "block": (2, "Block")},
    "NamedSchema": {"key": (1, "string"), "value": (2, "Schema")},
    "Schemas": {
        "provider": (1, "Schema"),
        "resource_schemas": (2, "NamedSchema*"),
        "data_source_schemas": (3, "NamedSchema*"),
    },
    "Value": {"msgpack": (1, "bytes"), "json": (2, "bytes")},
    "Configuration": {"config": (1, "Value")},
    "ToPlan": {"type_name": (1, "string"), "proposed": (3, "Value")},
    "Planned": {"state": (1, "Value")},
    "Nothing": {},
}
"""The messages of the protocol that are needed here: number and type of each field (`*`: repeated).

A map of protobuf is, on the wire, a repeated message of key and value, and an enumeration an integer.
"""


def _messages() -> dict[str, Callable[..., Any]]:
    file = descriptor_pb2.FileDescriptorProto(name="provider.proto", package=_PACKAGE, syntax="proto3")
    kind = descriptor_pb2.FieldDescriptorProto
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for called, (number, of) in fields.items():
            label = kind.LABEL_REPEATED if of.endswith("*") else kind.LABEL_OPTIONAL
            one = message.field.add(name=called, number=number, label=label)
            if of.rstrip("*") in _FIELDS:
                one.type, one.type_name = kind.TYPE_MESSAGE, f".{_PACKAGE}.{of.rstrip('*')}"
            else:
                one.type = getattr(kind, f"TYPE_{of.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = message_factory.GetMessageClassesForFiles(["provider.proto"], pool)
    return {name: found[f"{_PACKAGE}.{name}"] for name in _FIELDS}


_M = _messages()


def _schema(block: Block) -> Any:
    return _M["Schema"](version=0, block=_block(block))


def _block(block: Block) -> Any:
    return _M["Block"](
        attributes=[
            _M["Attribute"](
                name=a.name,
                type=a.type.encode(),
                required=a.required,
                optional=a.optional,
                computed=not a.required,
            )
            for a in block.attributes
        ],
        block_types=[
            _M["NestedBlock"](
                type_name=n.name,
                block=_block(n.block),
                nesting=_NESTING[n.nesting],
                min_items=n.least,
                max_items=n.most,
            )
            for n in block.blocks
        ],
    )


def _named(blocks: dict[str, Block]) -> list[Any]:
    return [_M["NamedSchema"](key=name, value=_schema(block)) for name, block in blocks.items()]


class _Provider(grpc.GenericRpcHandler):
    """Gives the schema, finds nothing wrong with what keeps to it, and plans all as it is written."""

    def __init__(self, schema: ProviderSchema) -> None:
        self._schema = schema
        given = _M["Schemas"](
            provider=_schema(schema.provider),
            resource_schemas=_named(schema.resources),
            data_source_schemas=_named(schema.data),
        ).SerializeToString()
        self._answers: dict[str, Callable[[bytes], bytes]] = {
            "GetSchema": lambda _: given,
            "PrepareProviderConfig": lambda asked: asked,  # its answer has the same shape as the question
            "ValidateResourceTypeConfig": lambda _: b"",
            "ValidateDataSourceConfig": lambda _: b"",
            "Configure": lambda _: b"",
            "PlanResourceChange": self._plan,
            "Stop": lambda _: b"",
        }

    def _plan(self, asked: bytes) -> bytes:
        """A resource as it is proposed; what is given to read and not written is known after apply."""
        wanted = _M["ToPlan"].FromString(asked)
        given = {a.name for a in self._schema.resources[wanted.type_name].attributes if not a.required}
        values = dict(fields_of(wanted.proposed.msgpack))
        state = {
            name: UNKNOWN if name in given and value == NULL else value for name, value in values.items()
        }
        return bytes(_M["Planned"](state=_M["Value"](msgpack=map_of(state))).SerializeToString())

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler | None:
        package, _, method = handler_call_details.method.rpartition("/")
        answer = self._answers.get(method) if package == f"/{_PACKAGE}.Provider" else None
        return answer and grpc.unary_unary_rpc_method_handler(lambda asked, _context: answer(asked))


@contextmanager
def running(schema: ProviderSchema) -> Iterator[dict[str, str]]:
    """The provider, until the block ends; what Terraform needs in its environment to find it."""
    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads, handlers=(_Provider(schema),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield {
                "TF_REATTACH_PROVIDERS": json.dumps(
                    {
                        "hashicorp/google": {
                            "Protocol": "grpc",
                            "ProtocolVersion": 5,
                            "Pid": os.getpid(),
                            "Test": True,
                            "Addr": {"Network": "tcp", "String": f"127.0.0.1:{port}"},
                        }
                    }
                )
            }
        finally:
            server.stop(None).wait()
