"""Draft heads for speculative decoding: the network in `head`, its losses, training batches, files and exports."""
