"""The understanding stack of BAGEL: frozen, and shared by all generation branches."""

from __future__ import annotations

from torch import Tensor, nn

from hyperbagel.bagel.config import BagelConfig
from hyperbagel.bagel.embeddings import PositionTable
from hyperbagel.bagel.layout import ViTBatch
from hyperbagel.bagel.mot import ExpertLayer
from hyperbagel.bagel.vision import Connector, VisionTower


class UnderstandingStack(nn.Module):
    """Everything that understanding needs: embeddings, understanding experts, LM head, vision tower and connector."""

    def __init__(self, config: BagelConfig) -> None:
        super().__init__()
        llm, vit = config.llm, config.vit
        self.embed_tokens = nn.Embedding(llm.vocab_size, llm.hidden_size)
        self.layers = nn.ModuleList(ExpertLayer(llm) for _ in range(llm.num_hidden_layers))
        self.norm = nn.RMSNorm(llm.hidden_size, llm.rms_norm_eps)
        self.lm_head = nn.Linear(llm.hidden_size, llm.vocab_size, bias=False)
        self.vision = VisionTower(vit)
        self.connector = Connector(vit.hidden_size, llm.hidden_size)
        self.vit_pos_embed = PositionTable(vit.patches_per_side, llm.hidden_size)

    def embed_vit(self, vit: ViTBatch) -> Tensor:
        """ViT token embeddings, connector and position table applied: (images, N, D)."""
        patches = vit.patches.to(self.embed_tokens.weight.dtype)
        x = self.connector(self.vision(patches, vit.position_ids, vit.valid if vit.ragged else None))
        output: Tensor = x + self.vit_pos_embed(vit.position_ids).to(x.dtype)
        return output
