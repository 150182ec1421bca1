"""Training data: reading shards of interleaved documents, drawing, converting and regenerating them.

`interleaved` is the data module of all stages and `features` that of draft heads; `convert` makes shards of open data
sets, `scenes` draws them, and `regenerate` lets a model answer them anew.
"""
