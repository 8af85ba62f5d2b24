"""``python -m bench.peers``: fastconv against every installed library, by class of problems.

`measure` times one case after another, `summary` sums up what came out, `report` and `figure` show it.
"""
