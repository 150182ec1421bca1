"""What a model costs on the device at hand, beside what the device could do: `hyperbagel bench`."""
