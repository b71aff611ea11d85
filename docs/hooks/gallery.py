"""Builds the gallery of mechanisms from the catalogue: a page for each family, a picture for each mechanism."""

import io
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from PIL import Image
from sklearn.datasets import load_sample_image

from attn_flax import explain
from attn_flax.catalog import CATALOG, Description, create_attention, describe_attention
from attn_flax.explain.layouts import read_map

SHAPE = (24, 32, 64)
FRAMES = 4
REQUIRED = {
    "aa_conv": {"size": SHAPE[:2]},
    "aft": {"size": SHAPE[:2]},
    "aft_local": {"size": SHAPE[:2]},
    "attention_gate": {"gating_channels": SHAPE[-1]},
    "block_attention": {"window": 8},
    "bottleneck": {"size": SHAPE[:2]},
    "coatnet_rel": {"size": SHAPE[:2]},
    "global_filter": {"size": SHAPE[:2]},
    "grid_attention": {"window": 8},
    "sgu": {"tokens": SHAPE[0] * SHAPE[1]},
    "tam": {"num_frames": FRAMES},
}
"""What some mechanisms must be told."""
TAKE_TOKENS = {"class_attention", "sgu"}
TITLES = {
    "article": "The article",
    "channel": "Channel attention",
    "spatial": "Spatial attention",
    "channel_spatial": "Channel and spatial attention",
    "branch": "Branch attention",
    "self_attention": "Self-attention",
    "temporal": "Temporal attention",
    "spatial_temporal": "Spatio-temporal attention",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages and pictures."""
    for name, content in _contents():
        files.append(File.generated(config, f"gallery/{name}", content=content))
    return files


def _contents() -> Iterator[tuple[str, str | bytes]]:
    by_family = {family: [] for family in TITLES}
    for name, row in sorted(CATALOG.items()):
        by_family[row.family].append(name)
    for family, names in by_family.items():
        sections = []
        for name in names:
            if picture := _picture(name):
                yield f"{name}.png", picture
            sections.append(_section(_described(name), has_picture=bool(picture)))
        yield f"{family}.md", f"# {TITLES[family]}\n\n{_INTRODUCTION}\n\n" + "\n\n".join(sections) + "\n"


_INTRODUCTION = (
    f"Costs are for one map of {SHAPE[0]}×{SHAPE[1]} with {SHAPE[2]} channels and the defaults: what is learned, and "
    "the multiply-adds of products and convolutions. The pictures show the map of a mechanism with random weights, on "
    "the pixels of a photograph, eight by eight of them the channels of a position."
)


def _described(name):
    row = CATALOG[name]
    with_cost = row.kind == "map"
    return describe_attention(name, SHAPE, **REQUIRED.get(name, {})) if with_cost else describe_attention(name)


def _section(described: Description, *, has_picture: bool) -> str:
    document, row = described.document, CATALOG[described.name]
    fixed = ", ".join(f"{name}={value!r}" for name, value in row.arguments.items())
    title = f"## {described.name}\n\n**{document.title}** · `nn.{row.module.__name__}`" + (
        f" with `{fixed}`" if fixed else ""
    )
    parts = [title, f"```text\n{document.equation}\n```", document.description]
    if described.cost:
        parts.append(f"{described.cost.parameters:,} parameters, {described.cost.multiply_adds:,} multiply-adds.")
    else:
        parts.append(
            f"Takes: {described.kind}." + (f" Needs: {', '.join(sorted(row.required))}." if row.required else "")
        )
    if has_picture:
        parts.append(f"![What {described.name} attends to]({described.name}.png)")
    if document.deviations:
        parts.append(f"*Differs from the paper*: {document.deviations}")
    if document.errors:
        parts.append(f"*Errors elsewhere*: {document.errors}")
    parts.append(f"*Source*: {document.source}")
    return "\n\n".join(parts)


def _picture(name: str) -> bytes | None:
    """The map over the photograph; None where it has no picture."""
    photograph, features = _photograph()
    module = create_attention(name, SHAPE[-1], **REQUIRED.get(name, {}), rngs=nnx.Rngs(0))
    module.eval()
    weights = jax.jit(lambda *inputs: module.attention_map(*inputs))(*_inputs(name, module, features[None]))
    maps = {
        name if not path else f"{name} {jax.tree_util.keystr(path, simple=True, separator=' ')}": leaf
        for path, leaf in jax.tree.leaves_with_path(weights)
        if read_map(np.asarray(leaf, np.float32), 1, *photograph.shape[:2])
    }
    if not maps:
        return None
    buffer = io.BytesIO()
    explain.draw_attention_maps(photograph[None], maps, buffer)
    return buffer.getvalue()


def _inputs(name, module, features):
    """What the mechanism takes: the photograph, or a film in which it moves."""
    kind = CATALOG[name].kind
    film = jnp.stack([jnp.roll(features, step, 2) for step in range(FRAMES)], 1)
    if name == "gltr":
        return (film.mean((2, 3)),)
    if name in TAKE_TOKENS:
        return (features.reshape(1, -1, SHAPE[-1]),)
    if kind == "map + signal":
        return features, features[:, ::2, ::2]
    if kind == "map + state":
        return features, module.zero_state(features)
    return (film if kind == "video" else features,)


def _photograph():
    """The photograph, and its pixels as features: eight by eight of its grey values at each position."""
    h, w, c = SHAPE
    side = round(c**0.5)
    image = Image.fromarray(load_sample_image("china.jpg")).resize((w * side, h * side))
    grey = np.asarray(image.convert("L"), np.float32) / 255
    blocks = grey.reshape(h, side, w, side).transpose(0, 2, 1, 3).reshape(SHAPE)
    return np.asarray(image), jnp.asarray(blocks / blocks.std())
