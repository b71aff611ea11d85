"""Bad input: what was wrong, what was expected, what was given."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from attn_flax import catalog, data, models, nn, ops, training
from attn_flax.checks import InputError
from attn_flax.tasks import Classification

RNGS = nnx.Rngs(0)
ones = jnp.ones


class Plain(nnx.Module):
    def __init__(self): ...


def task(**arguments):
    return Classification(Plain(), training.Learning(optax.sgd(0.1)), 5, **arguments)


REFUSALS = {
    "article channels": (lambda: nn.Article(0, rngs=RNGS), "channels must be at least 1, got 0"),
    "article normalizer": (
        lambda: nn.Article(4, normalizer="max", rngs=RNGS),
        "normalizer must be 'softmax' or 'sum', got 'max'",
    ),
    "article epsilon": (lambda: nn.Article(4, epsilon=0, rngs=RNGS), "epsilon must be positive, got 0"),
    "article positions": (
        lambda: nn.Article(4, num_spatial_dims=0, rngs=RNGS),
        "num_spatial_dims must be at least 1, got 0",
    ),
    "article input channels": (
        lambda: nn.Article(4, rngs=RNGS)(ones((7, 5, 3))),
        r"4 channels on its last axis, got shape \(7, 5, 3\)",
    ),
    "article input axes": (
        lambda: nn.Article(4, rngs=RNGS)(ones((5, 4))),
        r"2 axes of positions and one of channels, got shape \(5, 4\)",
    ),
    "article map channels": (
        lambda: nn.Article(4, rngs=RNGS).attention_map(ones((7, 5, 3))),
        r"4 channels on its last axis, got shape \(7, 5, 3\)",
    ),
    "article map size": (
        lambda: jax.eval_shape(
            nn.Article(4, normalizer="sum", rngs=RNGS).attention_map, jax.ShapeDtypeStruct((224, 224, 4), jnp.float32)
        ),
        r"would need 9\.4 GiB per example in float32, the limit is 1 GiB",
    ),
    "gate channels": (lambda: nn.ArticleGate(0, rngs=RNGS), "channels must be at least 1, got 0"),
    "gate reduction": (
        lambda: nn.ArticleGate(12, rngs=RNGS),
        "reduction must be at least 1 and divide channels, got reduction=8, channels=12",
    ),
    "gate reduction of zero": (lambda: nn.ArticleGate(8, reduction=0, rngs=RNGS), "got reduction=0, channels=8"),
    "gate input": (lambda: nn.ArticleGate(8, rngs=RNGS)(ones((5, 7))), r"8 channels .* got shape \(5, 7\)"),
    "gate map input": (lambda: nn.ArticleGate(8, rngs=RNGS).attention_map(ones(7)), r"8 channels .* got shape \(7,\)"),
    "scores": (
        lambda: ops.dot_product_scores(ones((5, 3)), ones((5, 1))),
        r"axis -1 of q and axis -1 of k must be of one size, got shapes \(5, 3\) and \(5, 1\)",
    ),
    "attend": (
        lambda: ops.attend(ones((5, 3)), ones((1, 4))),
        r"axis -1 of weights and axis -2 of v must be of one size, got shapes \(5, 3\) and \(1, 4\)",
    ),
    "sum attention, queries": (
        lambda: ops.sum_attention(ones((5, 3)), ones((6, 1)), ones((6, 2))),
        r"axis -1 of q and axis -1 of k must be of one size, got shapes \(5, 3\) and \(6, 1\)",
    ),
    "sum attention, values": (
        lambda: ops.sum_attention(ones((5, 3)), ones((6, 3)), ones((1, 2))),
        r"axis -2 of k and axis -2 of v must be of one size, got shapes \(6, 3\) and \(1, 2\)",
    ),
    "pool size": (
        lambda: ops.adaptive_average_pool(ones((7, 5, 3)), (0, 2)),
        r"size must be at least \(1, 1\), got \(0, 2\)",
    ),
    "pool of nothing": (
        lambda: ops.adaptive_average_pool(ones((0, 5, 3)), (2, 2)),
        r"a map of at least 1×1, got shape \(0, 5, 3\)",
    ),
    "attention name": (
        lambda: catalog.create_attention("artcle", 8, rngs=RNGS),
        "unknown attention 'artcle': did you mean 'article'",
    ),
    "attention argument": (
        lambda: catalog.create_attention("article_gate", 8, reducton=4, rngs=RNGS),
        "unknown article_gate argument 'reducton': did you mean 'reduction'",
    ),
    "model name": (
        lambda: models.create_model("attentionnet", rngs=RNGS),
        "unknown model 'attentionnet': did you mean 'attention_net'",
    ),
    "model argument": (
        lambda: models.create_model("attention_net", in_chanels=1, rngs=RNGS),
        "unknown attention_net argument 'in_chanels': did you mean 'in_channels'",
    ),
    "model classes": (
        lambda: models.create_model("attention_net", num_classes=0, rngs=RNGS),
        "num_classes must be at least 1, got 0",
    ),
    "model channels": (
        lambda: models.create_model("attention_net", in_channels=0, rngs=RNGS),
        "in_channels must be at least 1, got 0",
    ),
    "model attention": (
        lambda: models.create_model("attention_net", attention="artcle", rngs=RNGS),
        "unknown attention 'artcle': did you mean 'article'",
    ),
    "model activation": (
        lambda: models.create_model("attention_net", activation="relo", rngs=RNGS),
        "unknown activation 'relo': did you mean 'relu'",
    ),
    "model input channels": (
        lambda: models.create_model("attention_net", rngs=RNGS)(ones((2, 9, 7, 1))),
        r"images \(\*b, h, w, 3\), got shape \(2, 9, 7, 1\)",
    ),
    "model input axes": (
        lambda: models.create_model("attention_net", rngs=RNGS)(ones((9, 3))),
        r"images \(\*b, h, w, 3\), got shape \(9, 3\)",
    ),
    "parallelism": (
        lambda: training.parallelize(task(), "fork"),
        "parallel must be 'jit', 'pmap' or 'fsdp', got 'fork'",
    ),
    "schedule": (
        lambda: training.create_schedule("linear", 0.1, steps=5),
        "schedule must be 'constant' or 'cosine', got 'linear'",
    ),
    "label smoothing": (lambda: task(label_smoothing=1.0), r"label_smoothing must be in \[0, 1\), got 1.0"),
    "mixup": (lambda: task(mixup_alpha=-1.0), "mixup_alpha must not be negative, got -1.0"),
    "cutmix": (lambda: task(cutmix_alpha=-1.0), "cutmix_alpha must not be negative, got -1.0"),
    "shift": (lambda: data.Augmentation(shift=-1), "shift must be at least 0, got -1"),
    "mirrored shift": (lambda: data.Augmentation(pad_crop=-2), "pad_crop must be at least 0, got -2"),
    "operations": (lambda: data.Augmentation(randaugment=-3), "randaugment must be at least 0, got -3"),
    "magnitude": (lambda: data.Augmentation(magnitude=11), r"magnitude must be in \[0, 10\], got 11"),
    "erase": (lambda: data.Augmentation(erase=1.5), r"erase must be a probability in \[0, 1\], got 1.5"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_it_is_refused(case):
    attempt, message = REFUSALS[case]
    with pytest.raises(InputError, match=message):
        attempt()


def test_what_a_name_fixes_cannot_be_given(monkeypatch):
    row = catalog.Row(nn.ArticleGate, {"reduction": 2})
    monkeypatch.setattr(catalog, "CATALOG", {"narrow_gate": row})
    assert catalog.create_attention("narrow_gate", 8, rngs=RNGS).reduce.out_features == 4
    with pytest.raises(InputError, match="reduction of attention 'narrow_gate' is fixed to 2"):
        catalog.create_attention("narrow_gate", 8, reduction=4, rngs=RNGS)
