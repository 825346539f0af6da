# SPDX-License-Identifier: Apache-2.0
"""Types as DWARF describes them: what a parameter is, its members, labels, size and alignment.

Versions 2 to 5. The entries (DIEs) come from pyelftools. What they say is read when it is asked
for: a struct of a large program leads to thousands of others. Nothing is trusted: circles end,
and whatever makes no sense raises BadElf (see `guarded`).
"""

from __future__ import annotations

import contextlib
import enum
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from textpoke._errors import BadElf, TextpokeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    # pyelftools has no types that mypy could see.
    Die = Any
    T = TypeVar("T")

MOST_STEPS = 64
"""Typedefs of typedefs, origins of origins: more are a circle."""
_MOST_MEMBERS = 10_000
_MOST_LABELS = 65_536
_MOST_DIMENSIONS = 8
_MOST_BYTES = 1 << 40
_MOST_ALIGNMENT = 1 << 28
_DEEPEST = 32
_LONGEST_NAME = 256

_CC_PASS_BY_REFERENCE, _CC_PASS_BY_VALUE = 4, 5
_OP_PLUS_UCONST = 0x23
_BOOL, _COMPLEX, _UTF = 0x02, 0x03, 0x10
_FLOATS = {0x04: "binary", 0x0F: "decimal"}
_SIGNED = (0x05, 0x06, 0x0D)
_QUALIFIERS = frozenset(
    f"DW_TAG_{name}_type"
    for name in ("const", "volatile", "restrict", "atomic", "packed", "immutable", "shared")
)
RECORDS = {
    "DW_TAG_structure_type": "struct",
    "DW_TAG_class_type": "class",
    "DW_TAG_union_type": "union",
}


class Kind(enum.Enum):
    """What a type is when typedefs and qualifiers are taken off."""

    INTEGER = "an integer"
    BOOL = "a bool"
    CHAR = "a character"
    FLOAT = "a floating-point number"
    COMPLEX = "a complex number"
    POINTER = "a pointer"
    REFERENCE = "a reference"
    ENUM = "an enum"
    RECORD = "a struct"
    ARRAY = "an array"
    VECTOR = "a vector"
    FUNCTION = "a function"
    METHOD_POINTER = "a pointer to a method"
    VOID = "void"
    UNKNOWN = "of a type that is not known here"


class Definitions(Protocol):
    """Finds what a unit only declares."""

    def definition(self, tag: str, name: str) -> Die | None:
        """The entry that defines a record of this name."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a struct, class or union, or one of its base classes.

    Attributes:
        name: "" of an anonymous struct or union, and of a base class.
        type: Of the member.
        offset: Bytes from the start.
        bit_offset: Of a bit-field: bits from the start to its lowest one.
        bits: Width of a bit-field, 0 of other members.
    """

    name: str
    type: Type
    offset: int
    bit_offset: int = 0
    bits: int = 0


class Type:
    """A type without qualifiers.

    Attributes:
        kind: What it is.
        name: The outermost typedef's name, else its own.
        own_name: Without typedefs.
        size: In bytes, 0 when unknown.
        signed: Of integers, characters and enumerations.
        count: Elements of an array, 0 when unknown.
        die: The entry that it was read from; pyelftools' own.
        owner: Finds what its unit only declares.
    """

    def __init__(self, kind: Kind, name: str = "", size: int = 0, *, signed: bool = False) -> None:
        self.kind = kind
        self.name = self.own_name = name
        self.size = size
        self.signed = signed
        self.count = 0
        self.die: Die = None
        self.owner: Definitions | None = None

    def __repr__(self) -> str:
        return f"<{self} of {self.size} bytes>"

    def __str__(self) -> str:
        return f"{self.kind.value} ({self.name})" if self.name else self.kind.value

    @functools.cached_property
    def target(self) -> Type:
        """What a pointer or reference leads to, what an array or vector consists of."""
        return guarded(lambda: type_of(self.die, self.owner))

    @functools.cached_property
    def members(self) -> tuple[Member, ...]:
        """Of a record, without static ones, base classes first; none when it is only declared."""
        if self.kind is not Kind.RECORD:
            return ()
        return guarded(lambda: tuple(_members_of(self.defined, self.owner)))

    @functools.cached_property
    def labels(self) -> dict[int, str]:
        """Of an enumeration: value to label; of several labels the first one counts."""
        return guarded(lambda: _labels_of(self.die, self)) if self.kind is Kind.ENUM else {}

    @functools.cached_property
    def by_reference(self) -> bool:
        """Whether C++ passes the record by a hidden pointer, as its destructor or so demands."""
        return self.kind is Kind.RECORD and guarded(lambda: _is_passed_by_reference(self, 0))

    @functools.cached_property
    def alignment(self) -> int:
        """In bytes, 1 when nothing is known."""
        return guarded(lambda: _alignment_of(self, 0))

    @property
    def defined(self) -> Die:
        """The entry that has the members, in another unit where this one only declares it."""
        if "DW_AT_declaration" in self.die.attributes and self.owner and self.own_name:
            return self.owner.definition(self.die.tag, self.own_name) or self.die
        return self.die


