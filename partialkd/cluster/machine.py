"""What a host must have, looked at on each: versions, driver, compilers, limits, shared memory, interface.

Which versions are supported is read off the package's own metadata (pyproject.toml), so that it stands in one place.
"""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import socket
import struct
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from packaging.requirements import Requirement

from partialkd.cluster.findings import Finding, Verdict, judged

OPTIONAL = {
    "onnx": "ONNX teachers and export",
    "train": "training",
    "formats": "LMDB, Arrow and Parquet",
    "align": "align",
    "keras": "weights of Keras",
}
PURPOSES = {"nvidia-dali-cuda130": 'data.loader = "dali"', "tensorboard": "run.tensorboard"}  # not the whole extra's
LEAST_SHM = 1 << 30  # bytes
LEAST_FILES = 4096
DRIVER_OF_CUDA = {12: 525, 13: 580}  # major version of CUDA -> of the driver, as NVIDIA's compatibility table says
_SIOCGIFADDR = 0x8915


def look_at_machine(device: torch.device, distributed: bool) -> list[Finding]:
    """Look at this host. distributed: whether there are ranks on other hosts."""
    return [
        python_version(), *packages(), gpus(device), nccl(device), compilers(device), shared_memory(), open_files(),
        clock(), interface(distributed),
    ]  # fmt: skip


def python_version() -> Finding:
    """Look at the interpreter's version."""
    found = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info[:2] <= (3, 12)
    return judged("python", "good" if fits else "bad", found, "use Python 3.11 or 3.12", version=found)


def packages() -> list[Finding]:
    """Look at what is installed against what the package asks for; of extras, only what is there must fit."""
    try:
        asked = [Requirement(text) for text in requires("partialkd") or ()]
    except PackageNotFoundError:
        return [
            judged("packages", "bad", "partialkd is not installed here", "pip install --no-deps -e . in its folder")
        ]
    wrong: list[str] = []
    absent: dict[str, list[str]] = {}
    fine = 0
    for requirement in asked:
        extra = next((name for name in OPTIONAL if requirement.marker and f'"{name}"' in str(requirement.marker)), None)
        if requirement.marker and extra is None:
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            if extra is None:
                wrong.append(f"{requirement.name} is missing")
            else:
                purpose = PURPOSES.get(requirement.name, OPTIONAL[extra])
                absent.setdefault(purpose, []).append(requirement.name)
            continue
        if requirement.specifier.contains(found, prereleases=True):
            fine += 1
        else:
            wrong.append(f"{requirement.name} is {found}, not {requirement.specifier}")
    mend = "pip install -r requirements.txt"
    findings = [judged("packages", "bad" if wrong else "good", "; ".join(wrong) or f"{fine} fit", mend, wrong=wrong)]
    for purpose, names in absent.items():
        needed: Verdict = "doubtful" if purpose == OPTIONAL["train"] else "good"
        findings.append(judged("packages", needed, f"without {', '.join(sorted(set(names)))}: no {purpose}", mend))
    return findings


def gpus(device: torch.device) -> Finding:
    """Look at driver and devices."""
    proc = Path("/proc/driver/nvidia/version")
    driver = _driver(proc.read_text()) if proc.is_file() else None
    if device.type != "cuda":
        if driver is None:
            return judged("GPUs", "good", "none: ranks run on the CPU", devices=[])
        said = f"a driver ({driver}) but torch {torch.__version__} uses none of its devices"
        return judged("GPUs", "doubtful", said, "install torch's CUDA build, or say dist.device=cpu")
    names = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())]
    cuda = torch.version.cuda or ""
    least = DRIVER_OF_CUDA.get(int(cuda.partition(".")[0] or 0), 0)
    old = driver is not None and int(driver.partition(".")[0]) < least
    said = f"{len(names)} x {', '.join(sorted(set(names)))}, CUDA {cuda}, driver {driver or 'unknown'}"
    return judged("GPUs", "bad" if old else "good", said, f"CUDA {cuda} wants driver {least} or newer", devices=names)


def _driver(text: str) -> str | None:
    """The driver's version, as its line in /proc says."""
    return next((word for word in text.split() if word[:1].isdigit() and word.count(".") >= 1), None)


