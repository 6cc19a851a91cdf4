from typing import Any

from numpy.typing import NDArray
from openvino import Node, Tensor

class Constant(Node):
    def __init__(self, tensor: Tensor) -> None: ...
    @property
    def data(self) -> NDArray[Any]: ...
    def get_data(self) -> NDArray[Any]: ...
