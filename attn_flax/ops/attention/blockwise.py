"""Softmax attention in blocks of queries and keys: no n×m array, neither forward nor backward.

Forward, for each block of queries, over the blocks of keys (the online softmax):

    top' = max(top, max_j s_j)    total' = total·c + Σ_j exp(s_j-top')    o' = o·c + Σ_j exp(s_j-top') v_j,
    c = exp(top-top')

Backward, for each block of keys, over the blocks of queries, from L = top + log total, which was kept:

    p = exp(s - L)    dv = pᵀ do    dp = do vᵀ    ds = p∘(dp - rowsum(o∘do))    dk = dsᵀ q    dq = ds k,

where rowsum(o∘do) = rowsum(p∘dp), which is taken in types narrower than float32 if all keys are in one block, since o
is a sum of rounded weights there.

All blocks of scores are transposed, (m, n): sums over keys then run over rows and use the full width of a processor,
and each product but two small ones finds its operands as it wants them. A step takes as many heads as the caches hold,
out of the arrays as they were given, and writes its result where it belongs, so nothing is copied beforehand.

Sources: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018), arXiv:1805.02867; Rabe and Staats,
"Self-attention does not need O(n²) memory" (2021), arXiv:2112.05682; Dao et al., "FlashAttention: Fast and
Memory-Efficient Exact Attention with IO-Awareness" (2022), arXiv:2205.14135.
"""

import functools

import jax
import jax.numpy as jnp

from attn_flax.ops.attention.cuts import Blocks, Cuts, add_at, loop
from attn_flax.ops.attention.operands import Operands, Rule, materialized, survivors, transposed_scores
from attn_flax.ops.precision import at_least_float32

CPU_ELEMENTS = 2**19
"""Scores of a block, and of all heads of a step: two mebibytes, which stay in the caches."""
OTHER_ELEMENTS = 2**24
"""The same where there are no such caches."""
LEAST = 128
"""The queries or keys of a block where there are many."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def attend(x: Operands, dropout_key: jax.Array | None, rule: Rule) -> jax.Array:
    """softmax(s) v, (*b, n, g, r, e), in O(n + m) memory.

    Args:
        x: q (*b, n, g, r, d), k (*b, m, g, d), v (*b, m, g, e); bias and mask as `Operands` have them.
        dropout_key: for dropout.
        rule: what becomes of the scores.
    """
    return _attend(x, dropout_key, rule)[0].astype(x.v.dtype)


def attend_and_keep(x: Operands, dropout_key: jax.Array | None, rule: Rule) -> tuple[jax.Array, tuple]:
    """The output, and what `pull_back` needs."""
    o, logsumexp = _attend(x, dropout_key, rule)
    return o.astype(x.v.dtype), (x, dropout_key, o, logsumexp)


def _attend(x, dropout_key, rule):
    *batch, n, groups, r, _ = x.q.shape
    plan = _Plan(x, rule, dropout_key)

    def step(t, so_far):
        o, logsumexp = so_far
        o_t, logsumexp_t = _attend_part(plan.part(x, t), plan, t)
        return plan.put(o, o_t, t), plan.cuts.put(logsumexp, logsumexp_t, t, len(batch))

    o = jnp.zeros((*x.q.shape[:-1], x.v.shape[-1]), plan.wide)
    logsumexp = jnp.zeros((*batch, groups, 1, r, n), plan.wide)
    return loop(0, plan.cuts.steps, step, (o, logsumexp))


def _attend_part(x, plan, t):
    """o (…, g, r, n, e) and L (…, g, 1, r, n) of a step's heads."""
    rows = plan.rows

    def block_of_queries(i, so_far):
        o, logsumexp = so_far

        def block_of_keys(j, so_far):
            o, top, total = so_far
            block = plan.block(x, i, j)
            s = plan.scores(block, i, j)
            higher = jnp.maximum(top, s.max(-3, keepdims=True))
            finite = jnp.where(higher == -jnp.inf, 0, higher)
            p, shrink = jnp.exp(s - finite), jnp.exp(top - finite)
            total = total * shrink + p.sum(-3, keepdims=True)
            p = plan.dropped(p, t, i, j).astype(block.v.dtype)
            return o * shrink + _columns_times(block.v, p), higher, total

        shape = (*x.q.shape[:-3], 1, x.q.shape[-3], rows.size)
        start = jnp.zeros((*shape[:-3], x.v.shape[-1], *shape[-2:]), plan.wide)
        start = start, jnp.full(shape, -jnp.inf, plan.wide), jnp.zeros(shape, plan.wide)
        o_i, top, total = loop(0, plan.last_columns(i), block_of_keys, start)
        o_i = jnp.moveaxis(o_i / jnp.where(total == 0, 1, total), -3, -1)
        logsumexp_i = jnp.where(total == 0, jnp.inf, top + jnp.log(total))
        return _put_block(o, o_i, rows.start(i), -2), _put_block(logsumexp, logsumexp_i, rows.start(i), -1)

    o = jnp.zeros((*x.q.shape[:-1], x.v.shape[-1]), plan.wide)
    logsumexp = jnp.zeros((*x.q.shape[:-3], 1, *x.q.shape[-3:-1]), plan.wide)
    return loop(0, rows.count, block_of_queries, (o, logsumexp))


