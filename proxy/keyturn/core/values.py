"""Value objects: frozen to the type checker, slotted, compared and hashed by their fields.

Several are made for every request, and what `frozen=True` does at run time (as what `NamedTuple` does) triples the
cost of making one. So only mypy prevents assignments to fields.
"""

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value_object(cls: type[T]) -> type[T]:
    """Make a class of value objects, as `dataclass(frozen=True, slots=True)` would."""
    return dataclass(slots=True, unsafe_hash=True)(cls)
