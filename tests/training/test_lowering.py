"""The training step is lowered for the accelerators that this machine does not have."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from attn_flax.models import create_model
from attn_flax.tasks import Classification
from attn_flax.training import Learning


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("attention", ["article_gate", "article"])
def test_a_bfloat16_step_is_lowered(platform, attention):
    model = create_model("attention_net", num_classes=10, attention=attention, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    task = Classification(model, Learning(optax.adamw(1e-3), accumulate=2, ema_decay=0.9), 10, mixup_alpha=0.2)
    batch = {
        "image": jax.ShapeDtypeStruct((4, 9, 7, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((4,), jnp.int32),
    }

    def step(batch):
        state, metrics = task.update(task.init(jax.random.key(0)), batch)
        return state.params, metrics

    exported = jax.export.export(jax.jit(step), platforms=[platform])(batch)
    assert exported.platforms == (platform,)
    module = exported.mlir_module()
    assert "stablehlo.convolution" in module
    assert "bf16" in module
