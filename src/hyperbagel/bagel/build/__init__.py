"""Builds a BAGEL: `assemble` puts it together of pretrained parts, and of fresh ones that `initial` makes."""
