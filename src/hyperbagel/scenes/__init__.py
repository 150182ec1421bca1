"""A procedural world of drawn scenes: pictures, texts about them, edits of them, and the exact truth of each."""

from hyperbagel.scenes.captions import Fact, caption, caption_facts, parse_caption
from hyperbagel.scenes.claims import Claim, Noun
from hyperbagel.scenes.documents import CAPTION_PROMPT, KINDS, Sample, sample
from hyperbagel.scenes.drawing import coverage, draw
from hyperbagel.scenes.edits import EDIT_KINDS, Edit, random_edit
from hyperbagel.scenes.palette import BACKGROUNDS, COLORS, PLACES, RELATIONS, SHAPES, SIZES
from hyperbagel.scenes.prompts import GENEVAL_COUNTS, geneval_prompts, random_prompt, scene_of
from hyperbagel.scenes.questions import Question, random_question, yes_no_question
from hyperbagel.scenes.vocabulary import SPECIAL_TOKENS, load_tokenizer, tokenizer_folder
from hyperbagel.scenes.world import Scene, SceneObject, relation, relations, size_of

__all__ = [
    "BACKGROUNDS",
    "CAPTION_PROMPT",
    "COLORS",
    "EDIT_KINDS",
    "GENEVAL_COUNTS",
    "KINDS",
    "PLACES",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "SPECIAL_TOKENS",
    "Claim",
    "Edit",
    "Fact",
    "Noun",
    "Question",
    "Sample",
    "Scene",
    "SceneObject",
    "caption",
    "caption_facts",
    "coverage",
    "draw",
    "geneval_prompts",
    "load_tokenizer",
    "parse_caption",
    "random_edit",
    "random_prompt",
    "random_question",
    "relation",
    "relations",
    "sample",
    "scene_of",
    "size_of",
    "tokenizer_folder",
    "yes_no_question",
]
