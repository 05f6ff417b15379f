"""Looking at shards: counts are exact, samples are spread, mean and std are those of the pixels, the page is whole."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from made_shards import VOCABULARY, experiment, jpeg, sample_members, write_shards, write_tar

from m3ae_scale.config.load import read_yaml
from m3ae_scale.config.schema import AugmentConfig
from m3ae_scale.data.augment import square_view
from m3ae_scale.data.inspect import Inspection, Lengths, as_json, as_section, as_text, inspect, spread, write_page
from m3ae_scale.data.loader import open_training
from m3ae_scale.data.section import data_section
from m3ae_scale.data.tokenizer import Tokenizer, load_tokenizer

LENGTHS = Lengths(image_size=16, patch=8, text_length=8, unpaired_text_length=12)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return load_tokenizer(tmp_path / "vocab.txt")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "data" / "paired", [7, 0, 9])
    write_shards(tmp_path / "data" / "image", [5], "image")
    write_shards(tmp_path / "data" / "text", [6], "text")
    return tmp_path / "data"


@given(st.lists(st.integers(0, 40), max_size=200), st.integers(1, 300))
def test_samples_are_spread_evenly_and_not_repeated(counts: list[int], wanted: int) -> None:
    chosen = list(spread(np.array(counts, np.int64), wanted))
    shards = [shard for shard, _ in chosen]
    assert shards == sorted(set(shards)) and len(shards) <= 64
    for shard, rows in chosen:
        assert rows == sorted(set(rows)) and rows[0] >= 0 and rows[-1] < counts[shard]
    if sum(count > 0 for count in counts) <= 64:
        assert sum(len(rows) for _, rows in chosen) == min(wanted, sum(counts))
        starts = np.cumsum([0, *counts])
        places = [starts[shard] + row for shard, rows in chosen for row in rows]
        gaps = np.diff([*places, sum(counts) + (places[0] if places else 0)])
        assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


def test_counts_are_exact_and_tokens_those_of_training(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    section = data_section([str(folder)])
    found = inspect(section, LENGTHS, tokenizer)
    told = {source["name"]: source for source in as_json(found)["sources"]}
    assert {name: source["samples"] for name, source in told.items()} == {"paired": 16, "image": 5, "text": 6}
    assert told["paired"]["padded_tokens"] == 1 + 4 + 8 and told["text"]["padded_tokens"] == 1 + 12
    for source in section.sources:
        made = experiment(tmp_path, [source.model_dump()], global_batch=told[source.name]["samples"])
        count = made.batch.global_
        data = open_training(made, data_rank=0, data_world=1, micro_batch=count, accumulation=1)
        epoch = next(iter(data))
        assert told[source.name]["packed_tokens"] == pytest.approx(int(epoch.decoder.cu_seqlens[-1]) / count)


def test_mean_and_std_are_those_of_the_pixels(folder: Path) -> None:
    found = inspect(data_section([str(folder / "paired")]), LENGTHS)
    pixels = np.stack([square_view(jpeg(i), 16, AugmentConfig(), None) for i in range(16)]) / 255
    assert found.channels is not None
    assert found.channels.mean == pytest.approx(pixels.mean((0, 1, 2)))
    assert found.channels.std == pytest.approx(pixels.std((0, 1, 2)))


def test_sources_count_by_their_images_or_by_their_weight(tmp_path: Path) -> None:
    from PIL import Image

    for name, colour, count in (("black", 0, 30), ("white", 255, 10)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16), (colour,) * 3).save(tmp_path / f"{name}.png")
        image = (tmp_path / f"{name}.png").read_bytes()
        write_tar(tmp_path / name / "0.tar", [(f"{i}.png", image) for i in range(count)])
    section = data_section([str(tmp_path)])
    by_images = inspect(section, LENGTHS).channels
    assert by_images is not None and by_images.mean == pytest.approx([0.25] * 3)
    by_weight = inspect(section, LENGTHS, by_weight=True).channels
    assert by_weight is not None and by_weight.mean == pytest.approx([0.5] * 3)


def test_the_limit_holds_and_is_told(tmp_path: Path) -> None:
    write_shards(tmp_path / "s", [150, 150])
    seen: list[tuple[int, int]] = []
    found = inspect(data_section([str(tmp_path / "s")]), LENGTHS, limit=120, progress=lambda *a: seen.append(a))
    assert (found.sources[0].samples, len(found.looks), seen) == (300, 120, [(1, 120)] * 120)
    assert "looked at 120 of them, evenly spread over 2 shards" in next(as_text(found))


def bad_folder(tmp_path: Path) -> Path:
    members = [*sample_members("good", 1), ("cut.jpg", jpeg(1)[:-40]), ("cut.txt", b"<b>cut & dried</b>")]
    members += [("blank.jpg", jpeg(2)), ("blank.txt", b" "), ("alone.jpg", jpeg(3)), *sample_members("fine", 4)]
    write_tar(tmp_path / "bad" / "0.tar", members)
    return tmp_path / "bad"


def test_bad_samples_and_blank_captions_are_told(tmp_path: Path) -> None:
    found = inspect(data_section([str(bad_folder(tmp_path))]), LENGTHS)
    told = as_json(found)
    assert (told["bad"], told["bad_rate"], told["sources"][0]["blank_texts"]) == (2, 0.4, 1)
    assert [reason["examples"] for reason in told["bad_reasons"]] == [["bad/0.tar/cut"], ["bad/0.tar/alone"]]
    json.dumps(told)


def test_pasted_texts_that_look_like_numbers_stay_texts(tmp_path: Path) -> None:
    write_shards(tmp_path / "270e39359490", [3])
    section = data_section([str(tmp_path / "270e39359490")], tokenizer="1e5")
    (tmp_path / "pasted.yaml").write_text(as_section(inspect(section, LENGTHS), section))
    pasted, _ = read_yaml(tmp_path / "pasted.yaml", "the section", "data")
    assert pasted["data"]["tokenizer"] == "1e5"
    assert [source["name"] for source in pasted["data"]["sources"]] == [section.sources[0].name] == ["270e39359490"]


def page_of(found: Inspection, path: Path, section: str = "") -> str:
    write_page(found, path, "here & there", section)
    return path.read_text()


def test_the_page_is_whole_and_refers_to_nothing(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    section = data_section([str(folder)], tokenizer="v.txt")
    found = inspect(section, LENGTHS, tokenizer)
    paste = as_section(found, section)
    page = page_of(found, tmp_path / "page.html", paste)
    assert page.count("<figure>") == 5 + 12 and "here &amp; there" in page
    assert not re.search(r'(src|href)="(?!data:)', page) and "url(" not in page and "nan" not in page
    pasted = yaml.safe_load(html.unescape(page.split("<pre>")[1].split("</pre>")[0]))
    assert pasted == yaml.safe_load(paste)
    experiment(tmp_path, pasted["data"].pop("sources"), augment=pasted["data"]["augment"])


def test_a_caption_cannot_break_the_page(tmp_path: Path) -> None:
    write_tar(tmp_path / "s" / "0.tar", [("0.jpg", jpeg(0)), ("0.txt", b"<script>alert('x')</script>")])
    found = inspect(data_section([str(tmp_path / "s")]), LENGTHS)
    assert "<script>" not in page_of(found, tmp_path / "page.html")


def test_a_page_of_texts_alone_and_of_nothing_good(folder: Path, tmp_path: Path) -> None:
    page_of(inspect(data_section([str(folder / "text")]), LENGTHS), tmp_path / "page.html")
    write_tar(tmp_path / "s" / "0.tar", [("0.jpg", b"no image"), ("0.txt", b"a")])
    found = inspect(data_section([str(tmp_path / "s")]), LENGTHS)
    assert "not an image" in page_of(found, tmp_path / "page.html")
    assert found.channels is None and list(as_text(found))


def test_of_many_remote_shards_without_an_index_some_are_fetched(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "s", [1] * 70)
    commands = [f"pipe:cat {path}" for path in sorted(folder.glob("*.tar"))]
    made = experiment(tmp_path, [{"name": "remote", "shards": commands}])
    found = inspect(made.data, LENGTHS)
    assert (found.sources[0].shards, found.sources[0].shards_indexed, len(found.looks)) == (70, 64, 64)
    assert any("64 of 70 shards (the rest is remote and has no index)" in line for line in as_text(found))
