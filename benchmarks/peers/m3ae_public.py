"""The official M3AE (young-geng/m3ae_public, JAX): its model and losses from a checkout, in its own training step.

The step is that of its m3ae_main.py (value_and_grad, clip, adamw with its decay mask) under jax.jit instead of
pmap, which newer JAX no longer has for one device. Needs jax, flax, optax, ml_collections and a checkout.
"""

import sys
from typing import Any

from serve import read_batches, read_task, serve


def main() -> None:
    """Build, and serve."""
    task = read_task()
    sys.path.insert(0, task["checkout"])
    import flax
    import jax
    import jax.numpy as jnp
    import optax
    from m3ae.model import (
        M3AETrainState,
        MaskedAutoencoder,
        MaskedMultimodalAutoencoder,
        cross_entropy_loss_and_accuracy,
        extract_patches,
        mask_intersection,
        mask_not,
        patch_mse_loss,
    )

    if not hasattr(jax, "tree_map"):  # older name, which the checkout may use
        jax.tree_map = jax.tree_util.tree_map
    if task["precision"] == "bf16":  # it has no switch for the model's dtype; the products can be rounded
        jax.config.update("jax_default_matmul_precision", "bfloat16")
    text, vocabulary = task["text"], task["vocabulary"]
    config = {
        "model_type": None,
        "emb_dim": task["encoder"][0],
        "depth": task["encoder"][1],
        "num_heads": task["encoder"][2],
        "dec_emb_dim": task["decoder"][0],
        "dec_depth": task["decoder"][1],
        "dec_num_heads": task["decoder"][2],
        "mlp_ratio": 4,
        "use_type_embedding": True,
    }
    patch_dim = task["patch"] ** 2 * 3
    names = (MaskedMultimodalAutoencoder if text else MaskedAutoencoder).get_default_config()
    known = {key: value for key, value in config.items() if key in names and value is not None}
    if text:
        model = MaskedMultimodalAutoencoder(
            config_updates=known, text_vocab_size=vocabulary, image_output_dim=patch_dim
        )
    else:
        model = MaskedAutoencoder(config_updates=known, image_output_dim=patch_dim)
    data = [{key: jnp.asarray(value) for key, value in batch.items()} for batch in read_batches(task)]

    def apply(params: Any, batch: dict[str, Any], keys: Any) -> Any:
        patches = extract_patches(batch["image"], task["patch"])
        if not text:
            output, mask, *_ = model.apply(params, patches, deterministic=False, rngs=keys)
            return patch_mse_loss(output, patches, mask)
        image_out, text_out, image_mask, text_mask = model.apply(
            params, patches, batch["text"], batch["padding"], deterministic=False, rngs=keys
        )
        valid = mask_intersection(text_mask, mask_not(batch["padding"]))
        text_loss, _ = cross_entropy_loss_and_accuracy(text_out, batch["text"], valid)
        return patch_mse_loss(image_out, patches, image_mask) + 0.5 * text_loss

    def keys_of(rng: Any) -> dict[str, Any]:
        names = model.rng_keys()
        return dict(zip(names, jax.random.split(rng, len(names)), strict=True))

    def decays(params: Any) -> Any:
        flat = flax.traverse_util.flatten_dict(flax.core.frozen_dict.unfreeze(params))
        marks = {key: all(part not in model.no_decay_list() for part in key) for key in flat}
        return flax.traverse_util.unflatten_dict(marks)

    first, keys = data[0], keys_of(jax.random.PRNGKey(0))
    patches = extract_patches(first["image"], task["patch"])
    inputs = (patches, first["text"], first["padding"]) if text else (patches,)
    params = flax.core.frozen_dict.unfreeze(model.init(keys, *inputs, deterministic=False))
    optimizer = optax.chain(
        optax.clip_by_global_norm(1e9), optax.adamw(1e-4, weight_decay=0.05, b1=0.9, b2=0.95, mask=decays)
    )
    state = M3AETrainState.create(params=params, tokenizer_params=None, apply_fn=None, tx=optimizer)

    def train_step(state: Any, rng: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
        loss, gradients = jax.value_and_grad(apply)(state.params, batch, keys_of(rng))
        return state.apply_gradients(grads=gradients), loss

    compiled = jax.jit(train_step, donate_argnums=(0,))
    held = {"state": state, "loss": None}

    def step(number: int) -> None:
        held["state"], held["loss"] = compiled(held["state"], jax.random.PRNGKey(number), data[number % len(data)])

    serve(step, lambda: jax.block_until_ready(held["state"].params), {"jax": jax.__version__, "flax": flax.__version__})


if __name__ == "__main__":
    main()
