"""Builds the stand-in CANN runtime into tests/fake_cann/build, in a few seconds, with gcc and binutils.

`python build.py` in an environment that has torch_npu installed; prints the folder (README.md says how to use it).
The names to provide are read from torch_npu's own library: symbols that it links against and that no source file here
defines become functions that fail loudly; every operator name in it becomes a pair of entry points.
"""

import importlib.util
import platform
import re
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUTPUT = HERE / "build"
LIB = OUTPUT / "lib"
RUNTIME = "ascendcl"
EMPTY = ("hccl", "ge_runner", "graph", "acl_tdt_channel")  # linked against, called for nothing here
ALIASES = ("acl_op_compiler",)  # functions that CANN keeps in a library of their own
OPERATORS = ("opapi", "nnopbase")
INSTALLED = ("runtime", "compiler", "opp")  # torch_npu looks whether the folders of CANN exist
LINKED = re.compile(r"^(acl|Msprof|rt[A-Z]|Hccl)\w*$")

# A GetWorkspaceSize stub hands its name to .Lprepare; an execute stub shifts its arguments by one and jumps.
STUBS = """
.globl {name}GetWorkspaceSize
{name}GetWorkspaceSize: lea .Lname{i}(%rip), %r11; jmp .Lprepare
.globl {name}
{name}: mov %rcx, %r8; mov %rdx, %rcx; mov %rsi, %rdx; mov %rdi, %rsi; lea .Lname{i}(%rip), %rdi
    jmp fake_cann_execute@PLT
"""
# Saves the six integer and eight floating-point argument registers as arrays: fake_cann_prepare(name, both, stack).
PREPARE = """
.Lprepare:
    push %rbp; mov %rsp, %rbp; sub $112, %rsp
    mov %rdi, -48(%rbp); mov %rsi, -40(%rbp); mov %rdx, -32(%rbp)
    mov %rcx, -24(%rbp); mov %r8, -16(%rbp); mov %r9, -8(%rbp)
    movsd %xmm0, -112(%rbp); movsd %xmm1, -104(%rbp); movsd %xmm2, -96(%rbp); movsd %xmm3, -88(%rbp)
    movsd %xmm4, -80(%rbp); movsd %xmm5, -72(%rbp); movsd %xmm6, -64(%rbp); movsd %xmm7, -56(%rbp)
    mov %r11, %rdi; lea -48(%rbp), %rsi; lea -112(%rbp), %rdx; lea 16(%rbp), %rcx
    call fake_cann_prepare@PLT
    leave; ret
"""


def torch_npu_library() -> Path:
    """libtorch_npu.so, found without importing torch_npu, which cannot be imported yet."""
    spec = importlib.util.find_spec("torch_npu")
    if spec is None:
        raise SystemExit("torch_npu is not installed here: pip install --no-deps torch_npu==2.13.0")
    return Path(spec.origin).parent / "lib" / "libtorch_npu.so"


def symbols(library: Path, which: str) -> set[str]:
    """Names in the dynamic symbol table; which: "defined" or "undefined"."""
    listing = subprocess.run(["nm", "-D", f"--{which}-only", library], check=True, capture_output=True, text=True)
    return {line.split()[-1] for line in listing.stdout.splitlines()}


def operator_names(library: Path) -> list[str]:
    found = re.findall(rb"\0(aclnn[A-Z]\w*)(?=\0)", library.read_bytes())
    return sorted({name.decode().removesuffix("GetWorkspaceSize") for name in found})


def compile_library(name: str, *arguments: object) -> Path:
    path = LIB / f"lib{name}.so"
    warnings = ["-Wall", "-Wextra", "-Wno-unused-parameter"]
    command = ["gcc", "-shared", "-fPIC", "-O1", *warnings, f"-Wl,-soname,{path.name}", "-o", path, *arguments]
    subprocess.run([str(part) for part in command], check=True)
    return path


def unimplemented_source(names: list[str]) -> str:
    lines = ["#include <stdio.h>"]
    lines += [
        f'int {name}(void) {{ fprintf(stderr, "fake CANN: {name} is not implemented\\n"); return 500000; }}'
        for name in names
    ]
    return "\n".join(lines) + "\n"


def operators_source(names: list[str]) -> str:
    text = ".text" + "".join(STUBS.format(name=name, i=i) for i, name in enumerate(names)) + PREPARE
    text += ".section .rodata\n" + "".join(f'.Lname{i}: .asciz "{name}"\n' for i, name in enumerate(names))
    return text + '.section .note.GNU-stack,"",@progbits\n'


def build() -> Path:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise SystemExit(f"the stand-in is for x86-64 Linux; this is {platform.system()} on {platform.machine()}")
    library = torch_npu_library()
    LIB.mkdir(parents=True, exist_ok=True)
    sources = sorted((HERE / "src").glob("*.c"))
    path_option = f'-DPYTHON_PATH="{HERE / "python"}"'
    first = compile_library(RUNTIME, path_option, *sources, "-ldl", "-lpthread")
    missing = sorted(s for s in symbols(library, "undefined") - symbols(first, "defined") if LINKED.match(s))
    stubs = OUTPUT / "unimplemented.c"
    stubs.write_text(unimplemented_source(missing))
    compile_library(RUNTIME, path_option, *sources, stubs, "-ldl", "-lpthread")
    empty = OUTPUT / "empty.c"
    empty.write_text("")
    for name in EMPTY:
        compile_library(name, empty)
    link_runtime = ["-Wl,--no-as-needed", f"-L{LIB}", f"-l{RUNTIME}"]
    for name in ALIASES:
        compile_library(name, empty, *link_runtime)
    operators = OUTPUT / "operators.S"
    operators.write_text(operators_source(operator_names(library)))
    for name in OPERATORS:
        compile_library(name, operators, *link_runtime)
    for folder in INSTALLED:
        (OUTPUT / folder).mkdir(exist_ok=True)
    return OUTPUT


if __name__ == "__main__":
    print(build())
