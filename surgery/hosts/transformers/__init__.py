"""`transformers`: `Sam2VideoModel`. The library is always imported by its own, absolute name."""
