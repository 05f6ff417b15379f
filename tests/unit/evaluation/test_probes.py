"""Probes on handwritten digits: better than chance by far, at chance with shuffled labels, and kept features."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from m3ae_scale.cli.main import main
from m3ae_scale.config import load_experiment
from m3ae_scale.evaluation import features as room
from m3ae_scale.evaluation.encode import load_encoder
from m3ae_scale.evaluation.features import Extractor, FeatureSet, identify, joined, shuffled_labels, training_and_test
from m3ae_scale.evaluation.labelled import open_labelled
from m3ae_scale.evaluation.lars import LARS
from m3ae_scale.evaluation.linear import LinearRecipe, train_head
from m3ae_scale.evaluation.neighbours import vote
from m3ae_scale.evaluation.scores import accuracies, confusion, wilson

CHANCE = 0.1


@pytest.fixture(scope="module")
def extracted(place: Path) -> tuple[FeatureSet, FeatureSet]:
    run = place / "runs" / "some"
    with joined() as groups:
        extractor = Extractor(load_encoder(run), identify(run), run / "features", groups, "mean")
        return training_and_test(extractor, str(place / "train"), str(place / "test"), "image", None, run)


def top1(scores: torch.Tensor, data: FeatureSet) -> float:
    return accuracies(scores, data.labels)["top1"]


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_a_linear_probe_reads_digits_off_and_shuffled_labels_are_chance(extracted, optimizer) -> None:
    train, test = extracted
    recipe = LinearRecipe(optimizer=optimizer, batch=256, epochs=40, lr=0.1 if optimizer == "sgd" else 20.0)
    assert top1(train_head(train, recipe).logits(test.features), test) > 0.6
    assert top1(train_head(shuffled_labels(train), recipe).logits(test.features), test) < 2 * CHANCE


def test_a_head_is_the_same_for_the_same_seed(extracted) -> None:
    train, test = extracted
    one, same, other = (
        train_head(train, LinearRecipe(epochs=3, seed=seed)).logits(test.features) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_neighbours_vote(extracted) -> None:
    train, test = extracted
    votes = vote(train, test.features)
    torch.testing.assert_close(votes.sum(1), torch.ones(len(test)))
    assert top1(votes, test) > 0.4
    assert top1(vote(shuffled_labels(train), test.features), test) < 2 * CHANCE
    # one neighbour, the sample itself
    assert top1(vote(train, train.features, k=1), train) == 1.0


def test_features_are_kept_and_an_interrupted_extraction_goes_on(place: Path, extracted, monkeypatch) -> None:
    run = place / "runs" / "some"
    monkeypatch.setattr(room, "BLOCK", 100)
    computed: list[range] = []
    with joined() as groups:
        extractor = Extractor(load_encoder(run), "another checkpoint", place / "kept", groups, "mean")
        data = open_labelled(str(place / "test"), "image", load_experiment(run / "experiment.yaml")[0].data)
        inner = Extractor._compute
        monkeypatch.setattr(
            Extractor, "_compute", lambda self, d, rows, p: (computed.append(rows), inner(self, d, rows, p))
        )
        first = extractor.extract(data, "image")
        assert len(computed) == 6
        sorted(place.glob("kept/*/00003.safetensors"))[0].unlink()
        again = extractor.extract(data, "image")
        assert computed[6:] == [range(300, 400)]
        torch.testing.assert_close(first.features, extracted[1].features, rtol=1e-4, atol=1e-5)
        assert torch.equal(first.features, again.features)
        replace(extractor, checkpoint="yet another").extract(data, "image")
        assert len(computed) == 13


def test_lars_takes_the_step_of_its_formula() -> None:
    torch.manual_seed(0)
    weight, bias = torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(3))
    weight.grad, bias.grad = torch.randn(3, 4), torch.randn(3)
    mu = 0.001 * weight.norm() / weight.grad.norm() * weight.grad
    expected = (
        weight - 0.5 * mu - 0.5 * (0.9 * mu + 0.001 * (weight - 0.5 * mu).norm() / weight.grad.norm() * weight.grad)
    )
    of_bias = bias - 0.5 * bias.grad - 0.5 * (0.9 * bias.grad + bias.grad)
    optimizer = LARS([weight, bias], lr=0.5)
    optimizer.step()
    optimizer.step()
    torch.testing.assert_close(weight, expected)
    torch.testing.assert_close(bias, of_bias)


def test_accuracies_and_their_interval() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    labels = torch.tensor([0, 1, 1, 0])
    assert accuracies(scores, labels)["top1"] == 0.75 and accuracies(scores, labels)["class_mean"] == 0.75
    assert confusion(scores, labels) == [[2, 0], [1, 1]]
    assert wilson(75, 100) == pytest.approx((0.6569, 0.8246), abs=1e-4)  # Wilson 1927, any statistics book
    assert wilson(0, 10)[0] == pytest.approx(0, abs=1e-12)


def test_every_verb_writes_figures_and_a_page(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, shards = str(place / "runs" / "some"), place / "shards"
    both = ["--train", str(shards / "train"), "--test", str(shards / "test")]
    assert main(["eval", "linear-probe", run, *both, "--epochs", "8", "--input", "both", "--pool", "mean"]) == 0
    assert main(["eval", "knn", run, *both, "--input", "text"]) == 0
    assert main(["eval", "ood", run, *both, "--shifted", str(shards / "test"), "--epochs", "8", "--pool", "mean"]) == 0
    assert main(["eval", "embed", run, "--train", str(place / "test"), "--limit", "60", "--pool", "mean"]) == 0
    results = {json.loads(path.read_text())["verb"]: path for path in place.glob("runs/some/evaluation/*/result.json")}
    assert set(results) == {"linear-probe", "knn", "ood", "embed"}
    figures = {verb: json.loads(path.read_text())["metrics"] for verb, path in results.items()}
    assert figures["linear-probe"]["top1"] > 0.45
    assert figures["knn"]["top1"] < 2 * CHANCE  # its text says nothing of the digit
    assert figures["ood"]["retained"] == 1.0 and figures["ood"]["knn_auroc"] == 0.5  # nothing was shifted
    assert 0 < figures["embed"]["tsne_neighbours_alike"] < 1
    for path in results.values():
        page = (path.parent / "page.html").read_text()
        assert "http" not in page.replace("http://www.w3.org", "")
        assert "prefers-color-scheme: dark" in page
    assert f"figures in {results['embed']}" in capsys.readouterr().out


def test_a_mistake_is_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(place / "runs" / "some")
    assert main(["eval", "knn", run, "--train", str(place / "nowhere"), "--test", "x"]) == 2
    assert main(["eval", "ood", run, "--train", "a", "--test", "b"]) == 2
    assert main(["eval", "knn", str(place), "--train", "a", "--test", "b"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3 and all(line.startswith("error: ") for line in told)