VOID = Type(Kind.VOID, "void")


def guarded(read: Callable[[], T], path: str = "its file") -> T:
    """What `read` returns.

    Raises:
        BadElf: pyelftools stumbled, whatever its exception: it was not made for damaged files.
    """
    try:
        return read()
    except (TextpokeError, MemoryError):
        raise
    except Exception as exc:
        problem = f"its debug information makes no sense: {type(exc).__name__} {exc}"
        raise BadElf(path, 0, " ".join(problem.split())[:200]) from exc


def name_of(die: Die) -> str:
    """The name of an entry, "" for none."""
    attribute = die.attributes.get("DW_AT_name")
    if attribute is None or not isinstance(attribute.value, bytes):
        return ""
    return attribute.value[:_LONGEST_NAME].decode("utf-8", "backslashreplace")


def number(die: Die, name: str, default: int = 0) -> int:
    """An attribute's value, when it is a plain number."""
    attribute = die.attributes.get(name)
    return attribute.value if attribute and isinstance(attribute.value, int) else default


def children(die: Die) -> Iterator[Die]:
    """The entries right below one; unlike pyelftools' own it ends, whatever the file says."""
    unit = die.cu
    offset, depth = die.offset + die.size, 0
    while die.has_children:
        child = unit.get_DIE_from_refaddr(offset)
        offset += child.size
        if child.is_null():
            if not depth:
                return
            depth -= 1
            continue
        if not depth:
            yield child
        if child.has_children:
            sibling = child.attributes.get("DW_AT_sibling")
            behind = unit.cu_offset + sibling.value if sibling else 0
            if behind > offset and sibling.form != "DW_FORM_ref_addr":
                offset = behind
            else:
                depth += 1


def follow(die: Die, attribute: str) -> Die:
    """The entry that an attribute refers to."""
    reference = die.attributes[attribute]
    if reference.form != "DW_FORM_ref_sig8" or die.dwarfinfo.debug_types_sec is not None:
        return die.get_DIE_from_attribute(attribute)
    # Since version 5 type units stand among the others, where pyelftools does not look for them.
    unit = _type_units(die.dwarfinfo)[reference.raw_value]
    return unit.get_DIE_from_refaddr(unit.cu_offset + unit.header["type_offset"])


@functools.lru_cache(maxsize=1)
def _type_units(dwarf: Any) -> dict[int, Any]:  # noqa: ANN401 - pyelftools' own
    units = (unit for unit in dwarf.iter_CUs() if unit.header.get("unit_type") == "DW_UT_type")
    return {unit.header["type_signature"]: unit for unit in units}


def type_of(die: Die, owner: Definitions | None, attribute: str = "DW_AT_type") -> Type:
    """The type that an entry names."""
    if die is None or attribute not in die.attributes:
        return VOID
    at = follow(die, attribute)
    outer = ""
    for _ in range(MOST_STEPS):
        if "DW_AT_signature" in at.attributes:  # stands for the whole in a type unit
            at = follow(at, "DW_AT_signature")
        if at.tag == "DW_TAG_typedef":
            outer = outer or name_of(at)
        elif at.tag not in _QUALIFIERS:
            return _make(at, outer, owner)
        if "DW_AT_type" not in at.attributes:
            return VOID
        at = follow(at, "DW_AT_type")
    raise ValueError("a type that consists of itself")


def _make(die: Die, outer: str, owner: Definitions | None) -> Type:
    made = _MAKERS.get(die.tag, _unknown)(die)
    made.own_name = name_of(die)
    made.name = outer or made.own_name
    made.owner = owner
    if made.die is None:
        made.die = die
    made.size = made.size if 0 <= made.size < _MOST_BYTES else 0
    return made


def _base(die: Die) -> Type:
    encoding, size = number(die, "DW_AT_encoding"), number(die, "DW_AT_byte_size")
    name = name_of(die)
    if encoding in _FLOATS:
        return Type(Kind.FLOAT, size=size)
    if encoding == _COMPLEX:
        return Type(Kind.COMPLEX, size=size)
    if encoding == _BOOL:
        return Type(Kind.BOOL, size=size)
    signed = encoding in _SIGNED
    if name in ("char", "char8_t") and size == 1:
        return Type(Kind.CHAR, size=size, signed=signed)
    return Type(Kind.INTEGER, size=size, signed=signed)


