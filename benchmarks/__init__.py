"""Scripts whose results are in results/; no timed assertion lives in tests/."""
