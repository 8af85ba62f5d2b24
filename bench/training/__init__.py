"""``python -m bench.training``: whole training steps, fastconv against PyTorch with the same layers.

`networks` says what is trained, `ours` and `theirs` compute it, `measure` checks that they agree and times them in
turns, `report` shows the figures.
"""
