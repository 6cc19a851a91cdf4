# isal's own stubs leave the type of the data out.
from typing import Any

from numpy.typing import NDArray

def compress(data: bytes | NDArray[Any], level: int = ...) -> bytes: ...
def crc32(data: bytes, value: int = ..., /) -> int: ...
