"""Records SEV-SNP launch digests of the images in this folder, as IBM's sev-snp-measure computes them.

    pip install sev-snp-measure
    python3 record.py                 writes digests.json
    python3 record.py IGVM_BUILDER    makes the images anew with that program first

The images are read with nothing but the format's own numbers, so that what is recorded depends on no code of this
project. Images are made anew only when they are to have a new form: old ones must keep their digests.
"""

import json
import pathlib
import struct
import subprocess
import sys
import tempfile

from sevsnpmeasure.gctx import GCTX, sha384
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vcpu_types import CPU_SIGS
from sevsnpmeasure.vmsa import VMSA

FOLDER = pathlib.Path(__file__).parent
SNP_MASK = 2
RESET_RIP = 0xFFFFFFF0
STUB_GPA, RESET_PAGE_GPA, KERNEL_GPA = 0x100000, 0xFFFFF000, 0x1000000
VHT_PARAMETER_AREA, VHT_PAGE_DATA, VHT_PARAMETER_INSERT, VHT_VP_CONTEXT = 0x301, 0x302, 0x303, 0x304
SECRETS, CPUID = 1, 2
UNMEASURED, SHARED = 1 << 1, 1 << 2


def steps(file):
    """The private pages and the save area of the SEV-SNP part, in the file's order: (kind, gpa, content)."""
    at, size = struct.unpack_from("<II", file, 8)
    end, area_bytes = at + size, {}
    page = lambda offset: file[offset : offset + 4096] if offset else bytes(4096)
    while at < end:
        kind, length = struct.unpack_from("<II", file, at)
        content, at = at + 8, at + 8 + (length + 7) // 8 * 8
        if kind == VHT_PARAMETER_AREA:
            area_size, index = struct.unpack_from("<QI", file, content)
            area_bytes[index] = area_size
        elif kind == VHT_PAGE_DATA:
            gpa, mask, offset, flags, data_type = struct.unpack_from("<QIIIH", file, content)
            if not mask & SNP_MASK or flags & SHARED:
                continue
            special = {SECRETS: "secrets", CPUID: "cpuid"}.get(data_type)
            yield special or ("unmeasured" if flags & UNMEASURED else "normal"), gpa, page(offset)
        elif kind == VHT_PARAMETER_INSERT:
            gpa, mask, index = struct.unpack_from("<QII", file, content)
            if mask & SNP_MASK:
                for page_gpa in range(gpa, gpa + area_bytes[index], 4096):
                    yield "unmeasured", page_gpa, None
        elif kind == VHT_VP_CONTEXT:
            gpa, mask, offset = struct.unpack_from("<QII", file, content)
            if mask & SNP_MASK:
                yield "vmsa", gpa, page(offset)


def feed(context, kind, gpa, content):
    if kind == "normal":
        context.update_normal_pages(gpa, content)
    elif kind == "unmeasured":
        context.update_unmeasured_pages(gpa, 4096)
    elif kind == "secrets":
        context.update_secrets_page(gpa)
    elif kind == "cpuid":
        context.update_cpuid_page(gpa)
    else:
        context._update(0x02, gpa, sha384(content))


def kvm(pages, vcpus, signature):
    context = GCTX()
    first = next(content for kind, _, content in pages if kind == "vmsa")
    for kind, gpa, content in pages:
        if kind != "vmsa":
            feed(context, kind, gpa, content)
    others = bytes(VMSA.build_save_area(RESET_RIP, 1, signature))
    context.update_vmsa_page(first)
    for _ in range(vcpus - 1):
        context.update_vmsa_page(others)
    return context.hex_ld()


def mshv(pages):
    context = GCTX()
    for step in sorted(pages, key=lambda step: step[1]):
        feed(context, *step)
    return context.hex_ld()


def record(path):
    pages = list(steps(path.read_bytes()))
    counts = (1, 2, 4, 64)
    return {
        "kvm": {str(vcpus): kvm(pages, vcpus, 0) for vcpus in counts},
        "kvm_epyc_milan": {str(vcpus): kvm(pages, vcpus, CPU_SIGS["EPYC-Milan"]) for vcpus in counts},
        "mshv": mshv(pages),
    }


def kernel(size, fill):
    file = bytearray([fill] * size)
    file[0x1F1], file[0x202:0x206], file[0x236] = 3, b"HdrS", 1
    struct.pack_into("<Q", file, 0x258, KERNEL_GPA)
    return bytes(file)


def elf(segments):
    header = struct.pack("<4sBB18xQQ16xH6x", b"\x7fELF", 2, 1, STUB_GPA, 64, len(segments)).ljust(64, b"\0")
    offset, table = 0x1000, b""
    for gpa, data in segments:
        table += struct.pack("<IIQQQQQQ", 1, 0, offset, gpa, 0, len(data), len(data), 0)
        offset += len(data)
    return (header + table).ljust(0x1000, b"\0") + b"".join(data for _, data in segments)


def make(builder):
    reset_page = bytes([0xEB] * 4096)
    images = {"first": (kernel(5000, 0x90), bytes([0xF4] * 100)), "second": (kernel(9001, 0x91), bytes(range(250)) * 20)}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name, (bzimage, code) in images.items():
            (folder / "kernel").write_bytes(bzimage)
            (folder / "stub").write_bytes(elf([(STUB_GPA, code), (RESET_PAGE_GPA, reset_page)]))
            for policy in (0x30000, 0xB0133):
                (folder / "recipe").write_text(f"command_line = '{name}'\nsnp_policy = {policy:#x}\n")
                arguments = {"recipe": "recipe", "kernel": "kernel", "stub": "stub", "sidecar": "sidecar"}
                paths = [word for option, file in arguments.items() for word in (f"--{option}", folder / file)]
                subprocess.run([builder, "build", *paths, "--out", FOLDER / f"{name}-{policy:x}.igvm"], check=True)


if len(sys.argv) > 1:
    make(sys.argv[1])
digests = {path.name: record(path) for path in sorted(FOLDER.glob("*.igvm"))}
(FOLDER / "digests.json").write_text(json.dumps(digests, indent=2) + "\n")
