# SPDX-License-Identifier: Apache-2.0
"""Capture programs, held against what compiled functions are really called with.

Programs call a hook at each entry and return (tests/targets/capture_hook.c), which runs the
agent's own interpreter on the registers of that moment.
"""

from __future__ import annotations

import dataclasses
import random
import re
import subprocess
from typing import TYPE_CHECKING

import pytest
import random_calls
from captures_of import TARGETS, Program, build, build_hook
from targets import compilers, module_of, site

from textpoke._errors import ArgumentSpec, UnknownFunction
from textpoke._native import ffi, lib
from textpoke.arguments import MOST_OPS, MOST_WORDS, OP_BYTES, Resolver, parse
from textpoke.payload import words_of

if TYPE_CHECKING:
    from pathlib import Path

FLAGS = {
    "DWARF 5": ("-g", "-O2"),
    "DWARF 4": ("-gdwarf-4", "-O2"),
    "DWARF 3": ("-gdwarf-3", "-O2"),
    "DWARF 2 and nothing else": ("-gdwarf-2", "-gstrict-dwarf", "-O1"),
    "not optimised": ("-g", "-O0"),
    "fixed address": ("-g", "-O2", "-no-pie", "-fno-pie"),
    "compressed": ("-g", "-gz", "-O2"),
    "type units": ("-g", "-O2", "-fdebug-types-section"),
    "type units of DWARF 4": ("-gdwarf-4", "-O2", "-fdebug-types-section"),
    "endbr64": ("-g", "-O2", "-fcf-protection=full"),
    "without .debug_aranges": ("-g", "-O2", "-gno-pubnames"),
}


