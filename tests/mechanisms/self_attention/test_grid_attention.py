"""Block and grid attention against their derivation, and timm's."""

import itertools
from functools import partial

import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.self_attention.grid_attention import PartitionAttention
from tests import timm_oracle
from tests.mechanisms import against_oracle
from tests.mechanisms.self_attention import test_coatnet_rel as group_oracle
from tests.mechanisms.self_attention.test_mhsa import asked

SHAPE, M = (6, 9, 6), 3
create = partial(PartitionAttention, 6, window=M, head_dim=3)


def window_groups(h, w):
    """Of each group where its M×M positions lie in the map."""
    return [
        np.array([[(M * i + a, M * j + b) for b in range(M)] for a in range(M)])
        for i, j in itertools.product(range(h // M), range(w // M))
    ]


def grid_groups(h, w):
    return [
        np.array([[(i + a * h // M, j + b * w // M) for b in range(M)] for a in range(M)])
        for i, j in itertools.product(range(h // M), range(w // M))
    ]


GROUPS = {"window": window_groups, "grid": grid_groups}


def of_group(x, places):
    return x[places[..., 0], places[..., 1]]


def weights(x, p, *, groups):
    return np.array([group_oracle.weights(of_group(x, places), p) for places in groups(*x.shape[:2])])


def oracle(x, p, *, groups=grid_groups, put=None, attend=group_oracle.oracle):
    out = np.zeros(x.shape)
    for places, goal in zip(groups(*x.shape[:2]), (put or groups)(*x.shape[:2]), strict=True):
        out[goal[..., 0], goal[..., 1]] = attend(of_group(x, places), p)
    return out


@pytest.mark.parametrize("partition", GROUPS)
def test_it_is_the_paper(partition):
    module, groups = partial(create, partition=partition), GROUPS[partition]
    against_oracle.assert_equal(module, partial(oracle, groups=groups), SHAPE)
    of_weights = partial(weights, groups=groups)
    against_oracle.assert_equal(module, of_weights, SHAPE, method="attention_map", gradient=False)


def transposed(h, w):
    return [places.swapaxes(0, 1) for places in grid_groups(h, w)]


def attending(**kinds):
    return partial(oracle, attend=partial(group_oracle.oracle, **kinds))


MUTANTS = {
    "windows": partial(oracle, groups=window_groups),
    "put back as windows": partial(oracle, put=window_groups),
    "columns before rows": partial(oracle, groups=transposed),
    "no table": attending(bias=lambda table, h, w: 0),
    "the authors' offsets from query to key": attending(bias=lambda *of: group_oracle.position_bias(*of).T),
    "no scale": attending(scale=1.0),
    "queries, then keys, then values": attending(split=asked),
    "no output layer": partial(oracle, attend=group_oracle.joined),
    "a residual": lambda x, p: x + oracle(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create, MUTANTS[mutant], SHAPE)


def test_windows_are_not_a_grid():
    against_oracle.assert_different(partial(create, partition="window"), oracle, SHAPE)


def test_it_has_as_many_parameters_as_timms():
    module = nnx.eval_shape(lambda: PartitionAttention(64, window=7, rngs=nnx.Rngs(0)))
    assert module.cost((14, 7, 64)).parameters == 4 * 64**2 + 4 * 64 + 13**2 * 2


def timms(x, p, *, partition):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    maxxvit = timm_oracle.load("models.maxxvit")
    cfg = maxxvit.MaxxVitTransformerCfg(dim_head=3, window_size=(M, M), grid_size=(M, M))
    theirs = maxxvit.PartitionAttentionCl(6, "block" if partition == "window" else partition, cfg)
    group_oracle.load(theirs.attn, p)
    return theirs._partition_attn(torch.tensor(x)[None])[0].detach().numpy()


@pytest.mark.full
@pytest.mark.parametrize("partition", GROUPS)
def test_it_is_timms(partition):
    against_oracle.assert_equal(partial(create, partition=partition), partial(timms, partition=partition), SHAPE)
