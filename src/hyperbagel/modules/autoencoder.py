"""Training of the autoencoder: reconstruction error and the rate of the latents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from hyperbagel.bagel.images import to_pil
from hyperbagel.bagel.segments import Document, DocumentBatch, ImageSegment, ViTSegment
from hyperbagel.bagel.transfer import moved
from hyperbagel.files import write_json, write_picture
from hyperbagel.flow.randomness import normal, step_generator
from hyperbagel.training.networks import Training
from hyperbagel.training.stage import LearnsFrom, Stage, StageSettings

STATISTICS_DECAY = 0.99


@dataclass(frozen=True)
class RateDistortion:
    """Terms of one batch.

    error: mean squared error of pixels in [-1, 1]; dissimilarity: 1 - SSIM; rate: KL divergence from a standard normal,
    in nats a latent value; mean: (B, z, h, w) of the posterior.
    """

    error: Tensor
    dissimilarity: Tensor
    rate: Tensor
    mean: Tensor


@dataclass(frozen=True, kw_only=True)
class AutoencoderMethod:
    """Weights of the terms beside the mean squared error, and what trains."""

    kl_weight: float = 1e-3
    """Weight of the mean KL divergence. It sets how many nats a latent value carries: with too many the flow model
    learns noise."""
    ssim_weight: float = 0.0
    """Weight of 1 - SSIM, which sees structure relative to its contrast; the squared error hardly sees what is light on
    light."""
    decoder_only: bool = False
    """Keep the encoder and the scale of the latents, and decode the posterior's mean instead of draws from it, as
    generation learns means: it recovers detail that noise hides, and a trained generation side stays valid."""


class AutoencoderTraining(Stage):
    """Trains the autoencoder of a BAGEL on the pictures of documents, all else frozen.

    At the end the scale and shift of the latents are set so that they have mean 0 and deviation 1 over the training
    pictures, as flow matching wants them; exporting the model writes them with the weights.

    Args:
        model: checkpoint folder to start from.
        method: weights of the terms, and what trains.
        student: how the autoencoder is trained.
        settings: what all stages have in common.

    Examples:
        >>> stage = AutoencoderTraining(model=folder)
        >>> stage.learns_from
        ('picture',)
    """

    latent_mean: Tensor
    latent_square: Tensor

    learns_from: tuple[LearnsFrom, ...] | None = ("picture",)

    def __init__(
        self,
        *,
        model: str,
        method: AutoencoderMethod = AutoencoderMethod(),
        student: Training = Training(),
        settings: StageSettings = StageSettings(),
    ) -> None:
        super().__init__(model, settings)
        self.method = method
        self.model.requires_grad_(False)
        self.model.autoencoder.requires_grad_(True).to(memory_format=torch.channels_last)  # faster convolutions
        if method.decoder_only:
            self.model.autoencoder.network.encoder.requires_grad_(False)
        self.register_buffer("latent_mean", torch.zeros(()))
        self.register_buffer("latent_square", torch.zeros(()))
        self.add_network("student", student.of_whole_weights(self.model), paths=["model.autoencoder"])
        self.leave_out_frozen_parts()

    def rate_distortion(self, images: Tensor, generator: torch.Generator) -> RateDistortion:
        """Encode pictures (B, 3, H, W) in [-1, 1], draw from the posterior (or take its mean) and decode."""
        autoencoder, config = self.model.autoencoder, self.model.autoencoder.config
        mean, logvar = (moment.float() for moment in autoencoder.moments(images))
        logvar = logvar.clamp(-20, 10)  # a fresh encoder may say anything, and exp() overflows
        noise = normal(mean.shape, generator).to(mean)
        drawn = mean if self.method.decoder_only else mean + (logvar / 2).exp() * noise
        decoded = autoencoder.decode(config.scale_factor * (drawn - config.shift_factor))
        rate = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
        decoded, images = decoded.float(), images.float()
        with torch.autocast(images.device.type, enabled=False):  # variances are small differences
            ssim = structural_similarity_index_measure(decoded, images, data_range=2.0)
        assert isinstance(ssim, Tensor)
        return RateDistortion((decoded - images).square().mean(), 1 - ssim, rate.mean(), mean.detach())

    def training_step(self, batch: DocumentBatch, batch_idx: int) -> None:
        """One update on all pictures of a batch. Raises ValueError for a batch without pictures."""
        generator = step_generator(self.settings.seed, self.global_rank, self.student_step, str(batch_idx), self.device)
        results = [(len(images), self.rate_distortion(images, generator)) for images in _stacks(batch, self.device)]
        if not results:
            raise ValueError(f"the batch of source {batch.source!r} ({batch.keys[0]}, ...) has no pictures")
        pictures = sum(count for count, _ in results)
        counts = moved(torch.tensor([count for count, _ in results]), self.device)
        error, dissimilarity, rate = (
            (torch.stack([getattr(result, term) for _, result in results]) * counts).sum() / pictures
            for term in ("error", "dissimilarity", "rate")
        )
        self._observe(torch.cat([result.mean.flatten() for _, result in results]))
        terms = (("reconstruction", error), ("dissimilarity", dissimilarity), ("rate", rate))
        losses = {f"loss/{name}": value.detach() for name, value in terms}
        self.log_at_step(losses, pictures, prog_bar=True, sync_dist=True)
        self.update("student", error + self.method.ssim_weight * dissimilarity + self.method.kl_weight * rate)

    def validation_step(self, batch: DocumentBatch, batch_idx: int) -> None:
        """The same terms on validation pictures."""
        generator = step_generator(self.settings.seed, self.global_rank, batch_idx, "validation", self.device)
        for images in _stacks(batch, self.device):
            result = self.rate_distortion(images, generator)
            terms = (("reconstruction", result.error), ("dissimilarity", result.dissimilarity), ("rate", result.rate))
            for name, value in terms:
                self.log_at_step({f"val/loss/{name}": value}, len(images), sync_dist=True)

    def test_step(self, batch: DocumentBatch, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: DocumentBatch, batch_idx: int) -> list[str]:
        """Write the pictures of each document as the autoencoder gives them back; what is there is kept."""
        files = [self.predictor.file(batch.source, key) for key in batch.keys]
        for file, key, document in zip(files, batch.keys, batch.documents, strict=True):
            if file.exists():
                self.predictor.kept += 1
                continue
            names = []
            for number, pixels in enumerate(_pictures(document)):
                names.append(f"{file.stem}-{number}.png")
                latent = self.model.autoencoder.encode(pixels[None].to(self.device, self.model.dtype))
                write_picture(file.with_name(names[-1]), to_pil(self.model.autoencoder.decode(latent)[0]))
            write_json(file, {"key": key, "source": batch.source, "pictures": names})
            self.predictor.written += 1
        return [str(file) for file in files]

    def _observe(self, latents: Tensor) -> None:
        """Running moments of the posterior means; they follow the encoder, which stands still once the rate decayed."""
        weight = max(1 - STATISTICS_DECAY, 1 / (self.student_step + 1))
        self.latent_mean.lerp_(latents.mean(), weight)
        self.latent_square.lerp_(latents.square().mean(), weight)

    def on_train_end(self) -> None:
        """Set scale and shift of the latents, unless their encoder was kept."""
        if self.method.decoder_only:
            return
        mean, square = (
            float(self.trainer.strategy.reduce(moment.clone(), reduce_op="mean"))
            for moment in (self.latent_mean, self.latent_square)
        )
        deviation = max(square - mean**2, 1e-12) ** 0.5
        config = replace(self.model.autoencoder.config, scale_factor=1 / deviation, shift_factor=mean)
        self.model.autoencoder.config = config
        self.model.config = replace(self.model.config, autoencoder=config)


def _stacks(batch: DocumentBatch, device: torch.device) -> Iterator[Tensor]:
    """The pictures of a batch, each once, in stacks (B, 3, H, W) of one size."""
    by_size: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for document in batch.documents:
        for pixels in _pictures(document):
            by_size[pixels.shape].append(pixels)
    for pictures in by_size.values():
        stack = torch.stack(pictures).to(device)
        yield stack.contiguous(memory_format=torch.channels_last)


def _pictures(document: Document) -> list[Tensor]:
    """The pictures of a document, (3, H, W) in [-1, 1], each once."""
    # A condition is there twice, for the autoencoder and for the ViT: the former has the autoencoder's size.
    wanted = ImageSegment if any(isinstance(segment, ImageSegment) for segment in document) else ViTSegment
    return list({s.pixels.data_ptr(): s.pixels for s in document if isinstance(s, wanted)}.values())
