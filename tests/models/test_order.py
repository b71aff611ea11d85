"""The depths of parameters: by hand, and of all networks against the order in which their blocks run."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.models import MODELS, create_model, list_models
from attn_flax.models.cost import default_image_size, is_classifier
from attn_flax.models.order import first_stages, layer_decay_factors, parameter_depths

WITHOUT_BLOCKS = {"attention_net"}
OTHER_LISTS = {"norms", "patch_embeds", "pos_block", "stem"}
"""Lists that hold no blocks."""
QUICK = {"ecaresnet26t", "swin_tiny_patch4_window7_224", "twins_pcpvt_small", "volo_d1_224"}


def one_of_each_class():
    """The one with the fewest blocks."""
    names = {}
    for name in sorted(filter(is_classifier, list_models()), key=lambda name: (count_blocks(name), name)):
        names.setdefault(MODELS[name][0], name)
    return sorted(names.values())


def count_blocks(name):
    arguments = MODELS[name][1]
    return sum(arguments.get("depths", (arguments.get("depth", 0),)))


def abstract(name, **arguments):
    return nnx.eval_shape(lambda: create_model(name, **arguments, rngs=nnx.Rngs(0)))


def called_in_order(model, image_size, paths, monkeypatch):
    """The paths of these Modules in the order in which they are first called."""
    graph, state = nnx.split(model)
    path_of, called = {}, []

    def noting(call):
        def noted(module, *inputs):
            path = path_of.get(id(module))
            if path in paths and path not in called:
                called.append(path)
            return call(module, *inputs)

        return noted

    def run(state, image):
        network = nnx.merge(graph, state)
        network.eval()
        modules = {".".join(map(str, path)): module for path, module in nnx.iter_modules(network)}
        path_of.update({id(modules[path]): path for path in paths})
        for kind in {type(modules[path]) for path in paths}:
            monkeypatch.setattr(kind, "__call__", noting(kind.__call__))
        return network(image)

    jax.eval_shape(run, state, jnp.zeros((1, *image_size, 3)))
    return called


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in one_of_each_class()]
)
def test_depths_grow_from_the_input_to_the_output(name, monkeypatch):
    model, size = abstract(name), default_image_size(name)
    blocks = [block for stage in model.block_paths() for block in stage]
    assert bool(blocks) == (name not in WITHOUT_BLOCKS)
    lists = {attribute for attribute, part in vars(model).items() if isinstance(part, nnx.List)}
    assert {other for other in lists if not re.fullmatch(model.block_lists, other)} <= OTHER_LISTS
    depths = parameter_depths(model, (*size, 3))
    params = jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    assert set(depths) == {jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in params}
    assert set(depths.values()) <= set(range(len(blocks) + 2))
    for i, block in enumerate(blocks):
        of_block = {depth for path, depth in depths.items() if path.startswith(f"{block}.")}
        assert of_block == {i + 1}, block
    head = {id(getattr(model, name)) for name in model.heads}
    heads = [attribute for attribute, part in vars(model).items() if id(part) in head]
    assert {depth for path, depth in depths.items() if path.split(".")[0] in heads} == {len(blocks) + 1}
    assert called_in_order(model, size, blocks, monkeypatch) == blocks


def test_what_is_between_blocks_leads_to_the_next_or_ends_its_stage():
    depths = parameter_depths(abstract("pvt_v2_b0"), (64, 32, 3))  # two blocks in each of four stages
    parts = {
        "stages.0.downsample.proj.kernel": 0,
        "stages.0.blocks.1.norm2.scale": 2,
        "stages.0.norm.scale": 2,
        "stages.1.downsample.proj.kernel": 3,
        "stages.3.blocks.1.mlp.fc1.kernel": 8,
        "stages.3.norm.scale": 9,
        "head.kernel": 9,
    }
    assert {path: depths[path] for path in parts} == parts


def test_what_is_not_used_in_evaluation_is_a_head():
    assert (
        parameter_depths(abstract("volo_d1_224", image_size=32), (32, 32, 3))["aux_head.kernel"]
        == 4 + 4 + 8 + 2 + 2 + 1
    )


def test_factors_are_powers_of_the_decay():
    model = abstract("vit_tiny_patch16_224", depth=3, image_size=32)
    factors = layer_decay_factors(model, 0.5, (32, 32, 3))
    assert jax.tree.structure(factors) == jax.tree.structure(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    of_blocks = [factors["blocks"][i]["norm1"]["scale"] for i in range(3)]
    assert [factors["pos_embed"], factors["cls_token"], *of_blocks] == [0.0625, 0.0625, 0.125, 0.25, 0.5]
    assert (factors["norm"]["scale"], factors["head"]["kernel"]) == (1, 1)


def test_first_stages_are_all_up_to_their_last_block():
    model = abstract("swin_tiny_patch4_window7_224", depths=(1, 2), image_size=64)
    stem = {"patch_embed", "patch_norm"}
    for count, stages in ((0, set()), (1, {"layers.0"}), (2, {"layers.0", "layers.1"})):
        frozen = first_stages(model, count, (64, 64, 3))
        assert {path.split(".")[0] for path in frozen} - {"layers"} == stem
        assert {".".join(path.split(".")[:2]) for path in frozen if path.startswith("layers")} == stages


def test_refusals():
    with pytest.raises(InputError, match="the network has 4 stages: expected at most as many, got 5"):
        first_stages(abstract("resnet18"), 5, (32, 32, 3))
    with pytest.raises(InputError, match="the network has 0 stages"):
        first_stages(abstract("attention_net"), 0, (8, 8, 3))
    with pytest.raises(InputError, match="got AttentionNet without any"):
        layer_decay_factors(abstract("attention_net"), 0.5, (8, 8, 3))
