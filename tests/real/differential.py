# SPDX-License-Identifier: Apache-2.0
"""Call some 1,500 functions of C libraries with generated inputs, and print digests of the results.

    python3 differential.py LIBRARY ROUNDS INPUTS

The worker of test_differential.py: it loads LIBRARY (made by `build`, below), does one round that
nobody sees, prints {"ready": ...} with the functions that it calls, waits for a line, and prints
one JSON line {function: digest} a round. Inputs depend on the number of the round alone, so two
processes print the same.

A function's digest is that of all cases that call it. Cases for functions that a signature can
describe are generated here: a letter a type (`TYPES`), result first.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LIBRARIES = (
    "libc.so.6",
    "libm.so.6",
    "libmvec.so.1",
    "libgcc_s.so.1",
    "libquadmath.so.0",
    "libz.so.1",
    "libzstd.so.1",
    "libcrypto.so.3",
    "libstdc++.so.6",
)

# letter: C type, generator, sink
TYPES = {
    "f": ("float", "gen_f(r)", "put_f"),
    "d": ("double", "gen_d(r)", "put_d"),
    "l": ("long double", "gen_l(r)", "put_l"),
    "q": ("_Float128", "gen_q(r)", "put_q"),
    "i": ("int", "gen_int(r)", "put_int"),
    "u": ("unsigned", "gen_int(r)", "put_int"),
    "j": ("long", "gen_long(r)", "put_int"),
    "J": ("unsigned long", "gen_long(r)", "put_int"),
    "o": ("long", "gen_modest(r)", "put_int"),  # small enough never to overflow
    "e": ("int", "gen_modest(r) % 64", "put_int"),  # an exponent, a shift, an order
    "t": ("__int128", "gen_wide_int(r)", ""),
    "T": ("unsigned __int128", "gen_wide_int(r)", ""),
    "v": ("void", "", ""),
    "h": ("_Float16", "(_Float16)gen_f(r)", ""),
    "c": ("int", "gen_char(r)", "put_int"),
    "C": ("wint_t", "gen_wchar(r)", "put_int"),
    "b": ("int", "gen_base(r)", ""),
    "z": ("size_t", "", "put_int"),
    "n": ("size_t", "gen_size(r)", ""),
    "B": ("size_t", "BUFFER_BYTES", ""),
    "W": ("size_t", "BUFFER_BYTES / sizeof(wchar_t)", ""),
    "k": ("locale_t", "r->locale", ""),
    "s": ("const char *", "gen_string(r)", "put_text"),
    "N": ("const char *", "gen_number(r)", ""),
    "w": ("const wchar_t *", "gen_wide_string(r)", "put_wide"),
    "M": ("const wchar_t *", "gen_wide_number(r)", ""),
    "O": ("char *", "gen_out(r, 0)", ""),
    "A": ("char *", "gen_out(r, 1)", ""),
    "P": ("wchar_t *", "gen_wide_out(r, 0)", ""),
    "Q": ("wchar_t *", "gen_wide_out(r, 1)", ""),
    "p": ("void *", "", "put_place"),
    "F": ("float _Complex", "gen_f(r) + 1.0if * gen_f(r)", ""),
    "D": ("double _Complex", "gen_d(r) + 1.0i * gen_d(r)", ""),
    "L": ("long double _Complex", "gen_l(r) + 1.0il * gen_l(r)", ""),
    "X": ("_Complex _Float128", "gen_q(r) + (_Complex _Float128)1.0i * gen_q(r)", ""),
}
COMPLEX = {"F": "f", "D": "d", "L": "l", "X": "q"}
# One letter of the families of libm stands for four types: the name's ending, real and complex.
PRECISIONS = (("", "d", "D"), ("f", "f", "F"), ("l", "l", "L"), ("f128", "q", "X"))

LIBM = {  # x: the real type, y: the complex one, a star: a place for a result
    "x:x": """acos asin atan cos sin tan acosh asinh atanh cosh sinh tanh exp exp2 exp10 expm1 log
        log2 log10 log1p logb cbrt fabs sqrt ceil floor trunc round rint nearbyint roundeven erf
        erfc tgamma lgamma j0 j1 y0 y1 significand nextup nextdown gamma""",
    "x:xx": """atan2 pow hypot fmod remainder drem copysign nextafter fdim fmax fmin fmaxmag fminmag
        fmaximum fminimum fmaximum_num fminimum_num fmaximum_mag fminimum_mag fmaximum_mag_num
        fminimum_mag_num scalb""",
    "x:xl": "nexttoward",
    "x:xxx": "fma",
    "x:xi*": "frexp lgamma_r",
    "x:xx*": "modf",
    "v:xx*x*": "sincos",
    "x:xxi*": "remquo",
    "x:xe": "ldexp scalbn",
    "x:xo": "scalbln",
    "x:ex": "jn yn",
    "i:x": "ilogb finite isinf isnan",
    "j:x": "llogb lrint llrint lround llround",
    "j:xeu": "fromfp fromfpx",
    "J:xeu": "ufromfp ufromfpx",
    "y:y": """cacos casin catan ccos csin ctan cacosh casinh catanh ccosh csinh ctanh cexp clog
        clog10 csqrt cproj conj""",
    "x:y": "cabs carg creal cimag",
    "y:yy": "cpow",
}
NARROWING = {"f{}": "fd", "f{}l": "fl", "d{}l": "dl", "f32{}f128": "fq", "f64{}f128": "dq"}
NARROWING["f64x{}f128"] = "lq"
OPERATIONS = {"add": 2, "sub": 2, "mul": 2, "div": 2, "fma": 3, "sqrt": 1}

LIBQUADMATH = {
    "q:q": """acos acosh asin asinh atan atanh cbrt ceil cos cosh erfc erf exp2 exp expm1 fabs floor
        j0 j1 lgamma log10 log1p log2 log logb nearbyint rint round sin sinh sqrt tan tanh tgamma
        trunc y0 y1""",
    "q:qq": "atan2 copysign fdim fmax fmin fmod hypot nextafter pow remainder",
    "q:qqq": "fma",
    "q:qi*": "frexp",
    "q:qq*": "modf",
    "v:qq*q*": "sincos",
    "q:qqi*": "remquo",
    "q:qe": "ldexp scalbn",
    "q:qo": "scalbln",
    "q:eq": "jn yn",
    "i:q": "finite ilogb isinf isnan issignaling signbit",
    "j:q": "llrint llround lrint lround",
    "X:X": """cacos cacosh casin casinh catan catanh ccos ccosh cexp clog10 clog conj cproj csin
        csinh csqrt ctan ctanh""",
    "q:X": "cabs carg cimag creal",
    "X:XX": "cpow",
    "X:q": "cexpi",
}

LIBGCC = {
    "q:qq": "__addtf3 __subtf3 __multf3 __divtf3",
    "q:q": "__negtf2",
    "i:qq": "__eqtf2 __netf2 __lttf2 __letf2 __gttf2 __getf2 __unordtf2",
    "i:q": "__fixtfsi __fixunstfsi",
    "j:q": "__fixtfdi __fixunstfdi",
    "t:q": "__fixtfti __fixunstfti",
    "t:d": "__fixdfti __fixunsdfti",
    "t:f": "__fixsfti __fixunssfti",
    "t:l": "__fixxfti __fixunsxfti",
    "J:d": "__fixunsdfdi",
    "J:f": "__fixunssfdi",
    "J:l": "__fixunsxfdi",
    "q:i": "__floatsitf __floatunsitf",
    "q:j": "__floatditf __floatunditf",
    "q:t": "__floattitf __floatuntitf",
    "d:t": "__floattidf __floatuntidf",
    "f:t": "__floattisf __floatuntisf",
    "l:t": "__floattixf __floatuntixf",
    "q:f": "__extendsftf2",
    "q:d": "__extenddftf2",
    "q:l": "__extendxftf2",
    "d:f": "__extendsfdf2",
    "f:q": "__trunctfsf2",
    "d:q": "__trunctfdf2",
    "l:q": "__trunctfxf2",
    "f:d": "__truncdfsf2",
    "q:qe": "__powitf2",
    "d:de": "__powidf2",
    "f:fe": "__powisf2",
    "l:le": "__powixf2",
    "D:dddd": "__muldc3 __divdc3",
    "F:ffff": "__mulsc3 __divsc3",
    "L:llll": "__mulxc3 __divxc3",
    "X:qqqq": "__multc3 __divtc3",
    "t:tt": "__divti3 __modti3 __multi3",
    "T:TT": "__udivti3 __umodti3",
    "t:ttt*": "__divmodti4",
    "T:TTT*": "__udivmodti4",
    "t:t": "__negti2",
    "t:te": "__ashlti3 __ashrti3 __lshrti3",
    "i:tt": "__cmpti2 __ucmpti2",
    "o:o": "__absvdi2 __negvdi2",
    "o:oo": "__addvdi3 __subvdi3",
    "e:ee": "__addvsi3 __subvsi3 __mulvsi3",
    "e:e": "__absvsi2 __negvsi2",
    "i:t": "__clzti2 __ctzti2 __ffsti2 __popcountti2 __parityti2 __clrsbti2",
    "i:j": "__clzdi2 __ctzdi2 __ffsdi2 __popcountdi2 __paritydi2 __clrsbdi2",
    "j:j": "__bswapdi2",
    "i:i": "__bswapsi2",
    "h:d": "__truncdfhf2",
    "h:f": "__truncsfhf2",
    "h:l": "__truncxfhf2",
    "h:q": "__trunctfhf2",
    "d:h": "__extendhfdf2",
    "f:h": "__extendhfsf2",
    "l:h": "__extendhfxf2",
    "q:h": "__extendhftf2",
    "t:h": "__fixhfti __fixunshfti",
    "h:t": "__floattihf __floatuntihf",
    "i:hh": "__eqhf2 __nehf2",
}

LIBC = {
    "i:c": """isalnum isalpha isascii isblank iscntrl isdigit isgraph islower isprint ispunct
        isspace isupper isxdigit toascii tolower toupper _tolower _toupper btowc""",
    "i:ck": """isalnum_l isalpha_l isblank_l iscntrl_l isdigit_l isgraph_l islower_l isprint_l
        ispunct_l isspace_l isupper_l isxdigit_l tolower_l toupper_l""",
    "i:C": """iswalnum iswalpha iswblank iswcntrl iswdigit iswgraph iswlower iswprint iswpunct
        iswspace iswupper iswxdigit towlower towupper wcwidth wctob""",
    "i:Ck": """iswalnum_l iswalpha_l iswblank_l iswcntrl_l iswdigit_l iswgraph_l iswlower_l
        iswprint_l iswpunct_l iswspace_l iswupper_l iswxdigit_l towlower_l towupper_l""",
    "i:i": "abs ffs htonl ntohl htons ntohs gnu_dev_major",
    "j:j": "labs llabs imaxabs",
    "i:j": "ffsl ffsll",
    "i:d": "__finite __isinf __isnan __signbit",
    "i:f": "__finitef __isinff __isnanf __signbitf",
    "i:l": "__finitel __isinfl __isnanl __signbitl",
    "z:s": "strlen",
    "z:sn": "strnlen",
    "p:sc": "strchr strrchr strchrnul index rindex",
    "p:ss": "strstr strcasestr strpbrk",
    "z:ss": "strspn strcspn",
    "i:ss": "strcmp strcoll strcasecmp strverscmp",
    "i:ssk": "strcoll_l strcasecmp_l",
    "i:ssn": "strncmp strncasecmp memcmp bcmp __memcmpeq",
    "i:ssnk": "strncasecmp_l",
    "p:Os": "strcpy stpcpy",
    "p:As": "strcat",
    "p:Osn": "strncpy stpncpy memcpy mempcpy memmove __mempcpy",
    "p:Asn": "strncat",
    "p:OsB": "__strcpy_chk __stpcpy_chk",
    "p:AsB": "__strcat_chk",
    "p:OsnB": "__strncpy_chk __stpncpy_chk __memcpy_chk __memmove_chk __mempcpy_chk",
    "p:AsnB": "__strncat_chk",
    "p:OcnB": "__memset_chk",
    "p:scn": "memchr memrchr",
    "p:Ocn": "memset",
    "p:Oscn": "memccpy",
    "p:snsn": "memmem",
    "v:On": "bzero explicit_bzero",
    "p:An": "memfrob",
    "v:sOn": "bcopy swab",
    "z:Osn": "strxfrm",
    "z:Osnk": "strxfrm_l",
    "i:s": "atoi rpmatch",
    "j:s": "atol atoll a64l",
    "s:J": "l64a",
    "i:N": "atoi",
    "j:N": "atol atoll",
    "d:N": "atof",
    "p:A": "__xpg_basename dirname",
    "p:s": "basename",
    "j:NE*b": "strtol strtoll strtoimax strtoq",
    "J:NE*b": "strtoul strtoull strtoumax strtouq",
    "j:NE*bk": "strtol_l strtoll_l",
    "J:NE*bk": "strtoul_l strtoull_l",
    "d:NE*": "strtod",
    "f:NE*": "strtof",
    "l:NE*": "strtold",
    "q:NE*": "strtof128",
    "d:NE*k": "strtod_l",
    "f:NE*k": "strtof_l",
    "l:NE*k": "strtold_l",
    "q:NE*k": "strtof128_l",
    "z:w": "wcslen",
    "z:wn": "wcsnlen",
    "p:wC": "wcschr wcsrchr wcschrnul",
    "p:ww": "wcsstr wcspbrk wcswcs",
    "z:ww": "wcsspn wcscspn",
    "i:ww": "wcscmp wcscoll wcscasecmp",
    "i:wwk": "wcscoll_l wcscasecmp_l",
    "i:wwn": "wcsncmp wcsncasecmp wmemcmp",
    "i:wwnk": "wcsncasecmp_l",
    "p:Pw": "wcscpy wcpcpy",
    "p:Qw": "wcscat",
    "p:Pwn": "wcsncpy wcpncpy wmemcpy wmempcpy wmemmove",
    "p:Qwn": "wcsncat",
    "p:PwW": "__wcscpy_chk __wcpcpy_chk",
    "p:QwW": "__wcscat_chk",
    "p:PwnW": "__wcsncpy_chk __wcpncpy_chk __wmemcpy_chk __wmempcpy_chk __wmemmove_chk",
    "p:QwnW": "__wcsncat_chk",
    "p:wCn": "wmemchr",
    "p:PCn": "wmemset",
    "p:PCnW": "__wmemset_chk",
    "z:Pwn": "wcsxfrm",
    "z:Pwnk": "wcsxfrm_l",
    "i:wn": "wcswidth",
    "j:MV*b": "wcstol wcstoll wcstoimax wcstoq",
    "J:MV*b": "wcstoul wcstoull wcstoumax wcstouq",
    "j:MV*bk": "wcstol_l wcstoll_l",
    "J:MV*bk": "wcstoul_l wcstoull_l",
    "d:MV*": "wcstod",
    "f:MV*": "wcstof",
    "l:MV*": "wcstold",
    "q:MV*": "wcstof128",
    "d:MV*k": "wcstod_l",
    "f:MV*k": "wcstof_l",
    "l:MV*k": "wcstold_l",
    "q:MV*k": "wcstof128_l",
    "d:de": "ldexp scalbn",
    "f:fe": "ldexpf scalbnf",
    "l:le": "ldexpl scalbnl",
    "d:dd": "copysign",
    "f:ff": "copysignf",
    "l:ll": "copysignl",
    "d:dd*": "modf",
    "f:ff*": "modff",
    "l:ll*": "modfl",
    "d:di*": "frexp",
    "f:fi*": "frexpf",
    "l:li*": "frexpl",
}
OUT = {"E": "char *", "V": "wchar_t *"}  # places whose result points into a buffer
_PLAIN_SINKS = {"t", "T", "h", *COMPLEX}


def build(directory: Path) -> Path:
    """Generate the callers and compile the driver; returns the library."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "table.c").write_text(table())
    library = directory / "differential.so"
    words = ["gcc", "-O1", "-g", "-fno-builtin", "-fPIC", "-shared", "-pthread", "-I", HERE]
    words += ["-Wall", "-Wno-nonnull", "-Wno-deprecated-declarations", "-Wno-psabi"]
    words += [HERE / "differential.c", directory / "table.c", "-o", library]
    words += ["-lm", "-lz", "-lzstd", "-lcrypto", "-ldl"]
    subprocess.run([str(word) for word in words], check=True)
    return library


