"""GEdit-Bench: instruction-guided editing, scored by a judge with VIEScore.

`evaluate(edit, samples, judge, settings)` runs it. Samples come from `GEditBench` (the published data on disk) or are
made by the caller; judges are plain classes in `judges`, chosen by class path.
"""