def pull_back(rule: Rule, kept: tuple, do: jax.Array) -> tuple[Operands, None]:
    """The gradients, of the operands' shapes, to a cotangent of the output."""
    x, dropout_key, o, logsumexp = kept
    do = materialized(do)
    plan = _Plan(x, rule, dropout_key, share=2)
    batch = x.q.ndim - 4

    def step(t, so_far):
        dq, dk, dv, dbias = so_far
        do_t, o_t = (plan.heads_first(plan.cuts.take(a, t, batch + 1)) for a in (do, o))
        logsumexp_t = plan.cuts.take(logsumexp, t, batch)
        dbias_t = None if dbias is None else plan.cuts.take(dbias, t, batch)
        *parts, dbias_t = _pull_back_part(plan.part(x, t), do_t, o_t, logsumexp_t, dbias_t, plan, t)
        if dbias is not None:
            dbias = plan.cuts.put(dbias, dbias_t, t, batch)
        return *(plan.put(a, part, t) for a, part in zip((dq, dk, dv), parts, strict=True)), dbias

    dbias = None if x.bias is None else jnp.zeros(x.bias.shape, plan.wide)
    start = *(jnp.zeros(a.shape, a.dtype) for a in (x.q, x.k, x.v)), dbias
    dq, dk, dv, dbias = loop(0, plan.cuts.steps, step, start)
    return Operands(dq, dk, dv, None if dbias is None else dbias.astype(x.bias.dtype), None), None


def _pull_back_part(x, do, o, logsumexp, dbias, plan, t):
    """dq, dk and dv of a step's heads, tokens before features, and the bias's with theirs added."""
    rows, columns = plan.rows, plan.columns
    inner = None if plan.sums_exactly else jnp.moveaxis((o * do.astype(plan.wide)).sum(-1, keepdims=True), -1, -3)

    def block_of_keys(j, so_far):
        def block_of_queries(i, so_far):
            dq, dk_j, dv_j, dbias = so_far
            block = plan.block(x, i, j)
            do_i = rows.take(do, i, -2)
            p = jnp.exp(plan.scores(block, i, j, fresh_rows=True) - rows.take(logsumexp, i, -1))
            dp = plan.dropped(_product("...gme,...grne->...gmrn", block.v, do_i), t, i, j)
            inner_i = (p * dp).sum(-3, keepdims=True) if inner is None else rows.take(inner, i, -1)
            ds = p * (dp - inner_i)
            if dbias is not None:
                dbias = _add_to_bias(dbias, ds, rows.start(i), columns.start(j))
            dropped, ds = plan.dropped(p, t, i, j).astype(do.dtype), ds.astype(x.q.dtype)
            dv_j += _product("...gmrn,...grne->...gme", dropped, do_i)
            dk_j += _product("...gmrn,...grnd->...gmd", ds, block.q)
            dq_i = _columns_times(block.k, ds)
            return add_at(dq, dq_i, {-1: rows.start(i)}), dk_j, dv_j, dbias

        dq, dk, dv, dbias = so_far
        zeros = (jnp.zeros((*a.shape[:-2], columns.size, a.shape[-1]), plan.wide) for a in (x.k, x.v))
        dq, dk_j, dv_j, dbias = loop(plan.first_rows(j), rows.count, block_of_queries, (dq, *zeros, dbias))
        return dq, *(add_at(a, a_j, {-2: columns.start(j)}) for a, a_j in ((dk, dk_j), (dv, dv_j))), dbias

    dq = jnp.zeros((*x.q.shape[:-3], x.q.shape[-1], *x.q.shape[-3:-1]), plan.wide)
    start = dq, *(jnp.zeros(a.shape, plan.wide) for a in (x.k, x.v)), dbias
    dq, dk, dv, dbias = loop(0, columns.count, block_of_keys, start)
    return plan.rule.scale * jnp.moveaxis(dq, -3, -1), plan.rule.scale * dk, dv, dbias


attend.defvjp(attend_and_keep, pull_back)


