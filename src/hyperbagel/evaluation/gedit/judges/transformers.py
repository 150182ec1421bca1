"""A local vision-language model as judge, through transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from hyperbagel.bagel.tokenizer import as_plain
from hyperbagel.evaluation.gedit.questions import EditedPair, Question, ask_both
from hyperbagel.evaluation.gedit.samples import JudgeScore


class TransformersJudge:
    """VIEScore by a local model (published: Qwen2.5-VL-72B-Instruct-AWQ): images, then text; greedy decoding.

    Greedy answers repeat, so each question is asked once: an invalid answer would only be given again.

    Args:
        folder: model and processor as `save_pretrained` writes them; only safetensors are loaded, no code from it is
            run.
        max_tokens: longest answer.
        device_map: devices that hold the model, as in transformers.
        dtype: type of the weights, as in transformers.

    Raises FileNotFoundError if the folder has no config.json.

    Examples:
        >>> TransformersJudge("Qwen2.5-VL")
        Traceback (most recent call last):
        ...
        FileNotFoundError: Qwen2.5-VL: no config.json; name the folder of a model with its processor files
    """

    def __init__(
        self,
        folder: str | Path,
        max_tokens: int = 512,
        device_map: str = "auto",
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    ) -> None:
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder}: no config.json; name the folder of a model with its processor files")
        options = {"local_files_only": True, "trust_remote_code": False}
        self.processor: Any = AutoProcessor.from_pretrained(folder, **options)
        self.model: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, device_map=device_map, use_safetensors=True, **options
        ).eval()
        self._control = tuple(self.processor.tokenizer.all_special_tokens)
        self.name = folder.name
        self.version = str(self.model.config.model_type)
        self.max_tokens = max_tokens

    def score(self, instruction: str, source: Image.Image, edited: Image.Image) -> JudgeScore:
        """Ask both questions; see `Judge`."""
        return ask_both(self.ask, EditedPair(instruction, source, edited), max_tries=1)

    @torch.inference_mode()
    def ask(self, question: Question) -> str:
        """The model's answer."""
        content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in question.images]
        content.append({"type": "text", "text": as_plain(question.text, self._control)})
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device)
        ids = self.model.generate(**inputs, max_new_tokens=self.max_tokens, do_sample=False)
        answer = ids[0, inputs["input_ids"].shape[1] :]
        return str(self.processor.decode(answer, skip_special_tokens=True))
