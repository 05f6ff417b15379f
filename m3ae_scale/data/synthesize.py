"""Writes shards of invented scenes in img2dataset's layout: pairs, images alone and texts alone, and a vocabulary.

    FOLDER/train/paired/00000.tar ...   000000000.jpg, .txt, .json of each sample; labels stand in the json,
                                        one of them also in .cls, where that is asked for
    FOLDER/train/image, FOLDER/train/text, and the same three under FOLDER/validation
    FOLDER/vocab.txt                    word pieces learned from the captions and texts of FOLDER/train
    FOLDER/synthesis.json               the settings; a second call with others is refused

Every sample is a function of the seed, its part and its number: the bytes do not depend on processes or restarts.
"""

import io
import json
import multiprocessing
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image

from m3ae_scale.data.rng import stream
from m3ae_scale.data.scenes.pixels import render
from m3ae_scale.data.scenes.scene import BACKGROUNDS, CLASSES, EVERYTHING, SHAPES, Palette, class_of, draw_scene
from m3ae_scale.data.scenes.words import describe, tell
from m3ae_scale.data.tokenizer import train_vocabulary
from m3ae_scale.errors import InputError

_LATER = (
    "label",
    "shapes",
    "backgrounds",
    "one_large",
    "vague",
    "shuffled_captions",
)  # settings that came after the first folders
VOCABULARY_SAMPLES = 20_000  # captions, and as many texts, that the vocabulary is learned from