def signatures() -> list[tuple[str, str, str]]:
    """(library, function, signature) from all the lists above."""
    found = [
        (library, f"{name}{ending}", signature)
        for library, lists, ending in (
            ("libc.so.6", LIBC, ""),
            ("libgcc_s.so.1", LIBGCC, ""),
            ("libquadmath.so.0", LIBQUADMATH, "q"),
        )
        for signature, names in lists.items()
        for name in names.split()
    ]
    for signature, names in LIBM.items():
        for ending, real, complex_ in PRECISIONS:
            typed = signature.replace("x", real).replace("y", complex_)
            for name in names.split():
                stem = name.removesuffix("_r")
                found.append(("libm.so.6", f"{stem}{ending}{name[len(stem) :]}", typed))
    for operation, arguments in OPERATIONS.items():
        for form, (to, of) in NARROWING.items():
            found.append(("libm.so.6", form.format(operation), f"{to}:{of * arguments}"))
    return found


def table() -> str:
    """The C source of all generated cases."""
    cases = [_caller(n, *words) for n, words in enumerate(signatures())]
    names = [name for _, name, _ in signatures()]
    vectors = _vector_functions()
    cases += [_vector_caller(len(names) + n, name) for n, name in enumerate(vectors)]
    rows = "".join(f'\t{{"{name}", case_{n}}},\n' for n, name in enumerate(names + vectors))
    return (
        "/* Made by differential.py. */\n"
        '#include "differential.h"\n#include <complex.h>\n#include <immintrin.h>\n\n'
        + "\n".join(cases)
        + f"\nconst struct test_case generated[] = {{\n{rows}}};\n"
        + f"const int generated_count = {len(names + vectors)};\n"
    )


