"""Writing text: plain decoding in `autoregressive`, decoding with a draft head in `speculative`."""
