"""How fast vitrail is on one GPU, beside PyTorch and what the hardware allows. `python -m bench.gpu --help`."""
