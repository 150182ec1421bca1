"""Stores weights in the order in memory in which decoding on a CPU reads them fastest."""

from __future__ import annotations

from torch import nn

from hyperbagel.bagel.model import Bagel


def arrange_for_decoding(model: Bagel) -> None:
    """Store wide linear layers of the understanding stack column by column: a token is then decoded faster on a CPU.

    The product of such a matrix with one vector reads memory in runs of `out_features` numbers instead of
    `in_features`, up to twice as fast for the LM head. Values, names and shapes stay as they are; products with more
    rows take as long as before. Weights on other devices are left alone. Call it outside inference mode, after loading;
    sharded training needs the usual order, so models to be trained should not be arranged.
    """
    for module in model.understanding.modules():
        if isinstance(module, nn.Linear) and module.out_features > module.in_features and module.weight.is_cpu:
            module.weight.data = module.weight.data.t().contiguous().t()