def nccl(device: torch.device) -> Finding:
    """Look at what joins the ranks."""
    if device.type != "cuda":
        return judged("backend", "good", "gloo")
    return judged("backend", "good", f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}")


def compilers(device: torch.device) -> Finding:
    """Look at what Triton's kernels (CUDA) and torch.compile are built with; a CPU run needs neither."""
    c, cxx = shutil.which(os.environ.get("CC", "gcc")), shutil.which(os.environ.get("CXX", "g++"))
    said = f"C {c or 'none'}, C++ {cxx or 'none'}"
    if device.type == "cuda" and c is None:
        return judged("compilers", "bad", said, "install gcc and libc6-dev: Triton compiles a module for every kernel")
    if cxx is None:
        return judged("compilers", "doubtful", f"{said}: *.compile=true does not work on a CPU", "install g++")
    return judged("compilers", "good", said)


def shared_memory() -> Finding:
    """Look at /dev/shm, by which NCCL and processes of one host exchange data."""
    if not Path("/dev/shm").is_dir():
        return judged("/dev/shm", "doubtful", "is not there", "mount a tmpfs there")
    found = os.statvfs("/dev/shm")
    free = found.f_bavail * found.f_frsize
    mend = "containers: --shm-size=8g (Docker gives 64 MB), in Kubernetes an emptyDir with medium: Memory"
    return judged("/dev/shm", "good" if free >= LEAST_SHM else "doubtful", f"{free / 1e9:.2f} GB free", mend, free=free)


def open_files() -> Finding:
    """Look at how many files a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = sys.maxsize if soft == resource.RLIM_INFINITY else soft
    mend = f"ulimit -n {LEAST_FILES}" + ("" if hard in (-1,) or hard >= LEAST_FILES else ", which root must allow")
    return judged("open files", "good" if soft >= LEAST_FILES else "doubtful", f"{soft} at most", mend, most=soft)


def clock() -> Finding:
    """Look at whether the clock can be right: certificates, claims of folders and logs rely on it."""
    now, written = time.time(), Path(__file__).stat().st_mtime
    said = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < written - 86400:
        return judged("clock", "bad", f"{said}, before these files were written", "set it (chrony, ntp)")
    return judged("clock", "good", "not before these files were written")


def interface(distributed: bool) -> Finding:
    """Look at the interface by which the ranks are reached."""
    address = _own_address(os.environ.get("MASTER_ADDR", "127.0.0.1"))
    name = next((name for name, own in addresses().items() if own == address), "unknown")
    chosen = {key: os.environ[key] for key in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME") if key in os.environ}
    said = f"{name} ({address})" + "".join(f", {key}={value}" for key, value in chosen.items())
    unknown = [value for value in chosen.values() if not _exists(value)]
    mend = "set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME (Slurm: PARTIALKD_IFNAME) to the one that joins the hosts"
    if unknown:
        return judged("interface", "bad", f"{said}; no interface is called {unknown[0]}", mend)
    alone = address is not None and address.startswith("127.")
    verdict: Verdict = "doubtful" if distributed and alone and not chosen else "good"
    infiniband = Path("/sys/class/infiniband")
    cards = sorted(path.name for path in infiniband.iterdir()) if infiniband.is_dir() else []
    said += f", InfiniBand {', '.join(cards)}" if cards else ""
    return judged("interface", verdict, said, mend, interface=name)


def addresses() -> dict[str, str]:
    """IPv4 addresses of this host's interfaces, by name."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # one without an address
                packed = struct.pack("256s", name.encode()[:15])
                found[name] = socket.inet_ntoa(fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, packed)[20:24])
    return found


def _own_address(master: str) -> str | None:
    """The address that this host sends from to the first one; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, suppress(OSError):
        asking.connect((master, 9))
        return str(asking.getsockname()[0])
    return None


def _exists(choice: str) -> bool:
    """Whether an interface fits: libraries take lists of beginnings, "=" for a whole name and "^" for others."""
    if choice.startswith("^"):
        return True
    names = [name for _, name in socket.if_nameindex()]
    wanted = choice.removeprefix("=").split(",")
    return any(name == one or (not choice.startswith("=") and name.startswith(one)) for name in names for one in wanted)
