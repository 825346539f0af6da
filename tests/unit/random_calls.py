# SPDX-License-Identifier: Apache-2.0
"""Random C functions with known arguments: the compiler is the judge of where those go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

SCALARS = {
    "signed char": lambda rng: rng.randrange(-128, 128),
    "unsigned short": lambda rng: rng.randrange(1 << 16),
    "int": lambda rng: rng.randrange(-(1 << 31), 1 << 31),
    "unsigned int": lambda rng: rng.randrange(1 << 32),
    "long": lambda rng: rng.randrange(-(1 << 62), 1 << 62),
    "_Bool": lambda rng: rng.randrange(2),
    "float": lambda rng: rng.randrange(-4000, 4000) / 8,
    "double": lambda rng: rng.randrange(-40000, 40000) / 64,
}
# Their values cannot be shown, but what follows them has to be in its right place.
OPAQUE = ("long double", "__int128", "float _Complex", "double _Complex", "_Float128", "vector4")
PRELUDE = """
typedef float vector4 __attribute__((vector_size(16)));
volatile int sink;
"""


@dataclass
class Made:
    """A C type, a value of it as C, and the expressions of its scalars with their values."""

    declaration: str
    value: str
    scalars: list[tuple[str, str]] = field(default_factory=list)


class Maker:
    """Makes types, each struct with a definition of its own."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.text = PRELUDE
        self.count = 0

    def scalar(self, name: str) -> Made:
        kind = self.rng.choice(list(SCALARS))
        value = SCALARS[kind](self.rng)
        shown = {"_Bool": str(bool(value)).lower()}.get(kind, f"{value:.12g}")
        if isinstance(value, int) and kind != "_Bool":
            shown = str(value)
        suffix = {"long": "l", "unsigned int": "u"}.get(kind, "")
        return Made(f"{kind} {{}}", f"{value}{suffix}", [(name, shown)])

    def struct(self, name: str, depth: int = 0) -> Made:
        self.count += 1
        tag = f"s{self.count}"
        members, values, scalars = [], [], []
        for index in range(self.rng.choice([1, 1, 2, 2, 3, 4])):
            at = f"{name}.m{index}"
            dice = self.rng.randrange(10)
            if dice < 2 and depth < 2:
                made = self.struct(at, depth + 1)
            elif dice < 4:
                made = self.array(at)
            elif dice < 5:
                made = self.bits(at)
            else:
                made = self.scalar(at)
            members.append(made.declaration.format(f"m{index}"))
            values.append(made.value)
            scalars += made.scalars
        packed = " __attribute__((packed))" if self.rng.randrange(8) == 0 else ""
        fields = "; ".join(members)
        self.text += f"struct{packed} {tag} {{ {fields}; }};\n"
        return Made(f"struct {tag} {{}}", f"(struct {tag}){{ {', '.join(values)} }}", scalars)

    def array(self, name: str) -> Made:
        count = self.rng.randrange(1, 4)
        one = self.scalar(name)
        element = one.scalars[0][1]
        scalars = [(f"{name}[{i}]", element) for i in range(count)]
        values = ", ".join([one.value] * count)
        return Made(one.declaration.format(f"{{}}[{count}]"), f"{{ {values} }}", scalars)

    def bits(self, name: str) -> Made:
        width = self.rng.randrange(2, 30)
        value = self.rng.randrange(-(1 << width - 1), 1 << width - 1)
        return Made(f"int {{}} : {width}", str(value), [(name, str(value))])

    def parameter(self, name: str) -> Made:
        dice = self.rng.randrange(10)
        if dice == 0:
            return Made(f"{self.rng.choice(OPAQUE)} {{}}", "")
        return self.struct(name) if dice < 5 else self.scalar(name)

    def function(self, name: str) -> list[tuple[str, str]]:
        """Add a function and a call of it; return what its scalars are called with."""
        parameters = [(f"p{i}", self.parameter(f"p{i}")) for i in range(self.rng.randrange(1, 12))]
        opaque = "".join(
            f"static {made.declaration.format(f'{name}_{p}')};\n"
            for p, made in parameters
            if not made.value
        )
        declared = ", ".join(made.declaration.format(p) for p, made in parameters)
        values = ", ".join(made.value or f"{name}_{p}" for p, made in parameters)
        returned = self.rng.choice(["void", "long", "double", self.struct("r").declaration[:-3]])
        body = f"static {returned} result;" if returned != "void" else ""
        end = "return result;" if returned != "void" else ""
        self.text += (
            f"{opaque}__attribute__((noinline, noclone, noipa)) {returned} {name}({declared})\n"
            f"{{ {body} sink++; {end} }}\n"
            f"static void call_{name}(void) {{ {name}({values}); }}\n"
        )
        return [scalar for _, made in parameters for scalar in made.scalars]


def make(rng: random.Random, count: int) -> tuple[str, dict[str, list[tuple[str, str]]]]:
    """Return a C source, and what each of its functions is called with."""
    maker = Maker(rng)
    calls = {f"f{i}": maker.function(f"f{i}") for i in range(count)}
    run = " ".join(f"call_{name}();" for name in calls)
    return f"{maker.text}void run_everything(void);\nvoid run_everything(void) {{ {run} }}\n", calls
