"""A linear layer for inference that multiplies by a sparse weight."""

from __future__ import annotations

import torch
from torch import nn

_LAYOUTS = {torch.sparse_csr: "CSR", torch.sparse_bsr: "BSR"}


class SparseLinear(nn.Module):
    """y = x W' + b with W in CSR or BSR, for inference.

    The parts of W are dense buffers, from which each call makes a view: torch can neither copy nor save modules that
    hold tensors of these layouts. Indices are of 32 bits, which its products convert them to otherwise, and W is the
    left factor: with W' on the right, as in `torch.nn.functional.linear`, the same product takes many times as long.

    Parameters
    ----------
    weight : torch.Tensor
        (n_out, n_in), in one of the two layouts.
    bias : torch.Tensor, optional
        (n_out,).
    """

    crow_indices: torch.Tensor
    col_indices: torch.Tensor
    values: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.layout = weight.layout
        self.out_features, self.in_features = weight.shape
        self.register_buffer("crow_indices", weight.crow_indices().to(torch.int32))
        self.register_buffer("col_indices", weight.col_indices().to(torch.int32))
        self.register_buffer("values", weight.values().detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs (..., n_out) for inputs (..., n_in)."""
        columns = inputs.reshape(-1, self.in_features).t()
        W = self.weight
        outputs = torch.mm(W, columns) if self.bias is None else torch.addmm(self.bias[:, None], W, columns)
        return outputs.t().reshape(*inputs.shape[:-1], self.out_features)

    @property
    def weight(self) -> torch.Tensor:
        """The weight as a sparse tensor that shares the layer's memory."""
        return torch.sparse_compressed_tensor(
            self.crow_indices, self.col_indices, self.values, (self.out_features, self.in_features),
            layout=self.layout, check_invariants=False,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Return what printing shows of the layer."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        blocks = f", blocksize={tuple(self.values.shape[1:])}" if self.values.dim() > 1 else ""
        return f"{sizes}, layout={_LAYOUTS[self.layout]}{blocks}, stored={self.values.numel()}"
