"""GenEval: object-focused text-to-image evaluation by the official rules, with detectors by class path."""

from hyperbagel.evaluation.geneval.prompt_generator import Vocabulary, generate_prompts
from hyperbagel.evaluation.geneval.prompts import GenEvalPrompt, PromptSet, read_prompts
from hyperbagel.evaluation.geneval.protocol import ClassDetections, ColorClassifier, Detections, Detector
from hyperbagel.evaluation.geneval.report import Comparison, GenEvalReport, build_report, compare
from hyperbagel.evaluation.geneval.runner import RunSettings, Scorer, evaluate, jobs, judge_jobs, run_info

__all__ = [
    "ClassDetections",
    "ColorClassifier",
    "Comparison",
    "Detections",
    "Detector",
    "GenEvalPrompt",
    "GenEvalReport",
    "PromptSet",
    "RunSettings",
    "Scorer",
    "Vocabulary",
    "build_report",
    "compare",
    "evaluate",
    "generate_prompts",
    "jobs",
    "judge_jobs",
    "read_prompts",
    "run_info",
]
