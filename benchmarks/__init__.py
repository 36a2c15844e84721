"""Our inner loops beside the peer's, measured in one run: `python -m benchmarks.run --case kl`. No part of the wheel."""