@pytest.fixture(scope="module", params=FLAGS)
def any_c(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Program:
    directory = tmp_path_factory.mktemp("c")
    path = build(directory, "arguments.c", *FLAGS[request.param])
    if request.param == "without .debug_aranges":
        subprocess.run(["objcopy", "--remove-section=.debug_aranges", path], check=True)
    return Program(path)


@pytest.fixture(scope="module")
def c(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return Program(build(tmp_path_factory.mktemp("c"), "arguments.c", "-g", "-O2"))


@pytest.fixture(scope="module", params=[("-g", "-O2"), ("-gdwarf-4", "-O1"), ("-g", "-O0")])
def cxx(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Program:
    directory = tmp_path_factory.mktemp("cxx")
    return Program(build(directory, "arguments.cc", "-std=c++17", *request.param))


# Function: its arguments by type, its return value.
ALL_PARAMETERS = {
    "integers": "-1 65535 -3 4000000000 -5 9223372036854775808 -7 -8 255 => -77",
    "reals": "1.5 -2.25 3 4.5 => 1.5",
    "many_reals": "1 2 3 4 5 6 7 8 9.5 10.5 => 9.5",
    "enums": "GREEN LOW TWO true => BLUE",
    "mixeds": "0.5 1 1.5 2 2.5 3 3.5 4 4.5 5 5.5 6 6.5 7 8 => 6.5 7",
    "leftover": '1 2 3 4 5 6 7 "t" 8 9 10 1.5 2 11 12 => 12',
    "wide": "3 4 9.5 11 12 13 => 13",
    "narrow": "true -5 119 => 200",
    "copied": '21 "copy" => 120',
    "quiet": '-6 1 2 3 "%d" =>',
    "pairs": "1 -2 0.5 1 1 2 3.5 => 1 -2",
}


def test_all_parameters_and_the_return_value_by_type(any_c: Program) -> None:
    for function, values in ALL_PARAMETERS.items():
        arguments, _, returned = values.partition("=>")
        assert any_c.entry(function) == arguments.split(), function
        assert any_c.exit(function) == returned.split(), function


EXPRESSIONS = {
    "c->id": "1234605616436508552",
    "c->id/x": "0x1122334455667788",
    "c->id/u8": "136",
    "c->argc": "-2",
    "c->argc/x": "0xfffffffe",
    "c->argc/u": "4294967294",
    "c->argc/i64": "-2",
    "c->argv[1]": '"key"',
    "*c->argv": '"GET"',
    "*(c->argv + 1)": '"key"',
    "c->inner.number": "-7",
    "c->inner.text/s5": '"inner"',
    "c->inner.text[2]": "'n'",
    "*c->inner.text": "'i'",
    "c->inner.values[3]": "-40",
    "c->other->text": '"other text"',
    "c->other->values[2]": "3",
    "c->hidden": "99",
    "c->fraction": "2.5",
    "c->raw/x": "0x4004000000000000",
    "c->either.whole": "-5",
    "c->flags.low": "5",
    "c->flags.low/d": "5",
    "c->flags.middle": "-9",
    "c->flags.high/x": "0xabc",
    "c->flags.wide/x": "0x123456789a",
    "c->flags.hue": "GREEN",
    "c->flags.yes": "true",
    "c->name": '"twelve bytes"',
    "c->name/s4": '"twel"',
    "c->name[11]": "'s'",
    "c->level": "LOW",
    "c->level/d": "-3",
    "c->next->name": '"last"',
    "c->next->next": "0x0",
    "c->next->next->id": "0",
    "c->next->next->name": "<fault>",
    "c->matrix[1][2]": "6",
    "c->array[1].text": '"second"',
    "c->array[1].values[2]": "8",
    "(*cc)->argc": "-2",
    "cc[0]->argc": "-2",
    "(&c->inner)->number": "-7",
    "*&c->argc": "-2",
    "*c->opaque/i16": "5",
    "*(c->opaque + 8)/s": '"other text"',
    "x": "42",
    "arg2": "0x2a",
    "arg2/i32": "42",
    "arg2/c": "'*'",
    "*arg1/x": "0x1122334455667788",
    "*(arg1+8)/i32": "-2",
    "arg1[1]/i32": "-2",
    "*(*(arg1+16))/s": '"GET"',
}


def test_expressions_reach_members_elements_and_bits(any_c: Program) -> None:
    text = f"clients({', '.join(EXPRESSIONS)})"
    found: dict[str, str] = {}
    names = list(EXPRESSIONS)
    for first in range(0, len(names), 8):
        part = f"clients({', '.join(names[first : first + 8])})"
        found.update(zip(names[first:], any_c.entry(part, "clients"), strict=False))
    assert found == EXPRESSIONS
    with pytest.raises(ArgumentSpec, match="more than 32"):
        parse(text)


def test_members_of_structs_in_registers(c: Program) -> None:
    text = "pairs(a.a, a.b/x, b.real, b.whole, c.y, c.z, d.pair.b, d.f[1], d.f[0]/f32)"
    assert c.entry(text, "pairs") == ["1", "0xfffffffe", "0.5", "1", "2", "3.5", "4", "6.5", "5.5"]
    text = "larges(a.c, c.l, c.c, d.a, d.b, d.c/x, e.bytes[2])"
    assert c.entry(text, "larges") == ["3", "-6", "'p'", "9", "-33", "0x2000000000000", "'v'"]
    assert c.entry("wide(a/d, d.a)", "wide") == ["5", "4"]


def test_positions_need_no_types(c: Program, tmp_path: Path) -> None:
    stripped = tmp_path / "stripped"
    subprocess.run(["objcopy", "--strip-debug", c.path, stripped], check=True)
    program = Program(stripped)
    assert program.entry(
        "integers(arg1/i8, arg2/u16, arg6/x, stack1/i16, stack2/d, stack3/u8)"
    ) == [*("-1", "65535", "0x8000000000000000", "-7", "-8", "255")]
    assert program.entry("reals(farg1/f32, farg2/f64, farg3/f32, arg1)") == [
        *("1.5", "-2.25", "4.5", "0x3")
    ]
    assert program.entry("many_reals(farg8/f64, stack1/f64, stack2/f32)") == ["8", "9.5", "10.5"]
    assert program.entry("texts(arg1/s8, arg2/s, *arg3/s)") == [
        '"a text t"...',
        '"a name"',
        '"GET"',
    ]
    assert program.exit("integers") == ["-77"]
    assert program.exit("integers/i32") == ["-77"]
    assert program.exit("many_reals/f64") == ["9.5"]
    assert program.exit("texts/s3") == ['"a n"']
    for text, part in (
        ("integers", "no debug information: name positions, as in integers(arg1, arg2/s)"),
        ("integers(a)", "a is not known, since program: it has no debug information"),
        ("integers(arg1->x)", "its type is not known"),
    ):
        with pytest.raises(ArgumentSpec, match=r"no debug information|type is not known") as caught:
            program.resolve(text, "integers")
        assert part in caught.value.problem.replace("stripped", "program")


def test_types_come_from_the_separate_debug_file(c: Program, tmp_path: Path) -> None:
    program, debug = tmp_path / "program", tmp_path / "program.debug"
    subprocess.run(["objcopy", "--only-keep-debug", c.path, debug], check=True)
    subprocess.run(["objcopy", "--strip-debug", c.path, program], check=True)
    link = f"--add-gnu-debuglink={debug.name}"
    subprocess.run(["objcopy", link, program], check=True, cwd=tmp_path)
    assert Program(program).entry("narrow") == ["true", "-5", "119"]
    debug.write_bytes(debug.read_bytes() + b"x")  # not what the link says
    if b"GNU" not in program.read_bytes():
        with pytest.raises(ArgumentSpec):
            Program(program).resolve("narrow")


def test_text_is_the_default_for_char_pointers_alone(c: Program) -> None:
    resolved = c.resolve("texts")
    kinds = dict(resolved.entry_layout)
    assert kinds == {"a": "str:4", "b": "str:4", "c": "ptr", "d": "ptr", "e": "char", "f": "i8"}
    assert c.entry("texts(a, b, e, f, d/s)") == [
        *('"a text that is much longer than "...', '"a name"', "'x'", "-1", '"a name"')
    ]
    assert c.exit("texts") == ['"a name"']


def test_a_struct_that_is_returned_in_memory(c: Program) -> None:
    assert c.exit("larges(retval.a, retval.b, retval.c)") == ["1", "-2", "3"]
    assert c.resolve("larges", returns=True).exit_layout == (("retval", "ptr"),)
    assert c.exit("clients(retval->argc, retval->inner.text/s5)") == ["-2", '"inner"']


def test_a_struct_that_another_unit_defines(c: Program) -> None:
    assert c.entry("opaques(o->first, o->second)") == ["8", "1.25"]


def test_who_called(c: Program) -> None:
    (layout,) = c.resolve("narrow(caller)").entry_layout
    assert layout == ("caller", "caller")
    assert int(c.entry("narrow(caller)")[0], 16) % 0x1000 != 0


def test_a_clone_shows_what_its_locations_tell(c: Program) -> None:
    (symbol,) = [name for name in c.symbols if name.startswith("cloned")]
    assert "." in symbol, "gcc made no clone"
    assert c.entries("cloned*", symbol) == [{"c": "41"}, {"c": "42"}]
    notes = c.resolve("cloned*", symbol).notes
    assert [note.partition(" ")[0] for note in notes] == ["a", "b"]
    with pytest.raises(ArgumentSpec, match="has changed how this function is called"):
        c.resolve("cloned(a)", symbol)


PROBLEMS = {
    "clients(c->nope)": (10, "no member nope; it has id, argc"),
    "clients(nope)": (9, "no parameter nope: it has c, x, cc, f"),
    "clients(c.id)": (10, "takes an arrow: ->id"),
    "clients(c->inner->text)": (17, "takes a point: .text"),
    "clients(c->id->x)": (14, "has no members"),
    "clients(c->inner)": (9, "name a member; it has number, text, values"),
    "clients(*x)": (9, "leads nowhere"),
    "clients(*f)": (9, "a function"),
    "clients(x[1])": (10, "no elements"),
    "clients(x + 1)": (9, "cannot be added to"),
    "clients(&x)": (9, "not in memory"),
    "clients(&c->flags.low)": (9, "not in memory"),
    "clients(c->argc/s)": (17, "no address of a string"),
    "clients(c->argc/f64)": (17, "32 bits"),
    "clients(c->inner/x)": (18, "no single value"),
    "clients(arg7)": (9, "stack1"),
    "clients(farg9)": (9, "stack1"),
    "clients(stack251)": (9, "stack250"),
    "clients(retval)": (9, "-R"),
    "clients(arg1->x)": (13, "type is not known"),
    "clients(c->next->next->next->next->next->id)": (40, "more than 4 pointers"),
    "wide(b)": (6, "of 16 bytes cannot be shown"),
    "clients(c->name/s200, c->other->text/s256, arg1/s256)": (1, "words of values, 64 at most"),
}


@pytest.mark.parametrize("text", PROBLEMS)
def test_errors_name_the_column_and_the_cure(c: Program, text: str) -> None:
    column, part = PROBLEMS[text]
    with pytest.raises(ArgumentSpec) as caught:
        c.resolve(text, text.partition("(")[0])
    assert part in caught.value.problem
    assert caught.value.column == column


def test_parameters_are_gone_at_the_return(c: Program) -> None:
    with pytest.raises(ArgumentSpec, match="nothing but retval"):
        c.resolve("clients(c)", returns=True)


# Part of a symbol: expressions and values.
METHODS = {
    "4shop4item3add": {
        "this->count": "22",
        "this->base_value": "11",
        "this->second_value": "66",
        "this->tone": "light",
        "this->label": '"a label"',
        "(*this).count": "22",
        "a": "1",
        "b": "2.5",
        "other.count": "44",
        "other.label/s64": '"a very long label that lies elsewhere"',
        "last.count": "66",
        "s": "dark",
    },
    "4shop4item4turnEi": {"this->count": "22", "by": "4"},
    "4shop4item5fixed": {"a": "-9"},
    "4shop4item5named": {"this->count": "44", "n": "8"},
    "4shop5jointC2": {"a": "5", "b": "9"},
    "4shop5lowerC1": {"a": "5"},
    "8by_value": {
        "a.number": "71",
        "a.more": "72",
        "b": "-2",
        "d.x": "6",
        "d.y": "7.5",
        "e": '"by value"',
    },
    "4makei": {"n": "1"},
    "8pointers": {"a": "20", "c": "0x0", "d": "12", "e": '"referred to"'},
    "6largerIdE": {"a": "1.5", "b": "2.5"},
    "6largerIsE": {"a": "4", "b": "-3"},
    "9reference": {"a": "17", "*b": "17"},
}
RETURNS = {
    "4shop4item3add": "23",
    "4shop4item5named": '"a very long label that lies else"...',
    "4shop4itemclEj": "false",
    "9reference": "17",
    "6largerIdE": "2.5",
    "8by_value": "72",
}


def symbol_with(program: Program, part: str) -> str:
    return next(name for name in program.symbols if part in name and ".cold" not in name)


def test_methods_references_and_classes(cxx: Program) -> None:
    for part, values in METHODS.items():
        found = cxx.entry(f"F({', '.join(values)})", symbol_with(cxx, part))
        assert [text.rstrip(".") for text in found] == [v.rstrip(".") for v in values.values()], (
            part
        )
    for part, value in RETURNS.items():
        assert cxx.exit("F", symbol_with(cxx, part)) == [value], part


def test_constructors_have_all_their_parameters(cxx: Program) -> None:
    called = [
        {"value": "11", "n": "22", "text": '"a label"'},
        {"value": "33", "n": "44", "text": '"a very "'},
        {"value": "55", "n": "66", "text": '"last"'},
    ]
    symbols = [name for name in cxx.symbols if "4shop4itemC" in name]
    found = [cxx.entries("F(value, n, text/s7)", symbol) for symbol in symbols]
    assert called in found  # the two of them may be one function
    assert all(rows in ([], called) for rows in found)


def test_static_members_are_no_members(cxx: Program) -> None:
    for name in ("shared", "limit"):
        with pytest.raises(ArgumentSpec, match=f"no member {name}"):
            cxx.resolve(f"F(this->{name})", symbol_with(cxx, "4shop4item3add"))


def test_out_of_line_copies_of_inlined_functions(any_c: Program) -> None:
    assert any_c.entry("copied(a, b/s)") == ["21", '"copy"']


def test_enumerations_of_one_name_are_kept_apart(c: Program, tmp_path: Path) -> None:
    source = tmp_path / "two.c"
    source.write_text(
        "enum colour { BROWN = 3 }; volatile int s;"
        "__attribute__((noinline)) void f(enum colour a) { s = a; } int main(void) { f(BROWN); }"
    )
    subprocess.run(["gcc", "-g", source, "-o", tmp_path / "two"], check=True)
    other = Program(tmp_path / "two")
    other.resolver = c.resolver
    one = c.resolve("enums")
    two = other.resolve("f")
    assert one.entry_layout[0] == ("a", "enum:colour:32")
    assert two.entry_layout == (("a", "enum:colour#2:32"),)
    assert one.enums["colour"] == {0: "RED", 7: "GREEN", 1000000: "BLUE"}
    assert one.enums["level"] == {-3: "LOW", 5: "HIGH"}
    assert two.enums == {"colour#2": {3: "BROWN"}}


def test_layouts_are_what_payloads_are_read_by(c: Program) -> None:
    for function in [*ALL_PARAMETERS, "clients", "texts", "larges"]:
        for returns in (False, True):
            resolved = c.resolve(function, returns=returns)
            for layout, words, ops in (
                (resolved.entry_layout, resolved.entry_words, resolved.entry_ops),
                (resolved.exit_layout, resolved.exit_words, resolved.exit_ops),
            ):
                assert sum(words_of(kind) for _, kind in layout) == words <= MOST_WORDS
                assert len(ops) == OP_BYTES * len(layout) <= OP_BYTES * MOST_OPS


def test_patterns_choose_and_requests_for_one_function_join(c: Program) -> None:
    sites = [
        dataclasses.replace(site(name, "program"), entry=address, address=address, vaddr=address)
        for name, address in c.symbols.items()
        if name in ("integers", "clients", "copied", "nothing")
    ]
    specs = [
        parse("clients(c->id)"),
        parse("program!c*(c->argc)"),
        parse("clients(c->id/x)"),
        parse("clients", returns=True),
        parse("nothing"),
    ]
    resolver = Resolver()
    captures = resolver.programs(specs, sites, [c.module])
    assert captures.programs.keys() == {c.symbols["clients"], c.symbols["nothing"]}
    program = captures.programs[c.symbols["clients"]]
    assert program.entry_layout == (("c->id", "u64"), ("c->argc", "i32"), ("c->id#2", "ptr"))
    assert program.exit_layout == (("retval", "ptr"),)
    assert captures.notes == ("program!copied: copied has no parameter c: it has a, b",)
    with pytest.raises(ArgumentSpec, match="no parameter zzz"):
        resolver.programs([parse("c*(zzz)")], sites, [c.module])
    with pytest.raises(UnknownFunction, match="integers"):
        resolver.programs([parse("integer(a)")], sites, [c.module])


def test_damaged_debug_information_is_told_and_positions_still_work(
    c: Program, tmp_path: Path
) -> None:
    section = tmp_path / "info"
    subprocess.run(["objcopy", f"--dump-section=.debug_info={section}", c.path], check=True)
    content = section.read_bytes()
    for number, damaged in enumerate(
        (b"\xff" * len(content), content[:60] + b"\xff" * (len(content) - 60), content[:200])
    ):
        path = tmp_path / f"damaged{number}"
        section.write_bytes(damaged)
        subprocess.run(
            ["objcopy", f"--update-section=.debug_info={section}", c.path, path], check=True
        )
        program = Program(path)
        with pytest.raises(ArgumentSpec):
            program.resolve("clients(c->id)", "clients")
        assert program.resolve("clients(arg1)", "clients").entry_layout == (("arg1", "ptr"),)


def test_split_debug_information_is_named_as_the_reason(tmp_path: Path) -> None:
    program = Program(build(tmp_path, "arguments.c", "-g", "-gsplit-dwarf"))
    with pytest.raises(ArgumentSpec, match=r"\.dwo files"):
        program.resolve("integers")


def test_operations_are_packed_as_the_agent_reads_them(c: Program) -> None:
    ops = c.resolve("clients(c->other->values[2]/i16)", "clients").entry_ops
    op = ffi.new("struct tp_capture_op *")
    ffi.memmove(op, ops, OP_BYTES)
    assert (op.source, op.number, op.loads) == (lib.TP_CAPTURE_GPR, 5, 1)
    assert (op.what, op.size, op.width) == (lib.TP_CAPTURE_LOAD, 8, 16)
    assert op.flags == lib.TP_CAPTURE_SIGNED
    assert op.offsets[1] == 32


def test_languages_with_calls_of_their_own_are_not_guessed(tmp_path: Path) -> None:
    assembly = tmp_path / "f.s"
    command = ["gcc", "-g", "-dA", "-S", TARGETS / "arguments.c", "-o", assembly]
    subprocess.run(command, check=True)
    text = assembly.read_text()
    rust, count = re.subn(r"\.byte\s+0x1d(?=\s.*DW_AT_language)", ".byte 0x1c", text)
    assert count == 1
    assembly.write_text(rust)
    hook = [*build_hook(tmp_path)]
    subprocess.run(["gcc", assembly, *hook, "-o", tmp_path / "f"], check=True)
    program = Program(tmp_path / "f")
    with pytest.raises(ArgumentSpec, match="does not pass arguments as C does; name positions"):
        program.resolve("narrow(a)", "narrow")
    assert program.resolve("narrow(arg1)", "narrow").entry_ops
    assert program.resolve("narrow/i32", returns=True).exit_layout == (("retval", "i32"),)


def test_other_compilers_too(tmp_path: Path) -> None:
    for number, compiler in enumerate(compilers()):
        directory = tmp_path / str(number)
        directory.mkdir()
        program = Program(build(directory, "arguments.c", "-g", "-O2", compiler=compiler))
        assert program.entry("integers")[:2] == ["-1", "65535"], compiler


@pytest.mark.parametrize("seed", range(4))
def test_random_functions_get_what_they_are_called_with(seed: int, tmp_path: Path) -> None:
    text, calls = random_calls.make(random.Random(seed), 40)
    source = tmp_path / "random.c"
    source.write_text(text)
    program = Program(build(tmp_path, str(source), "-g", f"-O{seed % 3}", "-w"))
    for name, scalars in calls.items():
        for first in range(0, len(scalars), MOST_OPS):
            part = scalars[first : first + MOST_OPS]
            request = f"{name}({', '.join(expression for expression, _ in part)})"
            found = program.entry(request, name)
            assert found == [value for _, value in part], f"{request} in {source}"


def test_a_module_that_cannot_be_read_leaves_positions(tmp_path: Path) -> None:
    module = module_of(tmp_path / "gone")
    resolver = Resolver()
    assert resolver.program(parse("f(arg1)"), site("f", "gone"), module).entry_ops
    with pytest.raises(ArgumentSpec, match="cannot be read"):
        resolver.program(parse("f"), site("f", "gone"), module)
