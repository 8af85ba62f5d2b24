"""Holds one library against fastconv on small problems; run by `tests.test_peers` in a process of its own."""

import json
import sys

from bench import libraries
from bench.contenders import Fastconv, Task
from bench.peers.measure import qualified
from bench.shapes import conv, depthwise
from fastconv.problem import DIRECTIONS, LAYOUTS

CASES = (
    conv("plain-3x3", 3, 9, 4, 3, n=2, padding=1),
    conv("strided", 6, (9, 12), 8, (3, 2), stride=2, padding=(1, 0)),
    depthwise("dilated-depthwise", 4, 11, 3, dilation=2, multiplier=2),
    conv("grouped", 6, 8, 9, 3, groups=3),
    conv("filter", 1, (10, 12), 1, (5, 3), padding=(2, 1)),
)


def check(name: str) -> dict[str, list[str]]:
    """Say what the library got right, what it declined and what it got wrong."""
    peer_class = next(peer for peer in libraries.PEERS if peer.name == name)
    found: dict[str, list[str]] = {"right": [], "declined": [], "wrong": []}
    for packed in (False, True) if peer_class.packs else (False,):
        peer = peer_class(2, packed)
        for case in CASES:
            for direction in ("forward",) if packed else DIRECTIONS:
                for dtype in ("float32", "float64"):
                    ours = (Fastconv("auto", layout, packed) for layout in LAYOUTS)
                    task = Task.make(case, direction, dtype=dtype)
                    calls, declined, wrong = qualified(task, [*ours, peer])
                    label = f"{case.name} {direction} {dtype}{' packed' * packed}"
                    found["right"] += [label] * (name in calls)
                    found["declined"] += [label] * (name in declined)
                    found["wrong"] += [f"{label}: {who}: {reason}" for who, reason in wrong.items()]
    return found


if __name__ == "__main__":
    print(json.dumps(check(sys.argv[1])))
