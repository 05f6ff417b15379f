"""Which way from a JPEG to a square of pixels is fastest on one core, and how far it is from Pillow's.

    python benchmarks/decoders.py [--rounds N] [--out benchmarks/results/decoders.jsonl]

Every way gets the same files and the same random crops, one after the other within a round, so that noise of the
machine hits all alike; a way's time is the median of its rounds. Quality is the difference from Pillow's full
decode and antialiased bicubic of the same crop, in steps of 255. Crops lie on multiples of 8 pixels, so that a
decode at 1/n can take exactly the same one (in training its edges move by up to n / 2 pixels). The pictures have
a photograph's spectrum and are coded at quality 90 with halved chroma. Ways whose library is not installed are
left out.
"""

import argparse
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", VIPS_CONCURRENCY="1", RAYON_NUM_THREADS="1")

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image

from m3ae_scale.config.schema import AugmentConfig
from m3ae_scale.data.augment import Box, crop, largest_shrink, random_crop, resize
from m3ae_scale.data.decode import open_image
from m3ae_scale.data.rng import stream

Pixels = NDArray[np.uint8]
Way = Callable[[bytes, Box, int], Pixels]
CHOSEN = "simplejpeg at 1/n, gap 2 + torch"
REFERENCE = "Pillow"
BICUBIC = Image.Resampling.BICUBIC


def edges(box: Box) -> tuple[int, int, int, int]:
    """Left, top, right, bottom."""
    return box.left, box.top, box.left + box.width, box.top + box.height


def pillow(data: bytes, box: Box, size: int) -> Pixels:
    """Full decode, crop, bicubic: what torchvision does."""
    image = Image.open(io.BytesIO(data)).convert("RGB").crop(edges(box))
    return np.asarray(image.resize((size, size), BICUBIC))


def pillow_gap(data: bytes, box: Box, size: int) -> Pixels:
    """Full decode; a box filter first where the crop has more than twice the pixels (reducing_gap)."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image.resize((size, size), BICUBIC, box=edges(box), reducing_gap=2.0))


def pillow_draft(data: bytes, box: Box, size: int) -> Pixels:
    """Decode at 1/n where the crop keeps twice the pixels, then the same."""
    image = Image.open(io.BytesIO(data))
    shrink = largest_shrink(box, size)
    image.draft("RGB", (image.width // shrink, image.height // shrink))
    left, top, right, bottom = (edge / shrink for edge in edges(box))
    part = left, top, right, bottom
    return np.asarray(image.convert("RGB").resize((size, size), BICUBIC, box=part))


def simple_pillow(data: bytes, box: Box, size: int) -> Pixels:
    """Full decode by simplejpeg, bicubic by Pillow."""
    part = crop(simplejpeg.decode_jpeg(data), box, 1)
    return np.asarray(Image.fromarray(part).resize((size, size), BICUBIC))


def simple_torch(data: bytes, box: Box, size: int) -> Pixels:
    """Full decode by simplejpeg, bicubic by torch."""
    return resize(crop(simplejpeg.decode_jpeg(data), box, 1), size)


def chosen(data: bytes, box: Box, size: int) -> Pixels:
    """What m3ae_scale does."""
    pixels, shrink = open_image(data).decode(largest_shrink(box, size))
    return resize(crop(pixels, box, shrink), size)


def simple_torch_gap_1(data: bytes, box: Box, size: int) -> Pixels:
    """Decode at 1/n down to the resolution of the square itself."""
    shrink = next((n for n in (8, 4, 2) if min(box.width, box.height) >= size * n), 1)
    pixels, _ = open_image(data).decode(shrink)
    return resize(crop(pixels, box, shrink), size)


def opencv(data: bytes, box: Box, size: int) -> Pixels:
    """OpenCV's own decoder, and its bicubic, which does not antialias."""
    import cv2

    image = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB), np.uint8)
    return np.asarray(cv2.resize(crop(image, box, 1), (size, size), interpolation=cv2.INTER_CUBIC), np.uint8)


def opencv_area(data: bytes, box: Box, size: int) -> Pixels:
    """OpenCV's box filter after simplejpeg: it antialiases but is no bicubic."""
    import cv2

    part = crop(simplejpeg.decode_jpeg(data), box, 1)
    return np.asarray(cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA), np.uint8)


def kornia(data: bytes, box: Box, size: int) -> Pixels:
    """The antialiased bicubic of kornia-rs after simplejpeg."""
    from kornia_rs import imgproc

    part = np.ascontiguousarray(crop(simplejpeg.decode_jpeg(data), box, 1))
    return np.asarray(imgproc.resize(part, (size, size), interpolation="bicubic", antialias=True))


def vips(data: bytes, box: Box, size: int) -> Pixels:
    """libvips, with its decode at 1/n where the crop keeps twice the pixels."""
    import pyvips  # type: ignore[import-untyped]

    shrink = largest_shrink(box, size)
    image = pyvips.Image.new_from_buffer(data, "", shrink=shrink)
    left, top, right, bottom = (round(edge / shrink) for edge in edges(box))
    right, bottom = min(right, image.width), min(bottom, image.height)
    part = image.crop(left, top, right - left, bottom - top)
    square = part.resize(size / part.width, vscale=size / part.height, kernel="cubic")
    return np.asarray(square.numpy())


