# SPDX-License-Identifier: Apache-2.0
"""What `export` has written, read by those who made the formats."""

from __future__ import annotations

import json
from pathlib import Path

import fastjsonschema
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb

SCHEMA = Path(__file__).with_name("speedscope-schema.json")


class Perfetto:
    """A trace, read by Perfetto's own classes; times are since `start_ns`."""

    def __init__(self, data: bytes, start_ns: int = 0) -> None:
        trace = pb.Trace.FromString(data)
        self.tracks: dict[int, pb.TrackDescriptor] = {}
        self.names: dict[int, str] = {}
        self.events: list[tuple[int, pb.TrackEvent]] = []
        for packet in trace.packet:
            assert packet.trusted_packet_sequence_id == 1
            if packet.HasField("track_descriptor"):
                self.tracks[packet.track_descriptor.uuid] = packet.track_descriptor
            self.names |= {n.iid: n.name for n in packet.interned_data.event_names}
            if packet.HasField("track_event"):
                self.events.append((packet.timestamp - start_ns, packet.track_event))

    def calls(self) -> list[tuple[int, str, int, int]]:
        """Slices in order of their begin, thread by thread."""
        found: list[list] = []
        stacks: dict[int, list[list]] = {}
        for ts, event in self.events:
            stack = stacks.setdefault(event.track_uuid, [])
            if event.type == pb.TrackEvent.TYPE_SLICE_BEGIN:
                tid = self.tracks[event.track_uuid].thread.tid
                found.append([tid, self.names[event.name_iid], ts, None])
                stack.append(found[-1])
            elif event.type == pb.TrackEvent.TYPE_SLICE_END:
                stack.pop()[3] = ts
        assert not any(stacks.values())
        return [tuple(call) for call in found]

    def counter(self, name: str) -> list[tuple[int, float]]:
        return [
            (ts, event.counter_value or event.double_counter_value)
            for ts, event in self.events
            if self.tracks[event.track_uuid].name == name
        ]


def speedscope_file(data: bytes) -> dict:
    """A file of speedscope, valid by its own schema."""
    found = json.loads(data)
    fastjsonschema.compile(json.loads(SCHEMA.read_text()))(found)
    return found


def speedscope_calls(found: dict) -> list[tuple[int, str, int, int]]:
    """Thread, name, begin and end of all calls, in order of their begin within a thread."""
    calls: list[list] = []
    for profile in found["profiles"]:
        stack: list[list] = []
        last = profile["startValue"]
        for event in profile["events"]:
            assert event["at"] >= last
            last = event["at"]
            name = found["shared"]["frames"][event["frame"]]["name"]
            if event["type"] == "O":
                calls.append([int(profile["name"].rpartition("-")[2]), name, last, None])
                stack.append(calls[-1])
            else:
                call = stack.pop()
                assert call[1] == name
                call[3] = last
        assert not stack
        assert last == profile["endValue"]
    return [tuple(call) for call in calls]
