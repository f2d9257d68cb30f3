"""Attentive probes of equal heads as one program, forward and backward written out.

Their single query does not depend on the image, so keys and values are never computed. With xhat = (x - mean) / std,
the same for every probe, and m running over all heads of all probes (PH of them):

    u_m = gamma_k * (Wk_m^T Q_m) / sqrt(h)         once a step, no batch axis
    A_m = softmax_t(xhat_t . u_m)                   one GEMM for all heads; beta_k shifts all t: no effect
    z_m = sum_t A'_mt xhat_t,  s_m = sum_t A'_mt    A' is A after dropout, so s is 1 without it
    v_m = (Wv_m * gamma_v) z_m + s_m Wv_m beta_v
    y   = Wo v                                      BatchNorm removes bo, and beta_v too where s = 1

This is the function of `AttentiveProbe` with the same gradients, as the tests check, and of two related heads: `CaeProbe`
has other sizes and no affine part in its BatchNorm; the keys of `AlfEmbedProbe` have embeddings of level and type, which adds

    (e_level + e_type) . (Wk_m^T Q_m) / sqrt(h)     to the score of a token, [T, PH] for all samples

Parameters without effect have gradients of exactly zero; AdamW would turn rounding noise into steps of size lr. The gradients
of Wq and Wk have rank 1 for each head. Samples are processed in chunks; BatchNorm, classifier and loss see the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..matmul import Matmul
from ..workspace import Workspace
from .classifier import fold_batch_norm
from .stack import Stack

LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Folded:
    """Tensors that depend on the weights alone, computed once a step."""

    normed: Tensor  # [P, D] the query after LayerNorm, before its affine part
    rstd: Tensor  # [P, 1] of that LayerNorm
    affine: Tensor  # [P, D] the query after the affine part
    heads: Tensor  # [P, H, h] Q / sqrt(h)
    keys: Tensor  # [P, H, D] Wk^T Q / sqrt(h)
    u: Tensor  # [PH, D] gamma_k * keys
    places: Tensor | None  # [P, T, D] e_level + e_type
    offset: Tensor | None  # [T, PH] added to the scores; minus infinity for masked tokens
    matrix: Tensor  # [PH, h, D] Wv * gamma_v
    shift: Tensor  # [PH, 1, h] Wv beta_v


class FoldedGroup:
    """The attention pooling of the probes of one stack, all with the same num_heads.

    Args:
        stack: probes of one class; gradients and running statistics are written into it.
        num_heads: H.
        dropouts: [P] rates of the attention dropout. Equal rates share one mask; with others each probe has its own.
        token_mask: [P, T] bool, or None where every probe sees every token.
        chunk_size: samples processed at once.
        matmul: matrix products.
        workspace: scratch memory, shared with other groups.
    """

    def __init__(
        self,
        stack: Stack,
        *,
        num_heads: int,
        dropouts: Sequence[float],
        token_mask: Tensor | None,
        chunk_size: int,
        matmul: Matmul,
        workspace: Workspace,
    ) -> None:
        self.stack, self.num_heads, self.has_dropout = stack, num_heads, max(dropouts) > 0
        rates = sorted(set(dropouts)) if len(set(dropouts)) == 1 else dropouts
        self._rates = torch.tensor(rates, dtype=torch.float64, device=stack.device).unsqueeze(
            1
        )  # [P, 1], or [1, 1] where all are equal
        self.num_probes, self.inner_dim, self.embed_dim = stack.values["to_v.weight"].shape
        self.head_dim = self.inner_dim // num_heads
        self._forbidden = None  # [T, PH], minus infinity for masked tokens
        if token_mask is not None:
            value = stack.values["query"]
            bias = torch.zeros(token_mask.shape, dtype=value.dtype, device=value.device)
            bias.masked_fill_(~token_mask.to(value.device), -torch.inf)
            self._forbidden = bias.t().repeat_interleave(num_heads, 1)
        self._chunk_size, self._matmul, self._workspace = chunk_size, matmul, workspace

    def keep(self, noise: dict[int, Tensor], dtype: torch.dtype) -> Tensor | None:
        """The dropout mask of a step, 0 or 1 / (1 - p), from `Bank.compute_gradients`' noise; None without dropout.

        Returns:
            [B, T, P, H], or [B, T, 1, H] where all rates are equal.
        """
        if not self.has_dropout:
            return None
        drawn = noise[self.num_heads].unsqueeze(2)
        scale = (1 / (1 - self._rates).to(torch.promote_types(dtype, torch.float32))).to(dtype)
        return (drawn >= self._rates.to(drawn.dtype)).to(dtype).mul_(scale)

    def logits(self, xhat: Tensor) -> Tensor:
        """Class scores in evaluation mode, [B, T, D] -> [P, B, C]; Wo, BatchNorm and classifier are one matrix."""
        classifier, bias = fold_batch_norm(self.stack)  # [P, C, D], [P, 1, C]
        matrix = torch.bmm(classifier, self.stack.values["proj.weight"])  # [P, C, I]
        bias = torch.baddbmm(bias, self.stack.values["proj.bias"].unsqueeze(1), classifier.mT)
        pooled, _ = self.forward_pooling(xhat, self.fold(), None)
        return torch.baddbmm(bias, pooled, matrix.mT)

    # -- the weights, without a batch axis ----------------------------------------------------------------------------

    def fold(self) -> Folded:
        """Compute what depends on the weights alone."""
        values = self.stack.values
        query = values["query"].squeeze(1)  # [P, D]
        variance, mean = torch.var_mean(query, 1, correction=0, keepdim=True)
        rstd = (variance + LAYER_NORM_EPS).rsqrt()
        normed = (query - mean) * rstd
        affine = normed * values["norm_q.weight"] + values["norm_q.bias"]
        # a row times a transposed matrix: as matrix times column, the batched product takes 3.5 times as long
        heads = torch.bmm(affine.unsqueeze(1), values["to_q.weight"].mT) * self.head_dim**-0.5
        heads = heads.view(-1, self.num_heads, self.head_dim)
        keys = torch.matmul(heads.unsqueeze(2), self._by_head(values["to_k.weight"])).squeeze(2)
        u = keys * values["norm_k.weight"].unsqueeze(1)
        places, offset = None, self._forbidden
        if "of_level" in values:
            places = (values["of_level"].unsqueeze(2) + values["of_type"].unsqueeze(1)).flatten(1, 2)
            offset = torch.bmm(places, keys.mT).transpose(0, 1).flatten(1)
        matrix = self._matmul.factors.empty("matrix", *values["to_v.weight"].shape)
        torch.mul(values["to_v.weight"], values["norm_v.weight"].unsqueeze(1), out=matrix)
        shift = torch.bmm(values["norm_v.bias"].unsqueeze(1), values["to_v.weight"].mT)
        return Folded(
            normed=normed,
            rstd=rstd,
            affine=affine,
            heads=heads,
            keys=keys,
            u=u.view(-1, self.embed_dim),
            places=places,
            offset=offset,
            matrix=matrix.view(-1, self.head_dim, self.embed_dim),
            shift=shift.view(-1, 1, self.head_dim),
        )

    def backward_query(self, folded: Folded, du: Tensor, doffset: Tensor) -> None:
        """Gradients of gamma_k, Wk, Wq, LN_q, q and e from du [P, H, D] and doffset [P, T, H]."""
        values, grads = self.stack.values, self.stack.grads
        torch.sum(folded.keys * du, 1, out=grads["norm_k.weight"])
        dkeys = du * values["norm_k.weight"].unsqueeze(1)  # [P, H, D]
        if folded.places is not None:
            dkeys.baddbmm_(doffset.mT, folded.places)
            dplaces = torch.bmm(doffset, folded.keys)
            dplaces = dplaces.view(self.num_probes, -1, *grads["of_type"].shape[1:])  # [P, L, T/L, D]
            torch.sum(dplaces, 2, out=grads["of_level"])
            torch.sum(dplaces, 1, out=grads["of_type"])
        torch.mul(folded.heads.unsqueeze(3), dkeys.unsqueeze(2), out=self._by_head(grads["to_k.weight"]))
        dheads = torch.matmul(dkeys.unsqueeze(2), self._by_head(values["to_k.weight"]).mT)
        dheads = (dheads * self.head_dim**-0.5).view(-1, 1, self.inner_dim)
        torch.mul(dheads.mT, folded.affine.unsqueeze(1), out=grads["to_q.weight"])
        daffine = torch.bmm(dheads, values["to_q.weight"]).squeeze(1)  # [P, D]
        torch.mul(daffine, folded.normed, out=grads["norm_q.weight"])
        grads["norm_q.bias"].copy_(daffine)
        dnormed = daffine * values["norm_q.weight"]
        along = (dnormed * folded.normed).mean(1, keepdim=True)
        dquery = folded.rstd * (dnormed - dnormed.mean(1, keepdim=True) - folded.normed * along)
        grads["query"].copy_(dquery.unsqueeze(1))

    def _by_head(self, matrix: Tensor) -> Tensor:
        return matrix.view(-1, self.num_heads, self.head_dim, self.embed_dim)

    # -- attention and values, nearly all of the cost ----------------------------------------------------------------

    def forward_pooling(self, xhat: Tensor, folded: Folded, keep: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The pooled values v [P, B, I], and z if one chunk holds the whole batch; A stays in the workspace."""
        num_samples, num_tokens, _ = xhat.shape
        width = self.num_probes * self.num_heads  # PH
        attention = self._empty("attention", num_samples, num_tokens, width)
        kept_sum = self._empty("kept sum", num_samples, width)
        pooled = self._empty("pooled", self.num_probes, num_samples, self.num_heads, self.head_dim)
        for rows in chunks(num_samples, self._chunk_size):
            x, a = xhat[rows], attention[rows]
            self._matmul.multiply(x.flatten(0, 1), folded.u.t(), out=a.flatten(0, 1))
            if folded.offset is not None:
                a.add_(folded.offset)
            torch.softmax(a, 1, out=a)
            kept = a if keep is None else self._kept(a, keep[rows])
            z = self._pool(kept, x)
            v = self._empty("v", width, len(x), self.head_dim)
            self._matmul.multiply(z, folded.matrix.mT, out=v)
            if keep is None:
                v.add_(folded.shift)
            else:
                torch.sum(kept, 1, out=kept_sum[rows])
                v.addcmul_(kept_sum[rows].t().unsqueeze(2), folded.shift)
            pooled[:, rows] = v.view(self.num_probes, self.num_heads, len(x), self.head_dim).transpose(1, 2)
        return pooled.flatten(2), z if z.shape[1] == num_samples else None

    def backward_pooling(
        self, xhat: Tensor, folded: Folded, dpooled: Tensor, z: Tensor | None, keep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """du [P, H, D] and doffset [P, T, H] from dv [P, B, I]; writes the gradients of Wv, gamma_v and beta_v."""
        num_samples, num_tokens, embed_dim = xhat.shape
        width = self.num_probes * self.num_heads
        attention = self._empty("attention", num_samples, num_tokens, width)
        kept_sum = self._empty("kept sum", num_samples, width)
        dmatrix = self.stack.grads["to_v.weight"].view(width, self.head_dim, embed_dim)
        dshift = torch.zeros_like(folded.shift)
        du = self._empty("du", width, embed_dim)
        doffset = xhat.new_zeros(num_tokens, width, dtype=du.dtype)
        dv_by_head = dpooled.view(self.num_probes, num_samples, self.num_heads, self.head_dim).transpose(1, 2)
        for rows in chunks(num_samples, self._chunk_size):
            x, a = xhat[rows], attention[rows]
            if len(x) < num_samples or z is None:
                z = self._pool(a if keep is None else self._kept(a, keep[rows]), x)
            dv = self._empty("v", width, len(x), self.head_dim)
            dv.view(self.num_probes, self.num_heads, len(x), self.head_dim).copy_(dv_by_head[:, :, rows])
            first = rows.start == 0
            self._matmul.accumulate(dmatrix, dv.mT, z, first=first)
            dz = self._matmul.multiply(dv, folded.matrix, out=z)  # overwrites z, which is no longer needed
            da = self._empty("da", len(x), num_tokens, width)
            self._matmul.multiply(x, dz.permute(1, 2, 0), out=da)
            if keep is not None:
                da.add_((dv * folded.shift).sum(2).t().unsqueeze(1))
                da = self._kept(da, keep[rows])
                dshift += torch.bmm(kept_sum[rows].t().unsqueeze(1), dv)
            da.sub_((da * a).sum(1, keepdim=True)).mul_(a)  # through the softmax
            doffset += da.sum(0)
            # not x^T da: with so few columns it is 20 times slower
            self._matmul.accumulate(du, da.flatten(0, 1).t(), x.flatten(0, 1), first=first)
        self._backward_values(dshift if keep is not None else None)
        doffset = doffset.view(num_tokens, self.num_probes, self.num_heads).transpose(0, 1)
        return du.view(self.num_probes, self.num_heads, embed_dim), doffset

    def _backward_values(self, dshift: Tensor | None) -> None:
        """Gradients of Wv, gamma_v and beta_v from that of Wv * gamma_v, which lies in the memory for Wv's."""
        values, grads = self.stack.values, self.stack.grads
        at_once = self.num_probes if self.stack.device.type == "cuda" else 1  # one by one, while it is in the CPU cache
        for rows in chunks(self.num_probes, at_once):
            dmatrix, weight = grads["to_v.weight"][rows], values["to_v.weight"][rows]
            product = torch.mul(dmatrix, weight, out=self._empty("product", *weight.shape))
            torch.sum(product, 1, out=grads["norm_v.weight"][rows])
            dmatrix.mul_(values["norm_v.weight"][rows].unsqueeze(1))
        if dshift is not None:
            dshift = dshift.view(self.num_probes, self.inner_dim, 1) * (self._rates > 0).unsqueeze(
                1
            )  # no noise where it is zero
            grads["to_v.weight"].addcmul_(dshift, values["norm_v.bias"].unsqueeze(1))
            grads["norm_v.bias"].copy_(torch.bmm(dshift.mT, values["to_v.weight"]).squeeze(1))

    def _pool(self, kept: Tensor, x: Tensor) -> Tensor:
        """z [PH, b, D] from A' [b, T, PH] and tokens [b, T, D]."""
        z = self._matmul.factors.empty("z", kept.shape[2], len(x), self.embed_dim)
        self._matmul.multiply(kept.mT, x, out=z.transpose(0, 1))  # in the layout in which it is read
        return z

    def _kept(self, x: Tensor, keep: Tensor) -> Tensor:
        """x [b, T, PH] times the dropout mask of `keep`."""
        out = self._empty("kept", *x.shape)
        by_probe = (*x.shape[:2], self.num_probes, self.num_heads)
        torch.mul(x.view(by_probe), keep, out=out.view(by_probe))
        return out

    def _empty(self, name: str, *shape: int) -> Tensor:
        return self._workspace.empty(name, *shape)


def chunks(num_samples: int, largest: int) -> Iterator[slice]:
    """Cut a batch into the fewest slices of at most `largest` samples, as evenly as possible.

    >>> [(rows.start, rows.stop) for rows in chunks(9, 4)]
    [(0, 3), (3, 6), (6, 9)]
    """
    num_chunks = -(-num_samples // largest)
    borders = [num_samples * chunk // num_chunks for chunk in range(num_chunks + 1)]
    for start, stop in pairwise(borders):
        yield slice(start, stop)