WAYS: dict[str, tuple[Way, str]] = {
    REFERENCE: (pillow, "PIL"),
    "Pillow, reducing_gap 2": (pillow_gap, "PIL"),
    "Pillow, draft, gap 2": (pillow_draft, "PIL"),
    "OpenCV, bicubic": (opencv, "cv2"),
    "simplejpeg + OpenCV area": (opencv_area, "cv2"),
    "libvips at 1/n, gap 2": (vips, "pyvips"),
    "simplejpeg + Pillow": (simple_pillow, "PIL"),
    "simplejpeg + kornia-rs": (kornia, "kornia_rs"),
    "simplejpeg + torch": (simple_torch, "torch"),
    CHOSEN: (chosen, "torch"),
    "simplejpeg at 1/n, gap 1 + torch": (simple_torch_gap_1, "torch"),
}


def picture(width: int, height: int, seed: int) -> bytes:
    """A JPEG whose amplitude falls with the frequency as a photograph's, with chroma weaker than luma."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(width), np.fft.fftfreq(height)))
    frequency[0, 0] = 1
    grey = rng.standard_normal((height, width))
    planes = []
    for _ in range(3):
        noise = np.fft.fft2(grey + 0.2 * rng.standard_normal((height, width)))
        plane = np.fft.ifft2(noise / frequency**1.3).real
        planes.append(128 + 55 * (plane - plane.mean()) / plane.std())
    pixels = np.stack(planes, -1).clip(0, 255).astype(np.uint8)
    return bytes(simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling="420"))


def on_eights(box: Box) -> Box:
    """The crop with its edges on multiples of 8 pixels."""
    left, top, right, bottom = (8 * (edge // 8) for edge in edges(box))
    return Box(left, top, right - left, bottom - top)


def measure(width: int, height: int, size: int, rounds: int, files: int = 6, crops: int = 4) -> list[dict[str, object]]:
    """Time every way on the same crops of the same files. Returns a row a way."""
    pictures = [picture(width, height, seed) for seed in range(files)]
    work = [
        (data, on_eights(random_crop(width, height, AugmentConfig(), stream(i, j))))
        for i, data in enumerate(pictures)
        for j in range(crops)
    ]
    ways = {name: way for name, (way, module) in WAYS.items() if importlib.util.find_spec(module)}
    reference = [pillow(data, box, size).astype(int) for data, box in work]
    quality = {}
    for name, way in ways.items():
        differences = [np.abs(way(d, b, size) - r) for (d, b), r in zip(work, reference, strict=True)]
        quality[name] = float(np.mean(differences)), int(np.max(differences))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            for data, box in work:
                way(data, box, size)
            seconds[name].append((time.perf_counter() - start) / len(work))
    base = float(np.median(seconds[REFERENCE]))
    rows: list[dict[str, object]] = []
    for name in ways:
        median = float(np.median(seconds[name]))
        rows.append(
            {
                "way": name,
                "image": f"{width}x{height}",
                "size": size,
                "kilobytes": round(float(np.mean([len(p) for p in pictures])) / 1000),
                "images_per_second": round(1 / median, 1),
                "times_pillow": round(base / median, 2),
                "mean_difference": round(quality[name][0], 2),
                "worst_difference": quality[name][1],
                "rounds": rounds,
            }
        )
    return rows


def provenance() -> dict[str, object]:
    """Hardware, versions and commit of the measurement."""
    packages = ("pillow", "simplejpeg", "torch", "numpy", "opencv-python-headless", "kornia-rs", "pyvips")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    processor = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processor": processor,
        "threads": 1,
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit.stdout.strip() or None,
    }


def main() -> None:
    """Measure, print a table a case, append the rows as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "decoders.jsonl")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    source = provenance()
    print(f"one core of {source['processor']}; {source['versions']}")
    rows: list[dict[str, object]] = []
    for width, height in ((640, 480), (1200, 900), (2400, 1800)):
        for size in (224, 256):
            case = measure(width, height, size, arguments.rounds)
            print(f"\n{width}x{height} JPEG of {case[0]['kilobytes']} kB -> random crop {size}x{size}")
            print(f"{'':34}{'images/s':>9}{'x Pillow':>10}{'mean':>8}{'worst':>7}")
            for row in case:
                speed = f"{row['images_per_second']:>9}{row['times_pillow']:>10}"
                print(f"{row['way']:34}{speed}{row['mean_difference']:>8}{row['worst_difference']:>7}")
            rows += case
    arguments.out.parent.mkdir(exist_ok=True)
    with arguments.out.open("a") as out:
        out.writelines(json.dumps({**row, **source}) + "\n" for row in rows)


if __name__ == "__main__":
    main()
