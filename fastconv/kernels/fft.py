"""Complex Fourier transforms of vectors: what the kernels that multiply spectra have in common.

Lanes are transforms beside each other, so a transform is vector operations only: a panel of VL columns lies row after
row, VL real parts and VL imaginary ones. The order of frequencies does not matter to a product of spectra, so none is
restored: forward transforms decimate in frequency, backward ones in time.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
from numba import types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from fastconv.kernels import jit
from fastconv.kernels.emit import Emitter, literal, scalar_ir
from fastconv.kernels.params import address, fill, record
from fastconv.kernels.simd import array_at, record_at

TABLE = record("stages radices twiddles")
"""What a transform of one size needs; the last two are addresses."""

RADICES = (4, 2, 3, 5)


def radices(n: int) -> list[int]:
    """The sizes of the stages that a transform of n points takes; their product is less where n has other factors."""
    found = []
    for radix in RADICES:
        while n % radix == 0:
            found.append(radix)
            n //= radix
    return found


def is_smooth(n: int) -> bool:
    """Whether there is a transform of n points."""
    return math.prod(radices(n)) == n


@functools.lru_cache(maxsize=1024)
def good_size(lanes: int, least: int) -> int:
    """The smallest size of an axis that is not less: whole vectors, with no prime factor above 5."""
    return next(n for n in itertools.count(-(-least // lanes) * lanes, lanes) if is_smooth(n))


@functools.cache
def good_sizes(lanes: int) -> tuple[int, ...]:
    """Sizes of blocks along one of two axes, a few in each octave."""
    return tuple(n for n in (m << e for e in range(3, 9) for m in (4, 5, 6)) if n % lanes == 0)


def frequencies(n: int) -> np.ndarray:
    """The frequency at each place after a forward transform."""
    order = np.zeros(1, np.int64)
    for radix in reversed(radices(n)):
        order = np.concatenate([j + radix * order for j in range(radix)])
    return order


def unit(numerators: np.ndarray, denominator: int) -> np.ndarray:
    """exp(-2 pi i numerator / denominator) as real and imaginary parts along a new last axis."""
    angles = (numerators % denominator) * (-2 * np.pi / denominator)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


_tables: list[tuple[np.ndarray, ...]] = []
"""All that were made, for good: of those that two threads make at once the cache keeps one, and plans point to both."""


@functools.cache
def table(n: int, dtype: str) -> tuple[np.ndarray, ...]:
    """The record of an axis, and the arrays that it points to, which stay where they are."""
    found, twiddles, m = radices(n), [], n
    for radix in found:
        length, m = m, m // radix
        twiddles.append(unit(np.outer(np.arange(m), np.arange(1, radix)), length).ravel())
    stages, values = np.array(found, np.int64), np.concatenate(twiddles).astype(dtype)
    record = fill(TABLE, stages=len(found), radices=address(stages), twiddles=address(values))
    _tables.append((record, stages, values))
    return record, stages, values


class _Butterfly:
    """Emits a transform of R points."""

    def __init__(self, emit: Emitter, inverse: bool) -> None:
        self.emit = emit
        self.inverse = inverse

    def _add(self, a: Any, b: Any) -> Any:
        return tuple(map(self.emit.builder.fadd, a, b))

    def _sub(self, a: Any, b: Any) -> Any:
        return tuple(map(self.emit.builder.fsub, a, b))

    def _turned(self, centre: Any, part: Any) -> tuple[Any, Any]:
        """Return centre - i part and centre + i part; the other way round backward."""
        builder = self.emit.builder
        minus = builder.fadd(centre[0], part[1]), builder.fsub(centre[1], part[0])
        plus = builder.fsub(centre[0], part[1]), builder.fadd(centre[1], part[0])
        return (plus, minus) if self.inverse else (minus, plus)

    def _combined(self, start: Any, terms: Any) -> Any:
        """Return start plus the sum of coefficient * value; no start is zero."""
        for coefficient, value in terms:
            factor = self.emit.constant(coefficient)
            if start is None:
                start = tuple(self.emit.builder.fmul(part, factor) for part in value)
            else:
                start = tuple(self.emit.fma(part, factor, sum_) for part, sum_ in zip(value, start, strict=True))
        return start

    def __call__(self, x: list[Any]) -> list[Any]:
        """The transform of R complex values."""
        r = len(x)
        if r == 2:
            return [self._add(x[0], x[1]), self._sub(x[0], x[1])]
        if r == 4:
            even, odd = self._add(x[0], x[2]), self._add(x[1], x[3])
            second, fourth = self._turned(self._sub(x[0], x[2]), self._sub(x[1], x[3]))
            return [self._add(even, odd), second, self._sub(even, odd), fourth]
        half = range(1, r // 2 + 1)
        sums = {j: self._add(x[j], x[r - j]) for j in half}
        differences = {j: self._sub(x[j], x[r - j]) for j in half}
        y = [functools.reduce(self._add, sums.values(), x[0])] + [None] * (r - 1)
        for k in half:
            angles = {j: 2 * math.pi * j * k / r for j in half}
            centre = self._combined(x[0], [(math.cos(angles[j]), sums[j]) for j in half])
            part = self._combined(None, [(math.sin(angles[j]), differences[j]) for j in half])
            y[k], y[r - k] = self._turned(centre, part)
        return y


@intrinsic(prefer_literal=True)
def stage(
    typingctx: Any, REAL: Any, VL: Any, R: Any, INVERSE: Any, data: Any, blocks: Any, m: Any, twiddles: Any
) -> Any:  # fmt: skip
    """One stage in place: in each of the blocks of R * m rows, m transforms of R rows that are m apart.

    Forward, result j of transform k is multiplied by twiddle (k, j) afterwards; backward, before and conjugated. Those
    of k = 0 and j = 0 are one, and not read.
    """
    lanes, r, inverse = literal(VL), literal(R), bool(literal(INVERSE))
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data, blocks, m, twiddles = args[4:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        butterfly = _Butterfly(emit, inverse)
        const, add, mul = emit.const, emit.add, builder.mul
        vector = lanes * emit.item
        between = mul(m, const(2 * vector))
        block_bytes = mul(between, const(r))

        def times(value: Any, twiddle: Any) -> Any:
            w, v, minus_v = twiddle
            a, b = value
            return emit.fma(b, minus_v, builder.fmul(a, w)), emit.fma(b, w, builder.fmul(a, v))

        def transforms(first: Any, twiddle: list[Any]) -> None:
            def block(b: Any, _: list[Any]) -> list[Any]:
                rows = [add(first, mul(b, block_bytes))]
                for _j in range(r - 1):
                    rows.append(add(rows[-1], between))
                x = [(emit.load(row), emit.load(add(row, const(vector)))) for row in rows]
                if twiddle and inverse:
                    x[1:] = map(times, x[1:], twiddle)
                y = butterfly(x)
                if twiddle and not inverse:
                    y[1:] = map(times, y[1:], twiddle)
                for row, (re, im) in zip(rows, y, strict=True):
                    emit.store(re, row)
                    emit.store(im, add(row, const(vector)))
                return []

            emit.loop(blocks, block, [])

        def column(k: Any, _: list[Any]) -> list[Any]:
            k = add(k, const(1))
            here = add(twiddles, mul(k, const(2 * (r - 1) * emit.item)))
            twiddle = []
            for j in range(r - 1):
                w, v = (emit.load_broadcast(add(here, const((2 * j + part) * emit.item))) for part in range(2))
                negative = builder.fneg(v)
                twiddle.append((w, negative, v) if inverse else (w, v, negative))
            transforms(add(data, mul(k, const(2 * vector))), twiddle)
            return []

        transforms(data, [])
        emit.loop(builder.sub(m, const(1)), column, [])
        return context.get_dummy_value()

    return types.void(REAL, VL, R, INVERSE, *[types.intp] * 4), codegen


@intrinsic(prefer_literal=True)
def multiply_rows(typingctx: Any, REAL: Any, VL: Any, CONJUGATE: Any, data: Any, other: Any, count: Any) -> Any:
    """Multiply rows of complex vectors by others, or by their conjugates, in place; other may be data."""
    lanes, conjugate = literal(VL), bool(literal(CONJUGATE))
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data, other, count = args[3:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        vector = lanes * emit.item

        def row(i: Any, _: list[Any]) -> list[Any]:
            along = builder.mul(i, emit.const(2 * vector))
            here, there = emit.add(data, along), emit.add(other, along)
            a, b = emit.load(here), emit.load(emit.add(here, emit.const(vector)))
            w, v = emit.load(there), emit.load(emit.add(there, emit.const(vector)))
            if conjugate:
                v = builder.fneg(v)
            emit.store(emit.fma(builder.fneg(b), v, builder.fmul(a, w)), here)
            emit.store(emit.fma(b, w, builder.fmul(a, v)), emit.add(here, emit.const(vector)))
            return []

        emit.loop(count, row, [])
        return context.get_dummy_value()

    return types.void(REAL, VL, CONJUGATE, *[types.intp] * 3), codegen


@intrinsic(prefer_literal=True)
def sum_products(
    typingctx: Any, REAL: Any, VL: Any, ADD: Any, target: Any, values: Any, values_step: Any, others: Any,
    others_step: Any, terms: Any, count: Any,
) -> Any:  # fmt: skip
    """Sum rows of complex vectors times the conjugates of others, over `terms` arrays of `count` rows.

    The arrays lie `values_step` and `others_step` bytes apart; `target` may be the first of them. With ADD the sum is
    added to what is there.
    """
    lanes, adds = literal(VL), bool(literal(ADD))
    real = REAL.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target, values, values_step, others, others_step, terms, count = args[3:]
        emit = Emitter(builder, scalar_ir(real), lanes)
        vector = emit.const(lanes * emit.item)
        zero = emit.constant(0.0)

        def row(i: Any, _: list[Any]) -> list[Any]:
            along = builder.mul(i, emit.const(2 * lanes * emit.item))
            here = emit.add(target, along)
            start = [emit.load(here), emit.load(emit.add(here, vector))] if adds else [zero, zero]

            def term(c: Any, sums: list[Any]) -> list[Any]:
                one = emit.add(values, emit.add(along, builder.mul(c, values_step)))
                other = emit.add(others, emit.add(along, builder.mul(c, others_step)))
                a, b = emit.load(one), emit.load(emit.add(one, vector))
                w, v = emit.load(other), emit.load(emit.add(other, vector))
                re, im = sums
                re = emit.fma(b, v, emit.fma(a, w, re))
                im = emit.fma(builder.fneg(a), v, emit.fma(b, w, im))
                return [re, im]

            re, im = emit.loop(terms, term, start)
            emit.store(re, here)
            emit.store(im, emit.add(here, vector))
            return []

        emit.loop(count, row, [])
        return context.get_dummy_value()

    return types.void(REAL, VL, ADD, *[types.intp] * 7), codegen


@functools.cache
def transform(dtype: str, lanes: int) -> CFunc:
    """The part of kernels that transforms n rows of a panel in place; `table` is the address of their `TABLE`."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL = int(lanes)

    def transform_rows(data, table, n, inverse):
        t = record_at(table, TABLE)
        radices = array_at(t.radices, t.stages, np.int64)
        twiddles, m = t.twiddles, n
        if inverse == 0:
            for s in range(t.stages):
                r = radices[s]
                blocks, m = n // m, m // r
                if r == 4:
                    stage(REAL, VL, 4, 0, data, blocks, m, twiddles)
                elif r == 2:
                    stage(REAL, VL, 2, 0, data, blocks, m, twiddles)
                elif r == 3:
                    stage(REAL, VL, 3, 0, data, blocks, m, twiddles)
                else:
                    stage(REAL, VL, 5, 0, data, blocks, m, twiddles)
                twiddles += 2 * (r - 1) * m * ITEM
            return
        for s in range(t.stages):
            m //= radices[s]
            twiddles += 2 * (radices[s] - 1) * m * ITEM
        for s in range(t.stages - 1, -1, -1):
            r = radices[s]
            blocks = n // (m * r)
            twiddles -= 2 * (r - 1) * m * ITEM
            if r == 4:
                stage(REAL, VL, 4, 1, data, blocks, m, twiddles)
            elif r == 2:
                stage(REAL, VL, 2, 1, data, blocks, m, twiddles)
            elif r == 3:
                stage(REAL, VL, 3, 1, data, blocks, m, twiddles)
            else:
                stage(REAL, VL, 5, 1, data, blocks, m, twiddles)
            m *= r

    return jit.part(transform_rows)