def _caller(number: int, library: str, name: str, signature: str) -> str:
    result, _, letters = signature.partition(":")
    arguments = re.findall(r".\*?", letters)
    types, inputs, values, sinks = [], [], [], []
    for n, argument in enumerate(arguments):
        letter = argument[0]
        kind = OUT.get(letter) or TYPES[letter][0]
        if argument.endswith("*"):
            types.append(f"{kind} *")
            inputs.append(f"\t\t{kind} a{n} = 0;")
            values.append(f"&a{n}")
            sinks.append(_sink(letter, f"a{n}"))
        else:
            types.append(kind)
            inputs.append(f"\t\t{kind} a{n} = {TYPES[letter][1]};")
            values.append(f"a{n}")
    call = f"f({', '.join(values)})"
    kind = TYPES[result][0]
    floating = any(letter in "fdlqFDLX" for letter in signature)
    lines = [
        f"static void case_{number}(struct run *r)",
        "{",
        f'\t{kind} (*f)({", ".join(types)}) = find("{library}", "{name}");',
        "\tfor (int i = 0; f && i < r->inputs; i++) {",
        "\t\tbegin_input(r);",
        *inputs,
        *["\t\tbegin_fp(r);"] * floating,
        f"\t\t{'' if result == 'v' else f'{kind} y = '}{call};",
        *["\t\tend_fp(r);"] * floating,
        *([] if result == "v" else [f"\t\t{_sink(result, 'y')}"]),
        *(f"\t\t{sink}" for sink in sinks),
        "\t\tend_input(r);",
        "\t}",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _sink(letter: str, value: str) -> str:
    if letter in OUT:
        return f"put_place(r, {value});"
    if letter in COMPLEX:
        part = {"F": "f", "D": "", "L": "l", "X": ""}[letter]
        sink = TYPES[COMPLEX[letter]][2]
        if letter == "X":
            return f"{sink}(r, __real__ {value}); {sink}(r, __imag__ {value});"
        return f"{sink}(r, creal{part}({value})); {sink}(r, cimag{part}({value}));"
    if letter in _PLAIN_SINKS:
        return f"put(r, &{value}, sizeof({value}));"
    return f"{TYPES[letter][2]}(r, {value});"


_VECTOR = re.compile(r"_ZGV([bcde])N(\d+)(v+)_(\w+)")


def _vector_functions() -> list[str]:
    """Vector functions of libmvec that take and give vectors."""
    done = subprocess.run(
        ["nm", "-D", "--defined-only", "/lib/x86_64-linux-gnu/libmvec.so.1"],
        capture_output=True,
        text=True,
        check=True,
    )
    names = {line.split()[-1].partition("@")[0] for line in done.stdout.splitlines()}
    return sorted(n for n in names if _VECTOR.fullmatch(n) and "sincos" not in n)


def _vector_caller(number: int, name: str) -> str:
    """A caller for one instruction set; the processor may lack it."""
    match = _VECTOR.fullmatch(name)
    assert match
    kind, lanes, arguments = match[1], int(match[2]), len(match[3])
    bits = {"b": 128, "c": 256, "d": 256, "e": 512}[kind]
    real = "d" if bits // lanes == 64 else "f"
    vector = {"d": f"__m{bits}d", "f": f"__m{bits}"}[real]
    extension = {"b": "sse4.2", "c": "avx", "d": "avx2", "e": "avx512f"}[kind]
    scalar = TYPES[real][0]
    values = ", ".join(f"a{n}.v" for n in range(arguments))
    fill = "".join(f" a{n}.s[k] = gen_{real}(r);" for n in range(arguments))
    places = ", ".join(f"a{n}" for n in range(arguments))
    return f"""__attribute__((target("{extension}")))
static void case_{number}(struct run *r)
{{
	{vector} (*f)({", ".join([vector] * arguments)}) = find("libmvec.so.1", "{name}");
	if (!f || !__builtin_cpu_supports("{extension}"))
		return;
	for (int i = 0; i < r->inputs; i++) {{
		union {{ {vector} v; {scalar} s[{lanes}]; }} {places}, y;
		for (int k = 0; k < {lanes}; k++) {{{fill} }}
		begin_fp(r);
		y.v = f({values});
		end_fp(r);
		for (int k = 0; k < {lanes}; k++)
			put_{real}(r, y.s[k]);
	}}
}}
"""


class Driver:
    """The compiled driver: cases by number, each with the functions that it has called."""

    def __init__(self, library: Path) -> None:
        for name in LIBRARIES:
            try:
                ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
            except OSError:
                print(f"{name} is not here", file=sys.stderr)
        self._library = ctypes.CDLL(str(library))
        self._library.differential_run.restype = ctypes.c_uint64
        self._library.differential_run.argtypes = [ctypes.c_int, ctypes.c_uint64, ctypes.c_int]
        for name in ("case", "function", "module"):
            getattr(self._library, f"differential_{name}").restype = ctypes.c_char_p
        self._library.differential_offset.restype = ctypes.c_uint64
        self.cases = self._library.differential_cases()

    def run(self, case: int, seed: int, inputs: int) -> str:
        return f"{self._library.differential_run(case, seed, inputs):016x}"

    def name(self, case: int) -> str:
        return self._library.differential_case(case).decode()

    def called(self) -> dict[str, dict[str, object]]:
        """Functions called so far: module, offset in it, and the cases that call it."""
        library, found = self._library, {}
        for n in range(library.differential_functions()):
            cases = [c for c in range(self.cases) if library.differential_calls(n, c)]
            module = Path(library.differential_module(n).decode()).resolve().name
            name = library.differential_function(n).decode()
            found[f"{module}!{name}"] = {
                "module": module,
                "offset": library.differential_offset(n),
                "cases": cases,
            }
        return found


def digests(results: list[str], functions: dict[str, dict[str, object]]) -> dict[str, str]:
    """For each function, one digest of all cases that call it."""
    found = {}
    for name, about in functions.items():
        text = "".join(results[case] for case in about["cases"])
        found[name] = text if len(about["cases"]) == 1 else hashlib.md5(text.encode()).hexdigest()
    return found


def main(library: str, rounds: str, inputs: str) -> None:
    driver = Driver(Path(library))
    for case in range(driver.cases):
        driver.run(case, 0, int(inputs))
    functions = driver.called()
    print(json.dumps({"ready": functions, "cases": driver.cases}), flush=True)
    sys.stdin.readline()
    for number in range(1, int(rounds) + 1):
        results = [driver.run(case, number, int(inputs)) for case in range(driver.cases)]
        print(json.dumps(digests(results, functions)), flush=True)
    print(json.dumps({"end": True}), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main(*sys.argv[1:])
