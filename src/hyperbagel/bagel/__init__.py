"""The BAGEL model: its networks, documents as token streams, contexts, and checkpoints.

`model` holds the model, `mot` its layers, `understanding`, `branch`, `vision` and `autoencoder` its parts; `segments`,
`layout` and `context` turn documents into what the layers read; `checkpoint` and `branch_checkpoint` are the files;
`build` makes a model of pretrained or fresh parts.
"""
