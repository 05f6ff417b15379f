"""Fine-tuning: the whole encoder trained on labels with the reference's recipe, resumable, over ranks."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from m3ae_scale.config import load_experiment
from m3ae_scale.evaluation.classifier import Classifier, FinetuneRecipe, score, train_classifier
from m3ae_scale.evaluation.encode import load_encoder
from m3ae_scale.evaluation.features import joined
from m3ae_scale.evaluation.labelled import open_labelled
from m3ae_scale.evaluation.record import Evaluated, Outcome, write_outcome
from m3ae_scale.evaluation.scores import accuracies
from m3ae_scale.evaluation.tables import accuracy_tiles, class_details, class_sections, percent
from m3ae_scale.reports.chart import Series, line_chart
from m3ae_scale.reports.page import Section


def finetune(path: str, train: str, test: str, label: str | None, recipe: FinetuneRecipe) -> Path | None:
    """Fine-tune the checkpoint at `path` on `train`, score it on `test`; returns the page on the first rank.

    After each epoch its state is kept beside the page: a second call goes on.
    Raises InputError for labelled sets that cannot be used.
    """
    evaluated = Evaluated.at(path)
    data = load_experiment(evaluated.run / "experiment.yaml")[0].data
    trained_on = open_labelled(train, "image", data, label)
    tested_on = open_labelled(test, "image", data, label).of_classes(trained_on.classes)
    settings = {"train": train, "test": test, "label": label, **asdict(recipe)}
    digest = hashlib.blake2b(json.dumps([settings, trained_on.identity]).encode(), digest_size=4).hexdigest()
    folder = evaluated.folder("finetune", trained_on.name, digest)
    with joined() as groups:
        model = Classifier(load_encoder(evaluated.checkpoint, str(groups.device)), len(trained_on.classes), recipe)
        losses: list[float] = []

        def each_epoch(epoch: int, loss: float) -> None:
            losses.append(loss)
            if groups.first:
                print(f"epoch {epoch} of {recipe.epochs}: loss {loss:.4f}", flush=True)

        train_classifier(model, trained_on, recipe, groups, folder / "state.pt", each_epoch)
        scores, labels = score(model, tested_on, groups)
        if not groups.first:
            return None
    metrics = accuracies(scores, labels)
    epochs = range(recipe.epochs - len(losses) + 1, recipe.epochs + 1)
    chart = line_chart("Training loss", "epoch", [Series("training", epochs, losses)])
    outcome = Outcome(
        verb="finetune",
        title=f"Fine-tuned on {trained_on.name}",
        lead=f"{evaluated.run.name} at {evaluated.checkpoint.name} · {len(trained_on):,} images to train on, "
        f"{len(tested_on):,} to test on",
        settings=settings,
        metrics=metrics,
        details=class_details(scores, labels, tested_on.classes),
        curves={"loss": losses},
        tiles=[
            *accuracy_tiles(metrics, len(tested_on.classes)),
            ("epochs", str(recipe.epochs), f"layer decay {recipe.layer_decay}"),
            ("mixed", percent(1.0) if recipe.mixup or recipe.cutmix else "no", "of the training images"),
        ],
        sections=[
            Section(
                "Curve", charts=[("Training loss", chart)], note="Of this call: a resumed one shows what it added."
            ),
            *class_sections(scores, labels, tested_on.name, tested_on.classes),
        ],
    )
    return write_outcome(outcome, evaluated, folder)
