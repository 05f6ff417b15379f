"""Hugging Face ViTMAE (transformers), image-only, with the attention that the installed release picks."""

import torch
import transformers
from serve import read_task
from torch_steps import images_of, serve_training


def main() -> None:
    """Build, and serve."""
    task = read_task()
    torch.set_num_threads(task["threads"])
    device, (dim, depth, heads) = torch.device(task["device"]), task["encoder"]
    decoder_dim, decoder_depth, decoder_heads = task["decoder"]
    config = transformers.ViTMAEConfig(
        hidden_size=dim,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * dim,
        image_size=task["image"],
        patch_size=task["patch"],
        decoder_hidden_size=decoder_dim,
        decoder_num_hidden_layers=decoder_depth,
        decoder_num_attention_heads=decoder_heads,
        decoder_intermediate_size=4 * decoder_dim,
        mask_ratio=0.75,
        norm_pix_loss=False,
    )
    model = transformers.ViTMAEForPreTraining(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    images = images_of(task)

    def loss(number: int) -> torch.Tensor:
        return model(images[number % len(images)]).loss

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    attention = getattr(model.config, "_attn_implementation", None)
    serve_training(task, optimizer, loss, versions | {"attention": attention})


if __name__ == "__main__":
    main()