def _pointer(die: Die) -> Type:
    return Type(Kind.POINTER, size=number(die, "DW_AT_byte_size", 8))


def _reference(_die: Die) -> Type:
    return Type(Kind.REFERENCE, size=8)


def _record(die: Die) -> Type:
    return Type(Kind.RECORD, size=number(die, "DW_AT_byte_size"))


def _enum(die: Die) -> Type:
    under = type_of(die, None)
    size = number(die, "DW_AT_byte_size", under.size)
    encoding = number(die, "DW_AT_encoding", -1)
    if under.kind is not Kind.VOID:
        signed = under.signed
    elif encoding >= 0:
        signed = encoding in _SIGNED
    else:
        signed = any(
            number(child, "DW_AT_const_value") < 0 for child in _children(die, _MOST_LABELS)
        )
    return Type(Kind.ENUM, size=size, signed=signed)


def _array(die: Die) -> Type:
    counts = [
        _count_of(child)
        for child in _children(die, _MOST_DIMENSIONS)
        if child.tag in ("DW_TAG_subrange_type", "DW_TAG_enumeration_type")
    ]
    element = type_of(die, None)
    vector = "DW_AT_GNU_vector" in die.attributes
    whole: Type | None = None
    for count in reversed(counts or [0]):
        inner = whole or element
        whole = Type(Kind.VECTOR if vector else Kind.ARRAY, size=count * inner.size)
        whole.count, whole.die = count, die
        if inner is not element:
            whole.target = inner  # a cached property: of several dimensions, the inner array
    assert whole is not None  # noqa: S101 - the loop ran
    return whole


def _count_of(die: Die) -> int:
    if "DW_AT_count" in die.attributes:
        count = number(die, "DW_AT_count")
    else:
        count = number(die, "DW_AT_upper_bound", -1) - number(die, "DW_AT_lower_bound") + 1
    # Of no elements the upper bound is -1, in as many bytes as it takes.
    return count if 0 <= count < 1 << 31 else 0


def _function(_die: Die) -> Type:
    return Type(Kind.FUNCTION)


def _member_pointer(die: Die) -> Type:
    to_method = type_of(die, None).kind is Kind.FUNCTION
    return (
        Type(Kind.METHOD_POINTER, size=16) if to_method else Type(Kind.INTEGER, size=8, signed=True)
    )


def _unspecified(die: Die) -> Type:
    return _pointer(die) if "nullptr" in name_of(die) else _unknown(die)


def _unknown(die: Die) -> Type:
    return Type(Kind.UNKNOWN, size=number(die, "DW_AT_byte_size"))


_MAKERS = {
    "DW_TAG_base_type": _base,
    "DW_TAG_pointer_type": _pointer,
    "DW_TAG_reference_type": _reference,
    "DW_TAG_rvalue_reference_type": _reference,
    "DW_TAG_enumeration_type": _enum,
    "DW_TAG_array_type": _array,
    "DW_TAG_subroutine_type": _function,
    "DW_TAG_ptr_to_member_type": _member_pointer,
    "DW_TAG_unspecified_type": _unspecified,
    **dict.fromkeys(RECORDS, _record),
}


def _children(die: Die, most: int) -> Iterator[Die]:
    for index, child in enumerate(children(die)):
        if index == most:
            raise ValueError(f"an entry with more than {most} parts")
        yield child


def _members_of(die: Die, owner: Definitions | None) -> Iterator[Member]:
    for child in _children(die, _MOST_MEMBERS):
        if child.tag not in ("DW_TAG_member", "DW_TAG_inheritance"):
            continue
        static = {"DW_AT_external", "DW_AT_declaration", "DW_AT_const_value"}
        if child.tag == "DW_TAG_member" and not static.isdisjoint(child.attributes):
            continue
        offset = _location(child)
        if offset is None:  # of a virtual base class
            continue
        kind = type_of(child, owner)
        name = name_of(child) if child.tag == "DW_TAG_member" else ""
        bits = number(child, "DW_AT_bit_size")
        yield Member(name, kind, offset, _bit_offset(child, kind, offset) if bits else 0, bits)


