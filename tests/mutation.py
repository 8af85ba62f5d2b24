"""Does the suite notice broken kernels? ``python -m tests.mutation``, or ``make mutate``.

Each mutant is a copy of the tree with one small change in one module of kernels: a constant or bound off by one, a
comparison that admits or drops a value, plus for minus, one operand's name for another's, a statement left out. A
mutant is killed where the check of its module fails, crashes or hangs; survivors are listed with their change.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .process import ROOT

MODULES = {
    "gather": "plan_gather plan_padded plan_planes test_gather",
    "packing": "plan_gather plan_padded test_gather",
    "columns": "plan_planes plan_patch_dots plan_lines",
    "correlate": "plan_correlate test_passes",
    "lines": "plan_lines",
    "strips": "plan_strips",
    "dots": "plan_dots",
    "depthwise": "plan_depthwise test_passes",
    "copies": "test_passes",
    "channel_dots": "plan_channel_dots",
    "window_dots": "plan_window_dots test_passes",
    "plane_dots": "plan_plane_dots",
    "plane_taps": "plan_plane_dots plan_rolling",
    "pixel_dots": "plan_pixel_dots plan_patch_dots",
    "rolling": "plan_rolling plan_pairs",
    "rolling_rows": "plan_rolling plan_pairs",
    "rolling_pixels": "plan_rolling_pixels plan_pixel_pairs test_passes",
    "rolling_dots": "plan_rolling_dots test_passes",
    "pixel_columns": "plan_rolling_pixels plan_pixel_pairs",
    "reduce": "plan_reduce test_layers",
    "spans": "plan_correlate plan_dots",
    "addresses": "plan_gather plan_depthwise plan_stencil",
    "stencil": "plan_stencil",
    "pad": "plan_padded",
    "slabs": "plan_correlate plan_channel_dots",
    "groups": "plan_depthwise plan_channel_dots",
    "simd": "plan_gather plan_padded plan_correlate test_disjoint",
    "tiles": "plan_gather plan_correlate plan_dots plan_pixel_dots plan_lines",
    "emit": "plan_gather plan_planes plan_stencil plan_window_dots plan_pixel_dots plan_reduce test_local2d",
    "transpose": "direct test_transposed",
    "disjoint": "test_disjoint",
    "fold": "test_disjoint",
    "chain": "direct",
    "bands": "test_banded",
    "winograd": "winograd",
    "winograd_weights": "winograd test_winograd",
    "winograd_rows": "winograd-rows test_winograd",
    "transforms": "winograd",
    "toomcook": "winograd",
    "fft": "fft test_fft",
    "overlap_save": "fft test_fft",
    "patches": "im2col",
    "naive": "naive test_layers",
    "spread": "test_few_channels",
    "activation": "test_layers test_nn test_dense flat",
    "dense": "test_dense test_layers flat",
    "runs": "test_local2d test_layers",
    "local": "test_local2d",
    "pool": "test_nn pooling",
    "windows": "test_nn pooling",
    "softmax": "test_nn flat",
    "update": "test_nn flat",
    "signal": "test_signal signals",
    "sums": "test_signal signals",
    "taptile": "test_signal signals",
    "fourier": "test_signal signals",
}
"""Modules of kernels, and what depends on them: kinds of passes or an algorithm, which the table of cases checks, a
layer of `random_problems`, or a file of tests."""
_KERNELS = Path("fastconv", "kernels")
EQUIVALENT = ("prefetch", "grain")
"""Changes in lines that hold one of these words alter speed alone."""
_SWAPPED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
_PAIRS = (("row", "column"), ("rows", "columns"), ("_r", "_c"), ("_i", "_j"), ("first", "last"), ("begin", "end"))


def _swapped_name(name: str) -> str | None:
    for one, other in _PAIRS:
        for old, new in ((one, other), (other, one)):
            if name.endswith(old):
                return name.removesuffix(old) + new
    return None


class _Sites(ast.NodeTransformer):
    """Counts the places that can be changed; changes the one asked for."""

    def __init__(self, chosen: int = -1) -> None:
        self.count = 0
        self.chosen = chosen
        self.change = ""

    def _here(self, node: ast.AST, words: str) -> bool:
        self.count += 1
        if self.count - 1 != self.chosen:
            return False
        self.change = f"line {node.lineno}: {words}"
        return True

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.body = [self.visit(statement) for statement in node.body]  # not the signature and its decorators
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if type(node.value) is int and self._here(node, f"{node.value} becomes {node.value + 1}"):
            return ast.copy_location(ast.Constant(node.value + 1), node)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        new = _SWAPPED.get(type(node.ops[0]))
        if new and self._here(node, f"{ast.unparse(node)} with {new.__name__}"):
            node.ops[0] = new()
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        new = _SWAPPED.get(type(node.op))
        if new and self._here(node, f"{ast.unparse(node)} with {new.__name__}"):
            node.op = new()
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        # The length of a view of memory bounds nothing: only the address of one with one axis matters.
        if isinstance(node.func, ast.Name) and node.func.id == "array_at" and not isinstance(node.args[1], ast.Tuple):
            node.args[0] = self.visit(node.args[0])
            return node
        return self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        other = _swapped_name(node.attr)
        if (
            other
            and isinstance(node.value, ast.Name)
            and node.value.id == "p"
            and self._here(node, f"{node.attr} becomes {other}")
        ):
            node.attr = other
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        self.generic_visit(node)
        return ast.copy_location(ast.Pass(), node) if self._here(node, f"without {ast.unparse(node)}") else node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.value, ast.Call) and self._here(node, f"without {ast.unparse(node)}"):
            return ast.copy_location(ast.Pass(), node)
        return node


def mutants(source: str, count: int, rng: random.Random) -> list[tuple[str, str]]:
    """That many changed sources, each with its change in words."""
    tree, lines = ast.parse(source), source.splitlines()
    counter = _Sites()
    counter.visit(copy.deepcopy(tree))
    found: list[tuple[str, str]] = []
    for chosen in rng.sample(range(counter.count), counter.count):
        if len(found) == count:
            break
        sites = _Sites(chosen)
        changed = ast.unparse(ast.fix_missing_locations(sites.visit(copy.deepcopy(tree))))
        line = lines[int(sites.change.split()[1].rstrip(":")) - 1]
        if not any(word in line for word in EQUIVALENT):
            found.append((sites.change, changed))
    return found


def _passes(folder: Path, what: str, seconds: float) -> bool:
    """Whether the check of the copied tree finds nothing wrong."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": str(folder / "cache")}
    files = [f"tests/{name}.py" for name in what.split() if name.startswith("test_")]
    others = [name for name in what.split() if not name.startswith("test_")]
    checks = [["tests.mutation", "--check", " ".join(others)]] if others else []
    checks += [["pytest", "-qx", "-p", "no:cacheprovider", *files]] if files else []
    for check in checks:
        try:
            done = subprocess.run(
                [sys.executable, "-m", *check], cwd=folder, env=environment, capture_output=True, timeout=seconds,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
        if done.returncode != 0:
            return False
    return True


def check(what: str) -> None:
    """All cases between guard pages, those with many tails first: what a mutant has to fail."""
    from .cases import CASES, DIRECTIONS, LAYOUTS, TARGET_CASES, compare_integers
    from .guarded import guarded
    from .passes import KINDS, compare_all
    from .random_problems import LAYERS
    from .soak import forget_plans

    for number, case in enumerate((*TARGET_CASES, *(case for case in CASES if case not in TARGET_CASES))):
        forget_plans()
        with guarded(number) as guard:
            for name in what.split():
                if name in LAYERS:
                    LAYERS[name](np.random.default_rng(number))
                    continue
                if name in KINDS:
                    compare_all(name, [(number, case)])
                    continue
                for direction in DIRECTIONS:
                    for layout in LAYOUTS:
                        compare_integers(case, direction, name, layout, "float32")
            guard.check()
    sys.stdout.flush()
    os._exit(0)


def _survives(name: str, mutant: tuple[str, str], seconds: float) -> bool:
    """Whether the checks of a module find nothing wrong with a copy of the tree in which it is changed."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("fastconv", "tests", "bench"):
            shutil.copytree(ROOT / part, Path(folder, part), ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        Path(folder, _KERNELS, f"{name}.py").write_text(mutant[1])
        survived = _passes(Path(folder), MODULES[name], seconds)
    print(f"{'SURVIVED' if survived else 'killed  '} {name} {mutant[0]}", flush=True)
    return survived


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", choices=[*MODULES, []], help="modules to break; all if none is named")
    parser.add_argument("--count", type=int, default=10, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600, help="after which a mutant counts as hanging")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at a time")
    parser.add_argument("--check", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.check:
        check(options.check)
    pairs = [
        (name, mutant)
        for name in options.modules or MODULES
        for mutant in mutants(
            (ROOT / _KERNELS / f"{name}.py").read_text(), options.count, random.Random(f"{options.seed} {name}")
        )
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        survived = list(pool.map(lambda pair: _survives(*pair, options.seconds), pairs))
    survivors = sum(survived)
    print(f"seed {options.seed}: {len(pairs) - survivors} killed, {survivors} survived")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
