"""How much memory a stage needs on each device, from shapes alone.

Weights, gradients and optimizer states are counted exactly, on the meta device. Activations, the key-value cache and
gathered layers are estimates by formula: fused attention, bfloat16 activations, no allocator overhead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from lightning import LightningModule
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer

from hyperbagel.bagel.autoencoder import Autoencoder
from hyperbagel.bagel.config import BagelConfig
from hyperbagel.bagel.model import Bagel
from hyperbagel.modules.adversarial_reward import ADP, ReFL
from hyperbagel.modules.base import DistillationStage
from hyperbagel.modules.consistency import TSCD
from hyperbagel.modules.dmdo import DMDO
from hyperbagel.modules.draft_head import DraftTraining
from hyperbagel.modules.optimization import ManualOptimization
from hyperbagel.modules.reward_tuning import RewardTuning
from hyperbagel.modules.sharding import shard_units

ACTIVATION_BYTES = 2
_INNER = ("understanding", "generation", "autoencoder")


@dataclass(frozen=True)
class Cluster:
    """devices: how many take part; sharded: by FSDP, else each holds everything."""

    devices: int = 1
    sharded: bool = False


@dataclass(frozen=True)
class Workload:
    """One document of a batch. side: of the picture to be drawn, in pixels; text: tokens before it; editing: whether a
    picture of the same size is given as well."""

    side: int = 1024
    text: int = 128
    editing: bool = True

    def image_tokens(self, config: BagelConfig) -> int:
        """Latent tokens of the picture to be drawn."""
        return (self.side // config.latent_stride) ** 2

    def context_tokens(self, config: BagelConfig) -> int:
        """Tokens before it: text, and with a source picture its clean latents and ViT tokens, each between two
        markers."""
        if not self.editing:
            return self.text
        return self.text + self.image_tokens(config) + self.vit_tokens(config) + 4

    def vit_tokens(self, config: BagelConfig) -> int:
        """Tokens of a picture that is looked at."""
        return (min(self.side, config.vit_transform.max_size) // config.vit.patch_size) ** 2


@dataclass(frozen=True)
class Plan:
    """Bytes on each device. fixed: by part, whatever the batch; per_document: by part, for each document of a batch."""

    fixed: dict[str, int] = field(default_factory=dict)
    per_document: dict[str, int] = field(default_factory=dict)

    def total(self, batch: int) -> int:
        """With so many documents a device."""
        return sum(self.fixed.values()) + batch * sum(self.per_document.values())

    def largest_batch(self, memory: int) -> int:
        """Documents a device that fit into `memory` bytes; 0 when not even one does."""
        return max(0, (memory - self.total(0)) // max(1, sum(self.per_document.values())))


def plan(stage: LightningModule, cluster: Cluster, workload: Workload) -> Plan:
    """The memory of a stage that was built on the meta device. Raises ValueError for one without a BAGEL."""
    if not isinstance(getattr(stage, "model", None), Bagel):
        raise ValueError(f"{type(stage).__name__} has no model whose memory could be planned")
    held = _Held(stage, cluster)
    optimizers = _optimizers(stage)
    fixed = held.weights()
    fixed["gradients"] = held.gradients(optimizers)
    fixed["optimizer"] = sum(held.bytes(owner, state) for o in optimizers for owner, state in optimizer_states(o))
    if cluster.sharded:
        fixed["gathered layers"] = 2 * held.largest_unit()  # one in use, the next on its way
    return Plan(fixed, documents(stage, workload))


class _Held:
    """What one device holds of tensors that belong to parameters."""

    def __init__(self, stage: LightningModule, cluster: Cluster) -> None:
        self.stage = stage
        self.devices = cluster.devices if cluster.sharded else 1
        self.units = list(shard_units(stage)) if isinstance(stage, DistillationStage) else []
        self._sharded = {id(p) for unit in self.units for p in unit.parameters()}

    def bytes(self, owner: Tensor, value: Tensor) -> int:
        """Of a tensor shaped like the parameter `owner`, with which it is sharded."""
        return value.nbytes // (self.devices if id(owner) in self._sharded else 1)

    def weights(self) -> dict[str, int]:
        """Parameters and buffers by part; what branches share counts once."""
        parts: dict[str, int] = {}
        for name, value in (*self.stage.named_parameters(), *self.stage.named_buffers()):
            first, second, *_ = (*name.split("."), "")
            part = second if first == "model" and second in _INNER else first
            parts[part] = parts.get(part, 0) + self.bytes(value, value)
        return {part: size for part, size in parts.items() if size >= 2**20 or part in _INNER}

    def gradients(self, optimizers: list[Optimizer]) -> int:
        """Of one network at a time, or of all when they are accumulated over several batches."""
        sizes = [sum(self.bytes(p, p) for p in _parameters(optimizer)) for optimizer in optimizers]
        training = self.stage._training.values() if isinstance(self.stage, ManualOptimization) else ()
        return sum(sizes) if any(t.accumulate > 1 for t in training) else max(sizes, default=0)

    def largest_unit(self) -> int:
        """The unsharded layer half with the most weights, as it is gathered: in bfloat16 or smaller."""
        return max((sum(p.numel() for p in unit.parameters()) for unit in self.units), default=0) * ACTIVATION_BYTES


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    return (p for group in optimizer.param_groups for p in group["params"])


def _optimizers(stage: LightningModule) -> list[Optimizer]:
    configured = stage.configure_optimizers()
    found = configured[0] if isinstance(configured, tuple) else [configured["optimizer"]]  # type: ignore[index, call-overload]
    return list(found)


def optimizer_states(optimizer: Optimizer) -> Iterable[tuple[Tensor, Tensor]]:
    """The states that an optimizer keeps, with the parameter of each: those of one step on parameters of shape only."""
    for parameter in _parameters(optimizer):
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for parameter, states in optimizer.state.items():
        yield from ((parameter, value) for value in states.values() if isinstance(value, Tensor))


def documents(stage: LightningModule, workload: Workload) -> dict[str, int]:
    """Bytes for each document of a batch: activations of the graphs that exist at once, and key-value caches."""
    model: Bagel = stage.model  # type: ignore[assignment]
    config, checkpointing = model.config, model.checkpointing
    image, context = workload.image_tokens(config), workload.context_tokens(config)
    if isinstance(stage, DraftTraining):  # of a question on a picture; all unrolled steps keep their graphs
        layers = stage.draft.config.layers * stage.unroll.steps + 1
        return {
            "activations": expert_activations(config, workload.vit_tokens(config) + workload.text, 0, layers, False)
        }
    if not isinstance(stage, DistillationStage):
        tokens = context + image
        return {"activations": expert_activations(config, tokens, 0, config.llm.num_hidden_layers, checkpointing)}
    graph = expert_activations(config, image, context, config.llm.num_hidden_layers, checkpointing)
    parts = {"activations: student": graph}
    if isinstance(stage, DMDO) and stage.dmdo.through == "trajectory":  # which waits while the fake branch learns
        parts = {"activations: student": stage.settings.steps * graph, "activations: fake": graph}
    caches = 1
    if isinstance(stage, TSCD | ADP) and stage.critic is not None:
        settings = stage.tscd if isinstance(stage, TSCD) else stage.adp
        judged = 3 if settings.r1_weight else 2  # fake, real, and real with noise in one pass
        parts["activations: critic"] = judged * graph
        caches += judged
    if isinstance(stage, ReFL) or (isinstance(stage, ADP) and stage.pixel_critic is not None):
        parts["activations: decoder"] = decoder_activations(model.autoencoder, workload.side)
    if isinstance(stage, RewardTuning):  # the pictures of a document keep theirs together, draw by draw
        passes = 1 if stage.takes_scales else 2 + workload.editing
        parts = {"activations: student": stage.tuning.group * stage.tuning.draws * passes * graph}
        caches = stage.tuning.group * (1 if stage.takes_scales else 2 * passes)  # stacked for the guided pass, too
    if not isinstance(stage, ADP | ReFL | RewardTuning) and stage.teacher.needs_variants:
        caches += 2 + 2 * workload.editing  # the pass without text, without picture, and the stacked variants
    cache = 2 * config.llm.num_hidden_layers * config.llm.num_key_value_heads * config.llm.head_dim * context
    return parts | {"key-value caches": caches * cache * ACTIVATION_BYTES}


def expert_activations(config: BagelConfig, tokens: int, context: int, layers: int, checkpointing: bool) -> int:
    """What the layers keep for the backward pass of `tokens` tokens that attend to `context` earlier ones.

    A layer keeps of each token both residual streams, both normed ones, q before and after its norm and rope, the
    attended values (8 widths), gate, up and their products (4 MLP widths), and k and v of all tokens. With
    checkpointing the layers keep their input alone, and one at a time the rest.
    """
    llm = config.llm
    kv = llm.num_key_value_heads * llm.head_dim
    layer = tokens * (8 * llm.hidden_size + 4 * llm.intermediate_size + 2 * kv) + 2 * (tokens + context) * kv
    kept = layers * tokens * llm.hidden_size + layer if checkpointing else layers * layer
    return kept * ACTIVATION_BYTES


def decoder_activations(autoencoder: Autoencoder, side: int) -> int:
    """What the autoencoder keeps to take a gradient through one decoded picture, found by decoding without values."""
    config = autoencoder.config
    with torch.device("meta"):
        shapes = Autoencoder(config).to(torch.bfloat16)
        latent = torch.empty(1, config.z_channels, side // config.downsample, side // config.downsample)
    weights = {p.untyped_storage()._cdata for p in shapes.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        kept.setdefault(value.untyped_storage()._cdata, value)
        return value

    with saved_tensors_hooks(keep, lambda value: value):
        shapes.requires_grad_(False).decode(latent.bfloat16().requires_grad_())
    return sum(value.untyped_storage().nbytes() for key, value in kept.items() if key not in weights)
