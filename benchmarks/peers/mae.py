"""The official MAE (facebookresearch/mae): its model from a checkout and the installed timm, image-only.

Its models_mae.py was written for timm 0.3.2 and numpy 1: the argument qk_scale, which timm dropped, and the name
np.float are given back here. Where torchvision is missing, timm gets an empty stand-in: nothing of it is used.
"""

import functools
import importlib.machinery
import inspect
import sys
import types
from typing import Any

import numpy as np
import torch
from serve import read_task
from torch_steps import images_of, serve_training


def stand_in_for_torchvision() -> None:
    """Let timm be imported without torchvision."""

    class Meta(type):
        def __getattr__(cls, name: str) -> Any:  # the members of an enum
            if name.startswith("__"):
                raise AttributeError(name)
            return name

    class Anything(types.ModuleType):
        __path__: list[str] = []

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return Meta(name, (), {})

    class Finder:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
            if name.split(".")[0] == "torchvision":
                return importlib.machinery.ModuleSpec(name, self, is_package=True)
            return None

        def create_module(self, spec: Any) -> types.ModuleType:
            return Anything(spec.name)

        def exec_module(self, module: types.ModuleType) -> None:
            return None

    sys.meta_path.append(Finder())  # asked last: a real torchvision is found before


def main() -> None:
    """Build, and serve."""
    task = read_task()
    torch.set_num_threads(task["threads"])
    sys.path.insert(0, task["checkout"])
    stand_in_for_torchvision()
    import timm
    from timm.models import vision_transformer

    if "qk_scale" not in inspect.signature(vision_transformer.Block).parameters:
        block = vision_transformer.Block
        vision_transformer.Block = lambda *args, qk_scale=None, **options: block(*args, **options)
    if not hasattr(np, "float"):
        np.float = float  # type: ignore[attr-defined]
    from models_mae import MaskedAutoencoderViT

    device, (dim, depth, heads) = torch.device(task["device"]), task["encoder"]
    decoder_dim, decoder_depth, decoder_heads = task["decoder"]
    model = MaskedAutoencoderViT(
        img_size=task["image"],
        patch_size=task["patch"],
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        decoder_embed_dim=decoder_dim,
        decoder_depth=decoder_depth,
        decoder_num_heads=decoder_heads,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    images = images_of(task)

    def loss(number: int) -> torch.Tensor:
        return model(images[number % len(images)], mask_ratio=0.75)[0]

    versions = {"torch": torch.__version__, "timm": timm.__version__}
    serve_training(task, optimizer, loss, versions)


if __name__ == "__main__":
    main()
