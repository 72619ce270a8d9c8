"""Compile the kernels of a GPU without one, and count their instructions: prints JSON; exit code 77 without the tools.

Run as a program of its own, because a process that interprets kernels cannot compile them.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

CAPABILITIES = (80, 90)
THREADS = 128
NORMS, RESIZES = {"none": 0, "uniform": 1, "field": 2}, {"": 0, "down": 1, "up": 2, "nearest": 3}
SWEEPS: list[tuple[int, str, bool, str, int]] = [  # channels, norm, residual, resize, pad
    (64, "uniform", False, "", 3),
    (256, "uniform", True, "", 1),
    (24, "uniform", False, "", 1),
    (128, "uniform", False, "down", 0),
    (128, "uniform", False, "up", 0),
    (256, "field", True, "", 1),
    (64, "field", False, "", 3),
]


def main() -> int:
    try:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        from kin_cli.norm import triton_kernels as kernels
    except ImportError as error:
        sys.stderr.write(f"Triton is not installed: {error}\n")
        return 77
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    if not all((tools / name).exists() for name in ("ptxas", "cuobjdump", "nvdisasm")):
        sys.stderr.write(f"{tools} has no ptxas, cuobjdump and nvdisasm\n")
        return 77
    os.environ["PATH"] += f":{tools}"

    def compiled(kernel: Any, kinds: dict[str, str], constants: dict[str, Any], capability: int) -> str:
        from triton.tools.disasm import get_sass

        names = kernel.arg_names
        signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in names}
        places = {(names.index(name),): value for name, value in constants.items()}
        aligned = {(names.index(name),): [["tt.divisibility", 16]] for name, kind in kinds.items() if kind[0] == "*"}
        source = ASTSource(kernel, signature, places, aligned)
        options = {"enable_fp_fusion": True}
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        return str(get_sass(made.asm["cubin"]))

    found = []
    maps = dict.fromkeys(("out", "x", "residual", "weight", "bias", "offset"), "*bf16")
    tables = dict.fromkeys(("stats", "scales", "row_fraction", "col_fraction"), "*fp32")
    kinds = {**maps, **tables, "row_lower": "*i64", "row_upper": "*i64", "segments": "*i32"}
    for capability in CAPABILITIES:
        for channels, norm, residual, resize, pad in SWEEPS if capability == 90 else SWEEPS[:2]:
            block = min(1 << (channels - 1).bit_length(), 256)
            constants = {
                "C": channels, "BLOCK_C": block, "BLOCK_W": 4096 // block, "NORM": NORMS[norm], "WEIGHT": False,
                "BIAS": False, "OFFSET": True, "RESIDUAL": residual, "RELU": not residual,
                "RESIZE": RESIZES[resize], "PAD": pad,
            }  # fmt: skip
            sass = compiled(kernels.sweep, kinds, constants, capability)
            eights = 4096 / THREADS / 8
            taps, read = {"down": 9, "up": 4}.get(resize, 1), 4 if resize == "down" else 1
            name = f"sm_{capability}: {channels} channels, {norm}, residual {residual}, {resize or 'same size'}, {pad}"
            least = eights * taps * (2 if residual else 1)
            found.append({**counted(sass, eights * read), "name": name, "least_loads": least})
        constants = {"C": 64, "BLOCK_C": 64, "BLOCK_P": 64}
        kinds_of_sums = {"x": "*bf16", "means": "*fp32", "squares": "*fp32"}
        sass = compiled(kernels.chunk_moments, kinds_of_sums, constants, capability)
        # counted once, though the loop runs for every 32 numbers of a thread
        sums = {**counted(sass, 4096 / THREADS / 8), "name": f"sm_{capability}: sums", "least_loads": 4}
        found.append({**sums, "vector_stores": sums["stores"]})
    sys.stdout.write(json.dumps(found, indent=1))
    return 0


def counted(sass: str, eights: float) -> dict[str, Any]:
    """Instructions for 8 numbers, calls, and accesses, those of 16 bytes apart."""
    instructions = [line for line in sass.splitlines() if ";" in line and not re.search(r"\bNOP\b", line)]
    return {
        "per_8": round(len(instructions) / eights),
        "calls": len(re.findall(r"\bCALL", sass)),
        "vector_loads": len(re.findall(r"\bLDG\.E\S*\.128", sass)),
        "stores": len(re.findall(r"\bSTG\.", sass)),
        "vector_stores": len(re.findall(r"\bSTG\.E\S*\.128", sass)),
    }


if __name__ == "__main__":
    sys.exit(main())
