"""The table of bad inputs: each is made on the fly, goes through the loader, and what became of it is what was decided.

Outcomes: used (the sample is trained on), quarantined (named with its reason, another sample stands in), refused (one
line before the run). `pytest -k table_of_bad_inputs` prints the table; decode and prepare hold the details.
"""

import gzip
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from made_shards import experiment, jpeg, sample_members, write_tar
from PIL import Image

from m3ae_scale.data.loader import open_training, preflight
from m3ae_scale.data.quarantine import read
from m3ae_scale.errors import InputError

GOOD = 12  # samples beside the bad one
Members = list[tuple[str, bytes]]


@dataclass(frozen=True)
class Case:
    """One bad input and its decided outcome."""

    name: str
    make: Callable[[Path], object]  # writes shards into the folder
    outcome: str  # "used", "quarantined: REASON" or "refused: REASON"; the reason is a part of the whole
    kind: str = "paired"


def image_bytes(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def picture(mode: str = "RGB", size: tuple[int, int] = (30, 20)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return image_bytes(picture(), "JPEG", exif=exif)


def animated(form: str) -> bytes:
    return image_bytes(picture("P"), form, save_all=True, append_images=[picture("P").rotate(90)] * 3)


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


def good(kind: str = "paired", count: int = GOOD) -> Members:
    return [member for n in range(count) for member in sample_members(f"good{n:02d}", n, kind)]


def among_good(members: Members, kind: str = "paired") -> Callable[[Path], object]:
    return lambda folder: write_tar(folder / "shard.tar", [*good(kind), *members])


def with_image(data: bytes, ending: str = "jpg") -> Callable[[Path], object]:
    return among_good([(f"bad.{ending}", data), ("bad.txt", b"a red square")])


def with_text(data: bytes, kind: str = "paired") -> Callable[[Path], object]:
    return among_good([("bad.jpg", jpeg(1)), ("bad.txt", data)] if kind == "paired" else [("bad.txt", data)], kind)


def cut_tar(folder: Path) -> None:
    """The sample "bad" has its caption cut off; two more are lost."""
    members = [*good(), ("bad.jpg", jpeg(1)), ("bad.txt", b"a red square" * 100), *good(count=2)]
    path = write_tar(folder / "shard.tar", members)
    with tarfile.open(path) as tar:
        caption = tar.getmember("bad.txt").offset_data
    path.write_bytes(path.read_bytes()[: caption + 100])


def overwritten_header(folder: Path) -> None:
    """Noise where the caption's header was: the rest of the shard cannot be found."""
    path = write_tar(folder / "shard.tar", [*good(), ("bad.jpg", jpeg(1)), ("bad.txt", b"a red square")])
    with tarfile.open(path) as tar:
        header = tar.getmember("bad.txt").offset
    data = bytearray(path.read_bytes())
    data[header : header + 512] = b"\xa7" * 512
    path.write_bytes(data)


def cut_at_a_member(folder: Path) -> None:
    path = write_tar(folder / "shard.tar", [*good(), ("bad.jpg", jpeg(1)), ("bad.txt", b"a red square")])
    path.write_bytes(path.read_bytes().rstrip(b"\0").ljust(512 * 200, b"\0")[: _end_of_members(path)])


def _end_of_members(path: Path) -> int:
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    return last.offset_data + -(-last.size // 512) * 512


def with_odd_entries(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for kind, name in ((tarfile.DIRTYPE, "folder"), (tarfile.SYMTYPE, "link.jpg"), (tarfile.DIRTYPE, "bad.jpg")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "good00.jpg"
            tar.addfile(info)
        for name, data in [*good(), ("folder/bad.jpg", jpeg(1)), ("folder/bad.txt", b"a red square")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def plain_file(name: str, data: bytes) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        among_good([])(folder)
        (folder / name).write_bytes(data)

    return make


META = json.dumps({"caption": "a red square"}).encode()
HUGE = image_bytes(Image.new("1", (20_000, 20_000)), "PNG")
APART = among_good([("bad.jpg", jpeg(1)), *sample_members("other", 2), ("zz.cls", b"1"), ("bad.txt", b"a square")])
JPG_AND_PNG = among_good([("bad.jpg", jpeg(1)), ("bad.png", b"no png"), ("bad.txt", b"a square")])


def only_texts(folder: Path) -> None:
    write_tar(folder / "0.tar", good("text"))


CASES = [
    # Shards
    Case("tar cut inside a caption: samples before", cut_tar, "used good11"),
    Case("tar cut inside a caption: that sample", cut_tar, "quarantined: no text beside its image"),
    Case("tar cut inside a caption: the rest", cut_tar, "quarantined: truncated after 13 samples: bad.txt needs 1200"),
    Case("tar with noise for a header: samples before", overwritten_header, "used good11"),
    Case("tar with noise for a header: the rest", overwritten_header, "quarantined: damaged after 13 samples"),
    Case("tar cut between members: samples before", cut_at_a_member, "used"),
    Case("tar cut between members: a note", cut_at_a_member, "quarantined: truncated after 13 samples: it has no"),
    Case("text file named .tar", plain_file("notes.tar", b"a red square\n" * 99), "refused: notes.tar: expected a tar"),
    Case("file of zero bytes named .tar", plain_file("empty.tar", b""), "refused: empty.tar: expected a tar"),
    Case("compressed tar", plain_file("z.tar", gzip.compress(b"x" * 99)), "refused: it is gzip; shards are read at"),
    Case("tar without members, beside others", plain_file("none.tar", b"\0" * 10240), "used good11"),
    Case("tar without members, alone", lambda f: write_tar(f / "0.tar", []), "refused: found 0 samples, 0 with an"),
    Case("folders and links among the members", with_odd_entries, "used folder/bad"),
    Case("nested names", among_good([("a/b/bad.jpg", jpeg(1)), ("a/b/bad.txt", b"a square")]), "used a/b/bad"),
    Case("names that begin with ./", among_good([("./bad.jpg", jpeg(1)), ("./bad.txt", b"a square")]), "used bad"),
    Case("a key twice: the first", among_good(2 * sample_members("bad", 1)), "used bad"),
    Case("a key twice: the second", among_good(2 * sample_members("bad", 1)), "used bad#2"),
    Case("members of a sample apart", APART, "used"),
    Case("capital endings", among_good([("bad.JPG", jpeg(1)), ("bad.TXT", b"a red square")]), "used"),
    Case("jpg and png of one key: the first", JPG_AND_PNG, "used"),
    # Images
    Case("JPEG of zero bytes", with_image(b""), "quarantined: zero bytes"),
    Case("JPEG cut in half", with_image(image_bytes(picture(size=(200, 150)), "JPEG")[:9000]), "quarantined: damaged"),
    Case("web page named .jpg", with_image(b"<html>not found</html>"), "quarantined: not an image"),
    Case("CMYK JPEG", with_image(image_bytes(picture("CMYK"), "JPEG")), "used"),
    Case("grey JPEG", with_image(image_bytes(picture("L"), "JPEG")), "used"),
    Case("PNG of 16 bits", with_image(image_bytes(picture("I;16"), "PNG"), "png"), "used"),
    Case("PNG with palette", with_image(image_bytes(picture("P"), "PNG"), "png"), "used"),
    Case("PNG with transparency", with_image(image_bytes(picture("RGBA"), "PNG"), "png"), "used"),
    Case("JPEG turned by EXIF", with_image(rotated()), "used"),
    Case("animated GIF", with_image(animated("GIF"), "gif"), "used"),
    Case("animated WebP", with_image(animated("WEBP"), "webp"), "used"),
    Case("1 x 1 pixel", with_image(image_bytes(picture(size=(1, 1)), "JPEG")), "used"),
    Case("20,000 x 30 pixels", with_image(image_bytes(picture(size=(20_000, 30)), "JPEG")), "used"),
    Case("20,000 x 20,000 pixels", with_image(HUGE, "png"), "quarantined: past the limit"),
    Case("decompression bomb", with_image(bomb(), "png"), "quarantined: past the limit"),
    # Texts
    Case("pair without caption", among_good([("bad.jpg", jpeg(1))]), "quarantined: no text beside its image"),
    Case("pair without image", among_good([("bad.txt", b"a red square")]), "quarantined: no image beside its text"),
    Case("json without image and caption", among_good([("bad.json", META)]), "quarantined: no image beside its json"),
    Case("caption that is not UTF-8", with_text(b"a r\xe9d square"), "quarantined: not UTF-8"),
    Case("caption of zero bytes: the image alone", with_text(b""), "used"),
    Case("blank caption: the image alone", with_text(b" \n\t "), "used"),
    Case("a book for a caption", with_text(b"a red square " * 100_000), "used"),
    Case("caption with zero bytes and control characters", with_text(b"a \x00\x07red\x1b square"), "used"),
    Case("text source: text of zero bytes", with_text(b"", "text"), "quarantined: blank", "text"),
    Case("text source: not UTF-8", with_text(b"\xff\xfe", "text"), "quarantined: not UTF-8", "text"),
    Case("image source: no image", among_good([("bad.txt", b"a")], "image"), "quarantined: no image beside", "image"),
    Case("image source: shards of texts", only_texts, "refused: kind image needs images", "image"),
]  # fmt: skip

became: dict[str, str] = {}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_input_has_its_outcome(case: Case, tmp_path: Path) -> None:
    case.make(tmp_path / "shards")
    source = {"name": "mine", "shards": str(tmp_path / "shards"), "kind": case.kind}
    base = experiment(tmp_path, [source], global_batch=8, bad_sample_limit=1.0)
    verdict, _, detail = case.outcome.partition(" ")
    if verdict == "refused:":
        with pytest.raises(InputError) as caught:
            preflight(base)
        assert detail in str(caught.value) and "\n" not in str(caught.value)
        became[case.name] = f"refused: {str(caught.value).replace(str(tmp_path), '')}"
        return
    preflight(base)
    data = open_training(
        base, data_rank=0, data_world=1, micro_batch=8, accumulation=1, quarantine_folder=tmp_path / "run"
    )
    batches = list(islice(data, -(-data.samples_per_epoch // 8)))
    assert all(batch.samples == 8 for batch in batches), "the step count does not hold"
    used = {key for batch in batches for key in batch.keys}
    record = tmp_path / "run" / "quarantine-rank0.jsonl"
    quarantined = {bad.key: bad for bad in read(record)} if record.exists() else {}
    if verdict == "used":
        key = detail or "bad"
        assert f"mine/shard.tar/{key}" in used
        assert key not in quarantined
        became[case.name] = f"used as {key}"
    else:
        key = "" if detail.startswith(("truncated", "damaged after")) else "bad"
        assert not key or f"mine/shard.tar/{key}" not in used
        assert detail in quarantined[key].reason
        became[case.name] = f"quarantined: {quarantined[key].reason}"


def test_the_table_of_bad_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    """Last in this file: prints what became of each."""
    if len(became) < len(CASES):
        pytest.skip("only some of the cases ran")
    width = max(map(len, became))
    with capsys.disabled():
        print("\n\n" + "\n".join(f"{name:{width}}  {what}" for name, what in became.items()))