def _location(die: Die) -> int | None:
    attribute = die.attributes.get("DW_AT_data_member_location")
    if attribute is None:
        return 0
    if isinstance(attribute.value, int):
        return attribute.value
    block = bytes(attribute.value)
    if block[:1] != bytes([_OP_PLUS_UCONST]):
        return None
    offset = 0
    for index, byte in enumerate(block[1:6]):
        offset |= (byte & 0x7F) << 7 * index
    return offset


def _bit_offset(die: Die, kind: Type, offset: int) -> int:
    if "DW_AT_data_bit_offset" in die.attributes:
        return 8 * offset + number(die, "DW_AT_data_bit_offset")
    if "DW_AT_bit_offset" not in die.attributes:
        return 8 * offset
    # The old way: counted down from the highest bit of a storage unit.
    unit = number(die, "DW_AT_byte_size", kind.size)
    below = 8 * unit - number(die, "DW_AT_bit_offset") - number(die, "DW_AT_bit_size")
    return 8 * offset + below


def _labels_of(die: Die, kind: Type) -> dict[int, str]:
    labels: dict[int, str] = {}
    top = 1 << max(8 * kind.size - 1, 7)
    for child in _children(die, _MOST_LABELS):
        if child.tag == "DW_TAG_enumerator":
            value = number(child, "DW_AT_const_value")
            if kind.signed and top <= value < 2 * top:
                value -= 2 * top
            labels.setdefault(value, name_of(child))
    return labels


def _is_passed_by_reference(kind: Type, depth: int) -> bool:
    if kind.kind is Kind.ARRAY and depth < _DEEPEST:
        return _is_passed_by_reference(kind.target, depth + 1)
    if kind.kind is not Kind.RECORD or depth == _DEEPEST:
        return False
    die = kind.defined
    said = number(die, "DW_AT_calling_convention")
    if said in (_CC_PASS_BY_REFERENCE, _CC_PASS_BY_VALUE):
        return said == _CC_PASS_BY_REFERENCE
    for child in _children(die, _MOST_MEMBERS):
        if child.tag == "DW_TAG_subprogram" and _is_special(child, kind.own_name):
            return True
        if child.tag == "DW_TAG_inheritance" and "DW_AT_virtuality" in child.attributes:
            return True
    return any(_is_passed_by_reference(member.type, depth + 1) for member in kind.members)


def _is_special(die: Die, record: str) -> bool:
    """Whether a method makes its class non-trivial for calls: virtual, destructor, copying."""
    if number(die, "DW_AT_virtuality"):
        return True
    if number(die, "DW_AT_defaulted") == 1 or number(die, "DW_AT_deleted"):
        return False
    if number(die, "DW_AT_artificial"):
        return False
    name, plain = name_of(die), record.partition("<")[0]  # a template's methods bear its name alone
    if name in (f"~{record}", f"~{plain}"):
        return True
    if name not in (record, plain):
        return False
    kinds = [
        type_of(c, None)
        for c in _children(die, _MOST_MEMBERS)
        if c.tag == "DW_TAG_formal_parameter"
    ]
    return (
        len(kinds) == 2 and kinds[1].kind is Kind.REFERENCE and (kinds[1].target.own_name == record)
    )


def _alignment_of(kind: Type, depth: int) -> int:
    said = number(kind.die, "DW_AT_alignment") if kind.die is not None else 0
    if 0 < said < _MOST_ALIGNMENT:
        return said
    if kind.kind is Kind.ARRAY and depth < _DEEPEST:
        return _alignment_of(kind.target, depth + 1)
    if kind.kind is Kind.RECORD and depth < _DEEPEST:
        # A member at an odd place belongs to a packed struct.
        found = [
            min(_alignment_of(m.type, depth + 1), m.offset & -m.offset or _MOST_ALIGNMENT)
            for m in kind.members
        ]
        return max(found, default=1)
    halves = kind.kind in (Kind.COMPLEX, Kind.METHOD_POINTER)
    size = kind.size // 2 if halves else kind.size
    return max(size & -size, 1)


def find_member(record: Type, name: str) -> Member | None:
    """The member of that name, in anonymous members and base classes too; offsets add up."""
    with contextlib.suppress(RecursionError):
        return _find_member(record, name, 0)
    return None


def _find_member(record: Type, name: str, depth: int) -> Member | None:
    for member in record.members:
        if member.name == name:
            return member
    for member in record.members:
        if member.name or member.type.kind is not Kind.RECORD or depth == _DEEPEST:
            continue
        inner = _find_member(member.type, name, depth + 1)
        if inner:
            return Member(
                name,
                inner.type,
                member.offset + inner.offset,
                8 * member.offset + inner.bit_offset,
                inner.bits,
            )
    return None
