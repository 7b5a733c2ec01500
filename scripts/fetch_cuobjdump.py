"""Gets cuobjdump and nvdisasm, which count the machine instructions of the CUDA kernels, into this Python environment.

    .venv/bin/python scripts/fetch_cuobjdump.py

Does nothing where there is no nvcc or where the two are already at hand. Some installations of nvcc come without them;
the PyPI package of Triton carries both, so it is downloaded (0.3 GB), not installed, and only they are kept. Without a
network it says so and leaves with success: the tests that need them are then skipped.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from machine_code import find_cuobjdump, find_nvcc, release

FOLDER = "triton/backends/nvidia/bin"


def fetch(destination: Path) -> None:
    with tempfile.TemporaryDirectory(dir=destination) as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "1", "--timeout", "20"]
        options = ["download", "-q", "--no-cache-dir", "--no-deps", "--only-binary", ":all:", "--dest", folder]
        subprocess.run([*pip, *options, "triton"], check=True, capture_output=True, text=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for tool in ("cuobjdump", "nvdisasm"):
                unpacked = Path(archive.extract(f"{FOLDER}/{tool}", folder))
                unpacked.chmod(0o755)
                shutil.move(unpacked, destination / tool)


def main() -> None:
    def say(text: str) -> None:
        print("fetch_cuobjdump:", text, file=sys.stderr)

    nvcc = find_nvcc()
    if nvcc is None:
        return
    if found := find_cuobjdump():
        say(f"using {found}")
        return
    if sys.prefix == sys.base_prefix:
        say("run it with the Python of a virtual environment, which is where the tools go")
        return
    destination = Path(sys.prefix) / "bin"
    try:
        fetch(destination)
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        say(f"not fetched, so machine code is not counted; pip said: {reason}")
    except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        say(f"not fetched, so machine code is not counted: {error}")
    else:
        if find_cuobjdump():
            say(f"cuobjdump and nvdisasm are in {destination}")
        else:
            theirs, ours = (".".join(map(str, release(tool))) for tool in (destination / "cuobjdump", nvcc))
            say(f"not counting machine code: the tools of triton are of CUDA {theirs}, nvcc is of the newer {ours}")


if __name__ == "__main__":
    main()
