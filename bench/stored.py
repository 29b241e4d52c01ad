"""Photographs decoded into a file and read from there: images per second, and memory.

    .venv/bin/python bench/stored.py --images 4000 --size 256 --json stored.json
    .venv/bin/python bench/stored.py --images 20000 --size 256 --batch 128   # a file larger than usual

JPEGs of 500 x 375 pixels, smooth with noise (some 60 kB each), made in a temporary folder. "decoded"
is `LabelledImages.store` into a new file, by the clock, with all processors that this process may use;
"read" draws batches at random from the file, which the system holds in memory by then, in one thread,
by CPU time, the median over turns; "copied" is the same from a tensor in memory. Memory is
how much the process's own grew by it (unique set size, which leaves out pages of files): reading
needs that of a batch, loading that of all images.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from autobalance.data.array_data import ArrayData
from autobalance_bench.datasets.images import LabelledImages
from measuring import cpu_seconds, options_of, prepare, write_json

PLACES = 40
"""Different images; the files are copies of these."""
TURNS = 5


def make_photographs(folder: Path, n: int, size: int) -> LabelledImages:
    generator = np.random.default_rng(0)
    made = []
    for _ in range(PLACES):
        coarse = generator.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize((500, 375)), dtype=np.int16)
        noisy = (image + generator.normal(0, 12, image.shape)).clip(0, 255).astype(np.uint8)
        path = folder / f"{len(made)}.jpg"
        Image.fromarray(noisy).save(path, quality=90)
        made.append(path.read_bytes())
    files = []
    for i in range(n):
        files.append(folder / f"image{i}.jpg")
        files[-1].write_bytes(made[i % PLACES])
    return LabelledImages.of_files(files, np.arange(n) % 10, "0123456789", size=size)


def own_bytes() -> int:
    """Memory that is this process's alone, without pages of files."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("this system does not say what a process holds")


def rate(data: ArrayData, batch: int, batches: int) -> float:
    """Images per CPU second of batches at random."""
    generator = torch.Generator().manual_seed(0)

    def draw() -> None:
        for _ in range(batches):
            data.batch(torch.randint(len(data), (batch,), generator=generator))

    return batch * batches / median(cpu_seconds(draw) for _ in range(TURNS))


def measured(n: int, size: int, batch: int) -> dict[str, Any]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        images = make_photographs(folder, n, size)
        begin, start = own_bytes(), time.perf_counter()
        data = ArrayData.of(images.store(folder / "decoded.npy")[1], images.targets)
        seconds = time.perf_counter() - start
        batches = max(2, min(n, 4000) // batch)
        read = rate(data, batch, batches)
        held = own_bytes() - begin
        loaded = ArrayData.of(data.inputs[slice(0, n)], images.targets)
        in_memory = own_bytes() - begin
        return {
            "images": n,
            "size": size,
            "batch": batch,
            "processors": len(os.sched_getaffinity(0)),
            "file_bytes": (folder / "decoded.npy").stat().st_size,
            "decoded_per_second": n / seconds,
            "read_per_cpu_second": read,
            "copied_per_cpu_second": rate(loaded, batch, batches),
            "bytes_reading": held,
            "bytes_loaded": in_memory,
        }


def main() -> int:
    parser = options_of(__doc__)
    parser.add_argument("--images", type=int, help="default: 4000, with --quick 200")
    parser.add_argument("--size", type=int, default=256, help="height and width once decoded")
    parser.add_argument("--batch", type=int, default=128)
    given = parser.parse_args()
    prepare(given.threads)
    found = measured(given.images or (200 if given.quick else 4000), given.size, given.batch)
    print(
        f"{found['images']:,} images of {found['size']} pixels, {found['file_bytes'] / 1e9:.2f} GB\n"
        f"decoded  {found['decoded_per_second']:8,.0f} a second on {found['processors']} processors\n"
        f"read     {found['read_per_cpu_second']:8,.0f} a CPU second, "
        f"{found['bytes_reading'] / 1e6:,.0f} MB of memory\n"
        f"copied   {found['copied_per_cpu_second']:8,.0f} a CPU second, "
        f"{found['bytes_loaded'] / 1e6:,.0f} MB"
    )
    write_json(given.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
