"""Times every attention kernel on real shapes: `python -m pallas_kernels.bench --help`."""
