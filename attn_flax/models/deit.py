"""DeiT: vision transformers for ImageNet alone, those that also learn from a teacher, and DeiT III.

    distilled         z = [u, t, E x_1 … E x_n] + p         a distillation token t beside the class token u
                      then the blocks and the norm of the vision transformer
                      logits = (W_u u + b_u + W_t t + b_t) / 2
    its training      ½ CE(W_u u + b_u, label) + ½ CE(W_t t + b_t, argmax teacher(x))
    DeiT III          z = [u, E x_1 … E x_n + p]            no position of the class token
                      z = z + γ_1 ⊙ attention(norm(z))      in every block,
                      z = z + γ_2 ⊙ (W_2 gelu(W_1 norm(z) + b_1) + b_2)      and this

DeiT's first networks are plain vision transformers; new was how they are trained. t asks the patches for what a teacher
says of the image, u for its label. The loss is `tasks.Distillation`. The names of the layers are timm's.

Differs from the papers: nothing in the networks. γ are 1e-4 at first, as in the authors' code, where timm has 1e-6. As
in timm, stochastic depth rises from block to block in DeiT III too, where the authors' is the same in all.

Source: Touvron, Cord, Douze, Massa, Sablayrolles and Jégou, "Training data-efficient image transformers & distillation
through attention" (2021), arXiv:2012.12877; III: Touvron, Cord and Jégou, "DeiT III: Revenge of the ViT" (2022),
arXiv:2204.07118. Confirmed with timm's code; γ and stochastic depth read in the authors' code, facebookresearch/deit.
"""

from types import MappingProxyType

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from attn_flax.models.vit import BASE, HUGE, LARGE, SMALL, TINY, VisionTransformer


class DistilledVisionTransformer(VisionTransformer):
    """A vision transformer with a second token before the patches and a second head, which learn from a teacher.

    Args:
        those of VisionTransformer; `global_pool` can only be "token".
    """

    heads = ("head", "head_dist")
    num_prefix_tokens = 2
    pools = ("token",)

    def logits_of_heads(
        self, x: Float[Array, "*b h w c"]
    ) -> tuple[Float[Array, "*b classes"], Float[Array, "*b classes"]]:
        """The logits of the class token, to be trained with labels, and of the distillation token, with a teacher's."""
        z = self.forward_features(x)
        return self.head(z[..., 0, :]), self.head_dist(z[..., 1, :])

    def pool(self, z: Float[Array, "*b n d"]) -> Float[Array, "*b d"]:
        """The mean of both tokens."""
        return (z[..., 0, :] + z[..., 1, :]) / 2

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b classes"]:
        """The mean of both heads' logits."""
        of_class, of_distillation = self.logits_of_heads(x)
        return (of_class + of_distillation) / 2

    def _add_own(self, embed_dim, num_classes, *, rngs, **types):
        small = nnx.initializers.truncated_normal(0.02)
        self.dist_token = nnx.Param(small(rngs.params(), (embed_dim,), types["param_dtype"]))
        self.head_dist = nnx.Linear(embed_dim, num_classes, **types, rngs=rngs)

    def _prefix(self):
        return jnp.stack([self.cls_token[...], self.dist_token[...]])


MEDIUM = {"embed_dim": 512, "depth": 12, "num_heads": 8}
III = {"class_position": False, "layer_scale": 1e-4}

MODELS = MappingProxyType(
    {
        "deit_tiny_patch16_224": (VisionTransformer, TINY),
        "deit_small_patch16_224": (VisionTransformer, SMALL),
        "deit_base_patch16_224": (VisionTransformer, BASE),
        "deit_base_patch16_384": (VisionTransformer, BASE | {"image_size": 384}),
        "deit_tiny_distilled_patch16_224": (DistilledVisionTransformer, TINY),
        "deit_small_distilled_patch16_224": (DistilledVisionTransformer, SMALL),
        "deit_base_distilled_patch16_224": (DistilledVisionTransformer, BASE),
        "deit_base_distilled_patch16_384": (DistilledVisionTransformer, BASE | {"image_size": 384}),
        "deit3_small_patch16_224": (VisionTransformer, SMALL | III),
        "deit3_small_patch16_384": (VisionTransformer, SMALL | III | {"image_size": 384}),
        "deit3_medium_patch16_224": (VisionTransformer, MEDIUM | III),
        "deit3_base_patch16_224": (VisionTransformer, BASE | III),
        "deit3_base_patch16_384": (VisionTransformer, BASE | III | {"image_size": 384}),
        "deit3_large_patch16_224": (VisionTransformer, LARGE | III),
        "deit3_large_patch16_384": (VisionTransformer, LARGE | III | {"image_size": 384}),
        "deit3_huge_patch14_224": (VisionTransformer, HUGE | III | {"patch_size": 14}),
    }
)