class _Plan:
    """How the scores are cut: the heads of a step, and within it the blocks of queries and keys.

    Of heads that are smaller than a block, a step takes only one share of what would fit.
    """

    def __init__(self, x, rule, dropout_key, *, share=1):
        *batch, n, groups, r, _ = x.q.shape
        m = x.k.shape[-3]
        self.rule, self._key, self._batch, self._n = rule, dropout_key, len(batch), n
        self.wide = at_least_float32(x.q.dtype)
        elements = (CPU_ELEMENTS if jax.default_backend() == "cpu" else OTHER_ELEMENTS) // r
        self.rows = Blocks.even(n, max(elements // m, LEAST))
        self.columns = Blocks.even(m, max(elements // self.rows.size, LEAST))
        self.sums_exactly = x.q.dtype != self.wide and self.columns.count == 1
        self.cuts = Cuts((*batch, groups), elements // share // (self.rows.size * self.columns.size))

    def part(self, x, t):
        """A step's operands, heads before tokens."""
        arrays = (self.heads_first(self.cuts.take(a, t, self._batch + 1)) for a in x[:3])
        return Operands(*arrays, *(None if a is None else self.cuts.take(a, t, self._batch) for a in x[3:]))

    def put(self, x, part, t):
        """A step's part, heads before tokens, in its place."""
        return self.cuts.put(x, jnp.moveaxis(part, -2, self._batch).astype(x.dtype), t, self._batch + 1)

    def heads_first(self, a):
        """(*b, n, g, …, d) -> (*b, g, …, n, d)."""
        return jnp.moveaxis(a, self._batch, -2)

    def block(self, x, i, j):
        """The operands of block (i, j)."""
        q, k, v = self.rows.take(x.q, i, -2), self.columns.take(x.k, j, -2), self.columns.take(x.v, j, -2)
        tables = (None if a is None else self.columns.take(self.rows.take(a, i, -2), j, -1) for a in x[3:])
        return Operands(q, k, v, *tables)

    def last_columns(self, i):
        """The block of keys after the last that block i of the queries sees."""
        if not self.rule.is_causal:
            return self.columns.count
        end = jnp.minimum(self.rows.start(i) + self.rows.size, self.columns.length)
        return (end + self.columns.size - 1) // self.columns.size

    def first_rows(self, j):
        """The first block of queries that sees block j of the keys."""
        return self.columns.start(j) // self.rows.size if self.rule.is_causal else 0

    def scores(self, block, i, j, *, fresh_rows=False):
        """Those of block (i, j), transposed, -∞ where another block has them too."""
        rows, columns = self.rows.places(i), self.columns.places(j)[:, None, None]
        seen = [columns <= rows] if self.rule.is_causal else []
        if (fresh := self.columns.fresh(j)) is not None:
            seen.append(fresh[:, None, None])
        if fresh_rows and (fresh := self.rows.fresh(i)) is not None:
            seen.append(fresh)
        return transposed_scores(block, self.rule.scale, functools.reduce(jnp.logical_and, seen) if seen else None)

    def dropped(self, p, t, i, j):
        """p with some of it dropped, and the rest made up for it."""
        if not self.rule.dropout_rate:
            return p
        r = p.shape[-2]
        heads = self.cuts.numbers(t)[..., None, None, None] * r + jnp.arange(r, dtype=jnp.uint32)[:, None]
        rows = heads * self._n + self.rows.places(i).astype(jnp.uint32)
        columns = self.columns.places(j)[:, None, None]
        return p * survivors(self._key, self.rule.dropout_rate, rows, columns)


def _product(equation, a, b):
    return jnp.einsum(equation, a, b, preferred_element_type=at_least_float32(a.dtype))


def _columns_times(a, b):
    """Σ_m a_mf b_mrn: (…, g, f, r, n)."""
    # XLA's CPU backend cannot run the product of a bfloat16 array that it transposes itself (jax 0.10 to 0.12).
    transposed = jax.lax.optimization_barrier(jnp.swapaxes(a, -1, -2))
    return _product("...gfm,...gmrn->...gfrn", transposed, b)


def _put_block(x, part, start, axis):
    return part if part.shape == x.shape else jax.lax.dynamic_update_slice_in_dim(x, part, start, axis)


def _add_to_bias(dbias, ds, row, column):
    """Adds a block (…, g, m, r, n) of the scores' gradient to the bias's, summed over the axes that it broadcasts."""
    ds = jnp.moveaxis(ds, -3, -1)
    broadcast = tuple(axis for axis, size in enumerate(dbias.shape) if size == 1)
    starts = {axis: start for axis, start in ((-2, row), (-1, column)) if dbias.shape[axis] > 1}
    return add_at(dbias, ds.sum(broadcast, keepdims=True), starts)
