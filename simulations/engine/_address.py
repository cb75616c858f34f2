"""Named tuples passed by their address, in compiled code.

numba passes a named tuple as all its members, and an array as seven numbers: some three hundred
arguments at every call. To generate and optimise them was half of what compiling cost, and to pass them
most of what running cost. An address is one, and a member is read where it is used.
"""

from __future__ import annotations

import hashlib
from typing import Any

from numba.core import cgutils, types
from numba.core.typing.templates import AttributeTemplate, Signature
from numba.extending import (
    infer_getattr,
    intrinsic,
    lower_getattr_generic,
    models,
    register_model,
)


class _Address(types.Type):  # type: ignore[misc]
    """Of a named tuple of this type; `dtype` is what numba's pointers call it."""

    def __init__(self, dtype: types.NamedTuple) -> None:
        self.dtype = dtype
        # The whole name would be part of the name of every function that takes one.
        digest = hashlib.sha256(str(dtype).encode()).hexdigest()[:12]
        super().__init__(f"{dtype.instance_class.__name__}_{digest}")

    def member(self, name: str) -> tuple[int, types.Type]:
        """Its position and type."""
        position = self.dtype.fields.index(name)
        return position, self.dtype.types[position]


register_model(_Address)(models.PointerModel)


@infer_getattr
class _Members(AttributeTemplate):  # type: ignore[misc]
    key = _Address

    def generic_resolve(self, address: _Address, name: str) -> types.Type:
        """A named tuple in it is passed by its address too."""
        _, held = address.member(name)
        return _Address(held) if isinstance(held, types.NamedTuple) else held


@lower_getattr_generic(_Address)  # type: ignore[untyped-decorator]
def _member(context: Any, builder: Any, address: _Address, pointer: Any, name: str) -> Any:
    position, held = address.member(name)
    at = cgutils.gep_inbounds(builder, pointer, 0, position)
    if isinstance(held, types.NamedTuple):
        return at
    return context.data_model_manager[held].load_from_data_pointer(builder, at)


@intrinsic  # type: ignore[untyped-decorator]
def by_address(_: Any, held: types.Type) -> tuple[Signature, Any]:
    """The address of a named tuple, which is put on the stack of the function that calls this."""

    def put(context: Any, builder: Any, _: Any, values: Any) -> Any:
        model = context.data_model_manager[held]
        pointer = cgutils.alloca_once(builder, model.get_data_type())
        builder.store(model.as_data(builder, values[0]), pointer)
        return pointer

    return _Address(held)(held), put
