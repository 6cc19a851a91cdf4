"""float16 weights of a bundle's graph kept as they are by OpenVINO, instead of all of them turned to float32 at load.

The graphs hold such weights as a constant and a Cast. OpenVINO carries that out while it compiles, which takes twice the
weights' float32 size of memory, unless the Cast is marked as those of its own files are (ov::Decompression, of which only
the name counts: openvino/core/rt_info/decompression.hpp); then each layer converts its own.
"""

# openvino's bindings are typed in part:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

_MARK = "decompression_0"
_LAYERS = ("MatMul", "Convolution", "Gather")  # others want their constants folded


def keep_half_weights(model: Any) -> int:
    """Mark every float16 weight of a layer in `model`, an openvino.Model, in place; their number."""
    marked = 0
    for cast in model.get_ops():
        if cast.get_type_name() != "Convert" or cast.get_input_element_type(0).get_type_name() != "f16":
            continue
        readers = {port.get_node().get_type_name() for port in cast.output(0).get_target_inputs()}
        if cast.input_value(0).get_node().get_type_name() == "Constant" and readers <= set(_LAYERS):
            cast.get_rt_info()[_MARK] = ""
            marked += 1
    return marked
