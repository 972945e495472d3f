"""Run the tests that need a GPU, for gpu.py: counts, and the names of those that failed.

python benchmarks/gpu_tests.py [--quick] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from partialkd.storage.atomic_files import write_text

ROOT = Path(__file__).resolve().parents[1]
QUICK = "tests/data/images"  # tests of which take seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only those of a few seconds, for a rehearsal")
    parser.add_argument("--out", type=Path, help="write the JSON object here, not to the output")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu and not slow", f"--junitxml={report}"]
        command += ["--continue-on-collection-errors"]  # where a package of other tests is missing
        done = subprocess.run([*command, *([QUICK] if args.quick else marked())], cwd=ROOT, check=False)
        if not report.exists():
            return done.returncode or 1
        found = counted(report)
    text = json.dumps(found, indent=2) + "\n"
    if args.out:
        write_text(args.out, text)
    else:
        print(text, end="")
    return done.returncode


def marked() -> list[str]:
    """List the files with tests that need a GPU: what others import may not be there."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if "mark.gpu" in path.read_text(encoding="utf-8")]


def counted(report: Path) -> dict[str, Any]:
    """Count passed, failed and skipped tests of a JUnit file, and name those that failed."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    bad = [one for one in cases if one.find("failure") is not None or one.find("error") is not None]
    skipped = [one for one in cases if one.find("skipped") is not None]
    names = [f"{one.get('classname')}::{one.get('name')}" for one in bad]
    return {"passed": len(cases) - len(bad) - len(skipped), "failed": len(bad), "skipped": len(skipped), "names": names}


if __name__ == "__main__":
    sys.exit(main())