@dataclass(frozen=True)
class Synthesis:
    """What to write. Validation holds `validation` samples of the largest kind, and the others in proportion."""

    samples: int  # pairs to train on
    image_only: int = 0  # images without a caption to train on
    text_only: int = 0  # texts without an image to train on
    validation: int = 0  # held out, of the largest kind
    seed: int = 0
    image_size: tuple[int, int] = (64, 96)  # shortest and longest side, pixels
    samples_per_shard: int = 1000
    vocabulary: int = 2048  # word pieces, at most
    label: str = ""  # what the cls member holds, a key of scene.CLASSES; all things of a scene are then alike
    shapes: tuple[str, ...] = ()  # that scenes are drawn from; (): all
    backgrounds: tuple[str, ...] = ()  # that scenes are drawn from; (): all
    one_large: bool = False  # every scene is one large thing
    vague: float = 0.0  # share of captions that name neither shape nor colour
    shuffled_captions: bool = False  # each pair has the caption of the next one: true, but of another image

    def __post_init__(self) -> None:
        """Refuse what cannot be written."""
        shortest, longest = self.image_size
        if not 16 <= shortest <= longest:
            raise InputError(
                f"image size: found {shortest} to {longest} pixels, expected 16 or more, the shorter first"
            )
        counts = (self.samples, self.image_only, self.text_only)
        if min(*counts, self.validation) < 0 or max(counts) == 0:
            raise InputError(f"samples: found {', '.join(map(str, counts))}, expected how many pairs, images and texts")
        if not 1 <= self.samples_per_shard <= 10_000:
            raise InputError(f"samples per shard: found {self.samples_per_shard}, expected 1 to 10000")
        if self.vocabulary < 100:
            raise InputError(f"vocabulary: found {self.vocabulary}, expected 100 word pieces or more")
        if self.label not in ("", *CLASSES):
            raise InputError(f"label: found {self.label!r}, expected one of {', '.join(CLASSES)}")
        for name, found, known in (("shapes", self.shapes, SHAPES), ("backgrounds", self.backgrounds, BACKGROUNDS)):
            strange = next((one for one in found if one not in known), None)
            if strange is not None:
                raise InputError(f"{name}: found {strange!r}, expected some of {', '.join(known)}")
        if len(self.shapes) == 1 and not self.label:
            raise InputError("shapes: found one, expected two or more: some scenes hold two unlike things")
        if not 0 <= self.vague <= 1:
            raise InputError(f"vague: found {self.vague}, expected a share from 0 to 1")

    @property
    def parts(self) -> dict[tuple[str, str], int]:
        """Samples of each (split, kind)."""
        train = {"paired": self.samples, "image": self.image_only, "text": self.text_only}
        held_out = {kind: self.validation * count // max(train.values()) for kind, count in train.items()}
        return {("train", k): n for k, n in train.items()} | {("validation", k): n for k, n in held_out.items()}

    @property
    def palette(self) -> Palette:
        """What scenes are drawn from."""
        backgrounds = self.backgrounds or EVERYTHING.backgrounds
        return Palette(self.shapes or SHAPES, backgrounds, self.label != "", self.one_large)

    @property
    def total(self) -> int:
        """Samples of all parts."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class _Shard:
    """One tar to write: samples `first` to `first + count` of a part."""

    path: Path
    split: str
    kind: str
    number: int
    first: int
    count: int
    settings: Synthesis


def synthesize(
    folder: str | Path,
    settings: Synthesis,
    processes: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write the shards and the vocabulary; shards that an earlier, interrupted call finished are kept.

    processes: to write shards in; None: one per core.
    progress: called with the number of samples that were finished since the last call; they add up to `total`.
    Raises InputError for a folder that holds other settings, or that cannot be written.
    """
    folder = Path(folder)
    _claim(folder, settings)
    shards = list(_shards(folder, settings))
    progress = progress or (lambda samples: None)
    for shard in shards:
        if shard.path.exists():
            progress(shard.count)
    missing = [shard for shard in shards if not shard.path.exists()]
    processes = min(processes or len(os.sched_getaffinity(0)), len(missing))
    if processes > 1:
        # spawn: a fork of a process with threads (torch's) may hang
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            for count in pool.imap_unordered(_write, missing):
                progress(count)
    else:
        for shard in missing:
            progress(_write(shard))
    vocabulary = folder / "vocab.txt"
    if not vocabulary.exists():
        train_vocabulary(_told(settings), settings.vocabulary, aside := vocabulary.with_suffix(".partial"))
        aside.rename(vocabulary)


def _claim(folder: Path, settings: Synthesis) -> None:
    """Note the settings in `folder`, or compare them with those of an earlier call."""
    path = folder / "synthesis.json"
    wanted = json.loads(json.dumps(asdict(settings)))
    for name in _LATER:  # so that a folder from before there was such a setting is still known
        if wanted[name] == json.loads(json.dumps(getattr(Synthesis, name))):
            del wanted[name]
    try:
        for split, kind in (part for part, count in settings.parts.items() if count):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(json.dumps(wanted, indent=1) + "\n")
        found = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{folder}: cannot write there ({error.strerror}); choose another folder") from None
    except ValueError:
        found = {}
    for name in {**wanted, **found}:
        if found.get(name) != wanted.get(name):
            raise InputError(
                f"{path}: found {name} {found.get(name)}, expected {wanted.get(name)}; the folder holds other samples: "
                "choose another, or delete it"
            )


def _shards(folder: Path, settings: Synthesis) -> Iterator[_Shard]:
    for (split, kind), total in settings.parts.items():
        for number, first in enumerate(range(0, total, settings.samples_per_shard)):
            path = folder / split / kind / f"{number:05d}.tar"
            count = min(settings.samples_per_shard, total - first)
            yield _Shard(path, split, kind, number, first, count, settings)


def _write(shard: _Shard) -> int:
    """Write one tar aside, then give it its name: a tar that is there is whole."""
    aside = shard.path.with_suffix(".partial")
    with tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(shard.count):
            key = f"{shard.number:05d}{i:04d}"
            for ending, content in _members(shard, key, shard.first + i).items():
                member = tarfile.TarInfo(f"{key}.{ending}")  # no time, no owner: the same bytes every time
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    aside.rename(shard.path)
    return shard.count


def _members(shard: _Shard, key: str, number: int) -> dict[str, bytes]:
    """The files of one sample."""
    if shard.kind == "text":
        return {"txt": _text(shard.settings, shard.split, number).encode()}
    rng = stream(shard.settings.seed, shard.split, shard.kind, number, "pixels")
    shortest, longest = shard.settings.image_size
    width, height = (shortest + int(rng.random() * (longest - shortest + 1)) for _ in range(2))
    scene = draw_scene(stream(shard.settings.seed, shard.split, shard.kind, number, "scene"), shard.settings.palette)
    jpeg = io.BytesIO()
    quality = 85 + int(rng.random() * 11)
    Image.fromarray(render(scene, width, height, rng)).save(jpeg, "JPEG", quality=quality)
    meta: dict[str, Any] = {"key": key, "status": "success", "width": width, "height": height, **scene.labels()}
    label = shard.settings.label
    labelled = {"cls": str(CLASSES[label].index(class_of(scene, label))).encode()} if label else {}
    if shard.kind == "image":
        return {"jpg": jpeg.getvalue(), "json": json.dumps(meta).encode(), **labelled}
    told = number
    if shard.settings.shuffled_captions:
        told = (number + 1) % shard.settings.parts[shard.split, "paired"]
    caption = _caption(shard.settings, shard.split, told)
    meta = {"caption": caption, **meta}
    return {"jpg": jpeg.getvalue(), "txt": caption.encode(), "json": json.dumps(meta).encode(), **labelled}


def _caption(settings: Synthesis, split: str, number: int) -> str:
    scene = draw_scene(stream(settings.seed, split, "paired", number, "scene"), settings.palette)
    return describe(scene, stream(settings.seed, split, "paired", number, "words"), settings.vague)


def _text(settings: Synthesis, split: str, number: int) -> str:
    return tell(stream(settings.seed, split, "text", number, "words"), settings.palette, settings.vague)


def _told(settings: Synthesis) -> Iterator[str]:
    """Captions and texts to learn the vocabulary from; where all images are without one, captions of pairs to be."""
    captions = min(settings.samples or settings.image_only, VOCABULARY_SAMPLES)
    texts = min(settings.text_only, VOCABULARY_SAMPLES)
    return chain(
        (_caption(settings, "train", i) for i in range(captions)), (_text(settings, "train", i) for i in range(texts))
    )
