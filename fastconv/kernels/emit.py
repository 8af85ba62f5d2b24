"""Short names for the LLVM instructions that the intrinsics are made of."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from fastconv.kernels.target import masks_have_registers

I64 = ir.IntType(64)
I32 = ir.IntType(32)


def literal(value: Any) -> int:
    """The integer of a compile-time argument of an intrinsic."""
    if not isinstance(value, types.IntegerLiteral):
        raise TypeError(f"a tile size must be a compile-time integer, got {value}")
    return value.literal_value


def scalar_ir(real: Any) -> ir.Type:
    """The LLVM type of a Numba floating-point type."""
    return {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}[real]


def _fma(builder: Any, scalar: ir.Type, lanes: int) -> tuple[ir.Type, Any]:
    """The vector type and the fused multiply-add that every target can do.

    ``llvm.fma`` on a CPU without FMA becomes a call of libm per lane; ``llvm.fmuladd`` becomes multiply and add.
    """
    vector = ir.VectorType(scalar, lanes)
    suffix = "f32" if isinstance(scalar, ir.FloatType) else "f64"
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{lanes}{suffix}"
    )
    return vector, function


FIRST_LEVEL, SECOND_LEVEL = 3, 2
"""Caches that a line is asked into: all levels, or all but the first."""


def ask(builder: Any, address: Any, level: int = FIRST_LEVEL) -> None:
    """Ask for the cache line at an address, which need not be one that may be read."""
    byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    flags = [ir.Constant(word, flag) for flag in (0, level, 1)]  # read, into which caches, data
    builder.call(function, [builder.inttoptr(address, byte), *flags])


class Emitter:
    """Short names for the LLVM instructions that the tiles are made of; addresses are int64 bytes."""

    def __init__(self, builder: Any, scalar: ir.Type, lanes: int) -> None:
        self.builder = builder
        self.scalar = scalar
        self.vector, self._fma = _fma(builder, scalar, lanes)
        self.item = 4 if isinstance(scalar, ir.FloatType) else 8
        self.vector_bytes = lanes * self.item
        self._undef = ir.Constant(self.vector, ir.Undefined)
        self._lane0 = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)

    def const(self, value: int) -> ir.Constant:
        """An int64 constant."""
        return ir.Constant(I64, value)

    def constant(self, value: float) -> ir.Constant:
        """A vector with one constant in all lanes."""
        return ir.Constant(self.vector, [value] * self.vector.count)

    def add(self, a: Any, b: Any) -> Any:
        """Sum of two integers."""
        return self.builder.add(a, b)

    def opaque(self, value: Any) -> Any:
        """The same int64, of which the optimiser knows nothing.

        Of addresses at multiples of a run-time step it would otherwise keep each in a register of its own, or spill it.
        """
        return self.builder.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [value], False)

    def load_int(self, address: Any) -> Any:
        """The int64 at an address."""
        return self.builder.load(self.builder.inttoptr(address, I64.as_pointer()))

    def load(self, address: Any) -> Any:
        """The vector at an address, which need not be aligned to it."""
        return self.builder.load(self.builder.inttoptr(address, self.vector.as_pointer()), align=self.item)

    def store(self, value: Any, address: Any) -> None:
        """Store a vector."""
        self.builder.store(value, self.builder.inttoptr(address, self.vector.as_pointer()), align=self.item)

    def limited(self, value: Any, low: Any, high: Any) -> Any:
        """An int64, but no less than `low` and no more than `high`."""
        builder = self.builder
        value = builder.select(builder.icmp_signed("<", value, low), low, value)
        return builder.select(builder.icmp_signed(">", value, high), high, value)

    def below(self, count: Any, first: int) -> Any:
        """A mask of the lanes whose number, counted from `first`, is below a count."""
        lanes = self.vector.count
        counts = ir.VectorType(I32, lanes)
        one = self.builder.insert_element(
            ir.Constant(counts, ir.Undefined), self.builder.trunc(count, I32), ir.Constant(I32, 0)
        )
        counts_of_all = self.builder.shuffle_vector(one, one, self._lane0)
        return self.builder.icmp_signed("<", ir.Constant(counts, list(range(first, first + lanes))), counts_of_all)

    def between(self, first: Any, last: Any) -> Any:
        """A mask of the lanes whose number is not below `first`, but below `last`: any two int64."""
        lanes, builder = self.vector.count, self.builder

        def bound(value: Any) -> Any:
            return builder.shl(self.const(1), self.limited(value, self.const(0), self.const(lanes)))

        high, low = bound(last), bound(first)
        bits = builder.select(builder.icmp_signed("<", low, high), builder.sub(high, low), self.const(0))
        return self.chosen(bits)

    def chosen(self, bits: Any) -> Any:
        """A mask of the lanes whose bits are set in an int64."""
        lanes, builder = self.vector.count, self.builder
        if masks_have_registers():
            return builder.bitcast(builder.trunc(bits, ir.IntType(lanes)), ir.VectorType(ir.IntType(1), lanes))
        # Without mask registers LLVM takes the bits out one by one: 25 instructions for 8 of them.
        word = ir.IntType(8 * self.item)
        words = ir.VectorType(word, lanes)
        one = builder.insert_element(
            ir.Constant(words, ir.Undefined), bits if word == I64 else builder.trunc(bits, word), ir.Constant(I32, 0)
        )
        own = ir.Constant(words, [1 << lane for lane in range(lanes)])
        met = builder.and_(builder.shuffle_vector(one, one, self._lane0), own)
        return builder.icmp_signed("!=", met, ir.Constant(words, None))

    def distinct(self, mask: Any) -> Any:
        """The same mask, of which the compiler does not know that it is the same."""
        bits = self.builder.zext(self.builder.bitcast(mask, ir.IntType(mask.type.count)), I64)
        return self.chosen(self.opaque(bits))

    def store_masked(self, value: Any, address: Any, mask: Any) -> None:
        """Store the lanes of a vector that a mask names, and touch no other place."""
        self.store_all_masked([value], [address], mask)

    def store_all_masked(self, values: list[Any], addresses: list[Any], mask: Any) -> None:
        """The same of several vectors, each at its address."""
        if masks_have_registers():
            for value, address in zip(values, addresses, strict=True):
                self._store_lanes(value, address, mask)
            return
        # Without mask registers this takes a dozen cycles (Zen 3), also where the mask names all lanes.
        every = ir.IntType(mask.type.count)
        whole = self.builder.icmp_signed("==", self.builder.bitcast(mask, every), ir.Constant(every, -1))
        with self.builder.if_else(whole) as (all_lanes, some_lanes):
            with all_lanes:
                for value, address in zip(values, addresses, strict=True):
                    self.store(value, address)
            with some_lanes:
                for value, address in zip(values, addresses, strict=True):
                    self._store_lanes(value, address, mask)

    def _store_lanes(self, value: Any, address: Any, mask: Any) -> None:
        pointer = self.vector.as_pointer()
        scalar = "f32" if self.item == 4 else "f64"
        kind = ir.FunctionType(ir.VoidType(), [self.vector, pointer, I32, mask.type])
        name = f"llvm.masked.store.v{self.vector.count}{scalar}.p0"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        place = self.builder.inttoptr(address, pointer)
        self.builder.call(function, [value, place, ir.Constant(I32, self.item), mask])

    def load_masked(self, address: Any, mask: Any) -> Any:
        """The lanes of a vector that a mask names, zero in the others; no other place is touched."""
        pointer = self.vector.as_pointer()
        scalar = "f32" if self.item == 4 else "f64"
        kind = ir.FunctionType(self.vector, [pointer, I32, mask.type, self.vector])
        name = f"llvm.masked.load.v{self.vector.count}{scalar}.p0"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        place = self.builder.inttoptr(address, pointer)
        return self.builder.call(function, [place, ir.Constant(I32, self.item), mask, self.constant(0.0)])

    def transposed(self, vectors: list[Any]) -> list[Any]:
        """The columns of a square of as many vectors as they have lanes."""
        lanes, half = len(vectors), len(vectors) // 2
        low = [lane for i in range(half) for lane in (i, lanes + i)]
        high = [lane + half for lane in low]
        # Each round interleaves the first half of the vectors with the second; as many rounds as lanes has bits.
        for _ in range(lanes.bit_length() - 1):
            pairs = zip(vectors[:half], vectors[half:], strict=True)
            masks = [ir.Constant(ir.VectorType(I32, lanes), mask) for mask in (low, high)]
            vectors = [self.builder.shuffle_vector(a, b, mask) for a, b in pairs for mask in masks]
        return vectors

    def sum_lanes(self, value: Any) -> Any:
        """The sum of a vector's lanes, added pairwise."""
        lanes = self.vector.count
        while lanes > 1:
            lanes //= 2
            others = [*range(lanes, 2 * lanes), *range(self.vector.count - lanes)]
            mask = ir.Constant(ir.VectorType(I32, self.vector.count), others)
            value = self.builder.fadd(value, self.builder.shuffle_vector(value, value, mask))
        return self.builder.extract_element(value, ir.Constant(I32, 0))

    def sums_of_lanes(self, vectors: list[Any]) -> Any:
        """The sum of each of these vectors' lanes, in the order of the vectors: at most as many as they have lanes."""
        lanes = self.vector.count
        even, odd = (ir.Constant(ir.VectorType(I32, lanes), [*range(first, 2 * lanes, 2)]) for first in (0, 1))
        # Each round adds neighbours, and halves what is left of each vector; the last of an odd number is its own pair.
        for _ in range(lanes.bit_length() - 1):
            pairs = [(vectors[i], vectors[min(i + 1, len(vectors) - 1)]) for i in range(0, len(vectors), 2)]
            shuffle = self.builder.shuffle_vector
            vectors = [self.builder.fadd(shuffle(a, b, even), shuffle(a, b, odd)) for a, b in pairs]
        return vectors[0]

    def lanes_of(self, vector: Any, numbers: list[int]) -> Any:
        """The lanes of these numbers, in that order."""
        order = ir.Constant(ir.VectorType(I32, self.vector.count), numbers)
        return self.builder.shuffle_vector(vector, vector, order)

    def broadcast(self, scalar: Any) -> Any:
        """A vector with one scalar in all lanes."""
        one = self.builder.insert_element(self._undef, scalar, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(one, self._undef, self._lane0)

    def load_broadcast(self, address: Any) -> Any:
        """The scalar at an address in all lanes."""
        return self.broadcast(self.builder.load(self.builder.inttoptr(address, self.scalar.as_pointer())))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """Multiply a by b and add c."""
        return self.builder.call(self._fma, [a, b, c])

    def loop(self, count: Any, body: Any, carried: list[Any]) -> list[Any]:
        """``for i in range(count)`` with loop-carried values; `body(i, values)` returns the next ones."""
        builder = self.builder
        before = builder.block
        head = builder.append_basic_block()
        work = builder.append_basic_block()
        done = builder.append_basic_block()
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(I64)
        index.add_incoming(self.const(0), before)
        values = []
        for value in carried:
            phi = builder.phi(value.type)
            phi.add_incoming(value, before)
            values.append(phi)
        builder.cbranch(builder.icmp_signed("<", index, count), work, done)
        builder.position_at_end(work)
        following = body(index, values)
        for phi, value in zip(values, following, strict=True):
            phi.add_incoming(value, builder.block)
        index.add_incoming(builder.add(index, self.const(1)), builder.block)
        builder.branch(head)
        builder.position_at_end(done)
        return values
