"""Rewards, which score pictures against prompts: the interface in `base`, and one file per reward."""
