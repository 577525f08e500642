"""The model that comes with the package, as `benchmarks/builtin.py` wrote it; its card is card.md."""
