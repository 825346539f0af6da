# SPDX-License-Identifier: Apache-2.0
"""speedscope by its own schema, pprof by protobuf's own parser."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import captures
import exports
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from read_back import speedscope_calls, speedscope_file

from textpoke.export import source as source_module

if TYPE_CHECKING:
    from pathlib import Path

MESSAGES = {
    "ValueType": "1:type 2:unit",
    "Label": "1:key 2:str",
    "Sample": "1:location_id* 2:value* 3:label*Label",
    "Mapping": "1:id 5:filename 7:has_functions 8:has_filenames",
    "Line": "1:function_id",
    "Location": "1:id 2:mapping_id 3:address 4:line*Line",
    "Function": "1:id 2:name 3:system_name 4:filename",
    "Profile": "1:sample_type*ValueType 2:sample*Sample 3:mapping*Mapping 4:location*Location "
    "5:function*Function 6:string_table*string 9:time_nanos 10:duration_nanos 13:comment* "
    "14:default_sample_type",
}
"""What is written of pprof's profile.proto: NUMBER:NAME, * for repeated, and the type if it is no
number."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.tptrace"


def speedscope(path: Path) -> dict:
    return speedscope_file(exports.exported(path, "speedscope"))


@pytest.mark.parametrize("part", exports.PARTS)
def test_speedscope_has_all_calls(path: Path, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "PART", part)
    monkeypatch.setattr(source_module, "PIECE", part)
    found = speedscope(exports.graph(path))
    assert speedscope_calls(found) == exports.NESTED
    assert [p["name"] for p in found["profiles"]] == ["redis-server-100", "bio-101"]
    assert {p["unit"] for p in found["profiles"]} == {"nanoseconds"}


def test_speedscope_without_exits_counts(path: Path) -> None:
    found = speedscope(exports.function(path))
    names = [frame["name"] for frame in found["shared"]["frames"]]
    assert [
        {names[s[0]]: w for s, w in zip(p["samples"], p["weights"], strict=True)}
        for p in found["profiles"]
    ] == [{"setCommand": 3, "getCommand": 1}, {"inflate [libz.so.1]": 1}]
    assert [p["endValue"] for p in found["profiles"]] == [4, 1]


def test_speedscope_of_other_captures(tmp_path: Path) -> None:
    assert "7 events lost" in speedscope(exports.graph(tmp_path / "a", exports.WITH_LOSS))["name"]
    assert len(speedscope_calls(speedscope(exports.hostile(tmp_path / "b")))) == len(exports.NESTED)
    assert speedscope(exports.graph(tmp_path / "c", []))["profiles"] == []


def profile_class() -> type:
    """The class of pprof's Profile, as protobuf makes it from a description."""
    file = descriptor_pb2.FileDescriptorProto(name="profile.proto", package="p", syntax="proto3")
    field_type = descriptor_pb2.FieldDescriptorProto
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in fields.split():
            number, _, rest = field.partition(":")
            rest, star, kind = rest.partition("*")
            made = message.field.add(name=rest, number=int(number))
            made.label = field_type.LABEL_REPEATED if star else field_type.LABEL_OPTIONAL
            made.type = field_type.TYPE_MESSAGE if kind else field_type.TYPE_INT64
            if kind == "string":
                made.type = field_type.TYPE_STRING
            elif kind:
                made.type_name = f".p.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("p.Profile"))


class Pprof:
    """A profile with its names in their places."""

    def __init__(self, path: Path) -> None:
        content = gzip.decompress(exports.exported(path, "pprof"))
        self.raw = profile_class().FromString(content)
        self.strings = list(self.raw.string_table)
        assert self.strings[0] == ""
        functions = {f.id: self.strings[f.name] for f in self.raw.function}
        mappings = {m.id: self.strings[m.filename] for m in self.raw.mapping}
        self.locations = {
            place.id: (mappings[place.mapping_id], functions[place.line[0].function_id])
            for place in self.raw.location
        }

    def types(self) -> list[tuple[str, str]]:
        return [(self.strings[t.type], self.strings[t.unit]) for t in self.raw.sample_type]

    def samples(self) -> dict[tuple[str, ...], list[int]]:
        """Values by thread and functions, outermost first."""
        found = {}
        for sample in self.raw.sample:
            (label,) = sample.label
            assert self.strings[label.key] == "thread"
            functions = [self.locations[i][1] for i in reversed(sample.location_id)]
            found[(self.strings[label.str], *functions)] = list(sample.value)
        return found


def test_pprof_has_all_stacks(path: Path) -> None:
    found = Pprof(exports.graph(path))
    zlib = "inflate [libz.so.1]"
    assert found.types() == [("calls", "count"), ("time", "nanoseconds")]
    assert found.strings[found.raw.default_sample_type] == "time"
    assert found.samples() == {
        ("redis-server", "setCommand"): [1, 73_000],
        ("redis-server", "setCommand", "getCommand"): [1, 2_000],
        ("redis-server", "setCommand", zlib): [1, 11_000],
        ("redis-server", "setCommand", zlib, "getCommand"): [1, 14_000],
        ("redis-server", "getCommand"): [1, 0],
        ("redis-server", "getCommand", zlib): [1, 3_000],
        ("bio", zlib): [1, 4_000],
    }
    assert set(found.locations.values()) == {
        ("redis-server", "setCommand"), ("redis-server", "getCommand"), ("libz.so.1", zlib),
    }  # fmt: skip
    assert {place.address for place in found.raw.location} == {
        captures.SET, captures.GET, captures.INFLATE,
    }  # fmt: skip
    assert (found.raw.time_nanos, found.raw.duration_nanos) == (
        1_700_000_000_000_000_000, 2_000_000_000,
    )  # fmt: skip


def test_pprof_without_exits_has_calls_alone(path: Path) -> None:
    found = Pprof(exports.function(path))
    assert found.types() == [("calls", "count")]
    assert found.samples()["redis-server", "setCommand"] == [3]


def test_pprof_tells_of_losses(path: Path) -> None:
    found = Pprof(exports.graph(path, exports.WITH_LOSS))
    assert [found.strings[place] for place in found.raw.comment] == ["7 events were lost"]


def test_pprof_is_the_same_every_time(path: Path) -> None:
    exports.graph(path)
    assert exports.exported(path, "pprof") == exports.exported(path, "pprof")
