"""CondConv: a convolution whose kernel is mixed for each sample from those of several experts, by an embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.errors import suggest

ROUTINGS = ("softmax", "sigmoid")


class CondConv2d(nn.Module):
    """`layer(x, embedding)`: x (B, C, H, W) convolved with `sum_i r_i(embedding) W_i`, to (B, out, H', W').

    The routing is `r = softmax(R e)` or `sigmoid(R e)` of the embedding vector e (B, W): Yang et al., "CondConv:
    Conditionally Parameterized Convolutions for Efficient Inference" (2019, arXiv:1904.04971), equations 1 and 3, whose
    e is the mean of x over its pixels. As convolving is linear in the kernel, this is the mixture of the experts'
    answers, for the cost of one: the kernels are mixed first, and one convolution with as many groups as samples
    applies them. Mixing takes `2 n out C k^2` operations a sample, n / (H W) of the convolution's.

    Args:
        channels, out, kernel, stride, padding, groups: as of `torch.nn.Conv2d`; by default H and W stay.
        embedding: W. experts: n, at least 1; one with softmax is a plain convolution.

    Raises ValueError for an unknown routing or less than one expert.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        embedding: int,
        experts: int = 4,
        kernel: int = 3,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        routing: str = "softmax",
    ) -> None:
        super().__init__()
        if experts < 1:
            raise ValueError(f"experts must be at least 1, got {experts}")
        if routing not in ROUTINGS:
            raise suggest("routing", routing, ROUTINGS)
        self.channels, self.out, self.experts, self.routing = channels, out, experts, routing
        self.stride, self.padding, self.groups = stride, kernel // 2 if padding is None else padding, groups
        plain = [nn.Conv2d(channels, out, kernel, groups=groups) for _ in range(experts)]
        self.weight = nn.Parameter(torch.stack([one.weight.detach() for one in plain]))
        self.bias = nn.Parameter(torch.stack([one.bias.detach() for one in plain if one.bias is not None]))
        self.route = nn.Linear(embedding, experts)
        # Wide enough that experts with equal kernels get different gradients, and so part.
        nn.init.normal_(self.route.weight, std=embedding**-0.5)
        nn.init.zeros_(self.route.bias)

    @torch.no_grad()
    def copy_kernel(self, weight: Tensor, bias: Tensor) -> CondConv2d:
        """Every expert becomes a copy of a plain convolution's kernel, so that the layer is that convolution.

        Shares of a softmax add to 1, whatever the routing. Those of sigmoids are set to 1/2 each, and the copies scaled
        about `2 / n`, differently, since the gradients of equal ones would never part them.
        """
        scales = torch.ones(self.experts, dtype=weight.dtype, device=weight.device)
        if self.routing == "sigmoid":
            nn.init.zeros_(self.route.weight)
            nn.init.zeros_(self.route.bias)
            apart = torch.linspace(-0.5, 0.5, self.experts).to(scales) * (self.experts > 1)
            scales = 2 / self.experts * (1 + apart)
        self.weight.copy_(scales.view(-1, 1, 1, 1, 1) * weight)
        self.bias.copy_(scales.view(-1, 1) * bias)
        return self

    def shares(self, embedding: Tensor) -> Tensor:
        """The weights of the experts, (B, n), from the embedding (B, W)."""
        found: Tensor = self.route(embedding)
        return found.softmax(1) if self.routing == "softmax" else found.sigmoid()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        batch, shares = x.shape[0], self.shares(embedding)
        weight = (shares @ self.weight.flatten(1)).view(batch * self.out, *self.weight.shape[2:])
        bias = (shares @ self.bias).flatten()
        folded = x.reshape(1, batch * self.channels, *x.shape[2:])
        found = F.conv2d(folded, weight, bias, self.stride, self.padding, groups=batch * self.groups)
        return found.view(batch, self.out, *found.shape[2:])
