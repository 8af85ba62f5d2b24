"""ONNX Runtime, with a graph of one Conv node."""

from __future__ import annotations

from typing import Any

from bench.contenders import Prepared, Task
from bench.libraries.base import Peer

_OPSET = 13
_IR_VERSION = 8  # the oldest that has this opset, so that a runtime older than the onnx package reads it


class OnnxRuntime(Peer):
    """onnxruntime, reading and writing arrays that are bound beforehand."""

    name = "onnxruntime"
    packages = ("onnxruntime", "onnx")
    directions = ("forward",)
    dtypes = ("float32",)
    packs = True

    def __init__(self, threads: int, packed: bool = False) -> None:
        super().__init__(threads, packed)
        import onnxruntime

        self.runtime = onnxruntime
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads

    def prepare(self, task: Task) -> Prepared:
        (x, w), y = task.channels_first(), task.zeros_channels_first()
        session = self.runtime.InferenceSession(
            self._model(task, x, w, y).SerializeToString(), self.options, providers=["CPUExecutionProvider"]
        )
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        if not self.packed:
            binding.bind_cpu_input("w", w)
        binding.bind_output("y", "cpu", 0, y.dtype, y.shape, y.ctypes.data)
        return Prepared(lambda: session.run_with_iobinding(binding), lambda _: task.channels_last(y), (x, w))

    def _model(self, task: Task, x: Any, w: Any, y: Any) -> Any:
        from onnx import helper, numpy_helper

        def described(name: str, array: Any) -> Any:
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)

        case = task.case
        node = helper.make_node(
            "Conv",
            ["x", "w"],
            ["y"],
            strides=case.stride,
            pads=(*case.padding, *case.padding),
            dilations=case.dilation,
            group=case.groups,
        )
        inputs = [described("x", x)] if self.packed else [described("x", x), described("w", w)]
        constants = [numpy_helper.from_array(w, "w")] if self.packed else []
        graph = helper.make_graph([node], "conv", inputs, [described("y", y)], constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
