"""Judges of edits: an OpenAI-compatible endpoint, a local vision-language model, and the exact judge of `scenes`.

Their figures must not be mixed: the published ones are usually written G_ (API) and Q_ (local).
"""
