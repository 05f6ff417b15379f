"""Cells: every one that the project's claims ask for, at every scale, is an experiment that can be submitted."""

from pathlib import Path

import pytest

from m3ae_scale.errors import InputError
from m3ae_scale.evaluation.claims.cells import Cell
from m3ae_scale.evaluation.claims.files import claims, read_claim, read_scale
from m3ae_scale.evaluation.claims.reproduce import cells_of

SCALES = ("minutes", "cpu_hours", "hour", "paper")


def cells(claim: str, scale: str, folder: Path) -> dict[tuple[str, int], Cell]:
    return cells_of(read_claim(claim), read_scale(scale), folder)


@pytest.mark.parametrize("scale", SCALES)
def test_every_cell_is_a_valid_experiment_and_arms_differ(scale: str, tmp_path: Path) -> None:
    for claim in claims():
        first = {arm: cell for (arm, seed), cell in cells(claim, scale, tmp_path).items() if seed == 0}
        for cell in first.values():
            experiment, _ = cell.write()
            assert experiment.seed == 0 and Path(experiment.run.folder) == tmp_path / "cells"
            assert "{data}" not in cell.path.read_text()
        assert len({cell.key for cell in first.values()}) == len(first), f"{claim}: two arms are the same"


@pytest.mark.parametrize("scale", SCALES)
def test_claims_share_the_cell_that_they_have_in_common(scale: str, tmp_path: Path) -> None:
    plain = {"multimodal": "multimodal", "text_mask": "0.75", "scaling": "base", "ood": "multimodal"}
    assert len({cells(claim, scale, tmp_path)[arm, 1].key for claim, arm in plain.items()}) == 1


def test_a_scale_of_the_same_data_under_another_name_has_other_cells(tmp_path: Path) -> None:
    keys = [{cell.key for cell in cells("scaling", scale, tmp_path).values()} for scale in SCALES]
    assert sum(map(len, keys)) == len(set().union(*keys))


def test_seeds_change_the_seed_alone(tmp_path: Path) -> None:
    found = cells("unpaired", "minutes", tmp_path)
    one, two = (dict(found["few pairs", seed].experiment) for seed in (0, 1))
    assert one.pop("seed") != two.pop("seed") and one == two


def test_a_key_that_looks_like_a_number_stays_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = (one for place, one in cells("ood", "minutes", tmp_path).items() if place == ("multimodal", 0))
    for key in ("270e39359490", "123456789012", "1e5"):
        monkeypatch.setattr(Cell, "key", property(lambda self, key=key: key))
        assert cell.write()[0].name == key


def test_a_scale_may_be_like_another(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("like: minutes\nscale: mine\nseeds: [7, 8]\ndata: {few: {samples: 9}}\n")
    mine, minutes = read_scale(str(tmp_path / "mine.yaml")), read_scale("minutes")
    assert (mine.scale, mine.seeds, mine.data["few"]) == ("mine", [7, 8], minutes.data["few"] | {"samples": 9})
    assert (mine.experiment, mine.probe, mine.data["test"]) == (
        minutes.experiment, minutes.probe, minutes.data["test"],
    )  # fmt: skip


@pytest.mark.parametrize(("like", "said"), [("minuets", "no such scale"), ("mine.yaml", "leads back here")])
def test_a_scale_like_none_is_a_mistake(like: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(f"like: {like}\nscale: mine\n")
    with pytest.raises(InputError, match=said):
        read_scale("mine.yaml")
