"""`keep.keep` as a kernel of our own, for streams of CUDA. TensorRT has no plan for it, and none is to be made at run time.

The kernel is PTX, NVIDIA's portable assembly, which the driver compiles in milliseconds. No compiler is installed for it.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Mapping
from typing import Any

from sdturbo.backends.keep import KEEP
from sdturbo.backends.nvidia.gpus import CudaError, check
from sdturbo.backends.nvidia.stream import CudaStream
from sdturbo.backends.recording import Buffer, Work
from sdturbo.errors import BackendUnavailable

THREADS = 256  # of a block
_TENSORS = [spec.name for spec in (*KEEP.inputs, *KEEP.outputs)]

# One thread per value. Every product and sum says how it rounds (`.rn`), so the driver's compiler joins none of them.
PTX = b"""
.version 6.4
.target sm_75
.address_size 64

.visible .entry keep(
    .param .u64 latents, .param .u64 start, .param .u64 noise, .param .u64 mask, .param .u64 sigma, .param .u64 kept,
    .param .s32 count)
{
    .reg .pred %out;
    .reg .b32 %r<5>;
    .reg .f32 %f<12>;
    .reg .b64 %at, %p<13>;

    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %tid.x;
    mad.lo.s32 %r4, %r1, %r2, %r3;
    ld.param.s32 %r0, [count];
    setp.ge.s32 %out, %r4, %r0;
    @%out bra done;
    mul.wide.s32 %at, %r4, 4;

    ld.param.u64 %p1, [latents];
    ld.param.u64 %p2, [start];
    ld.param.u64 %p3, [noise];
    ld.param.u64 %p4, [mask];
    ld.param.u64 %p5, [sigma];
    ld.param.u64 %p6, [kept];
    cvta.to.global.u64 %p1, %p1;
    cvta.to.global.u64 %p2, %p2;
    cvta.to.global.u64 %p3, %p3;
    cvta.to.global.u64 %p4, %p4;
    cvta.to.global.u64 %p5, %p5;
    cvta.to.global.u64 %p6, %p6;
    add.s64 %p7, %p1, %at;
    add.s64 %p8, %p2, %at;
    add.s64 %p9, %p3, %at;
    add.s64 %p10, %p4, %at;
    add.s64 %p12, %p6, %at;
    ld.global.f32 %f1, [%p7];
    ld.global.f32 %f2, [%p8];
    ld.global.f32 %f3, [%p9];
    ld.global.f32 %f4, [%p10];
    ld.global.f32 %f5, [%p5];

    mul.rn.f32 %f6, %f3, %f5;
    add.rn.f32 %f7, %f2, %f6;
    mov.f32 %f0, 0f3F800000;
    sub.rn.f32 %f8, %f0, %f4;
    mul.rn.f32 %f9, %f7, %f8;
    mul.rn.f32 %f10, %f1, %f4;
    add.rn.f32 %f11, %f9, %f10;
    st.global.f32 [%p12], %f11;
done:
    ret;
}
\0"""


class KeepKernel:
    """`device.Engine` of the kernel on GPU `index`. Raises BackendUnavailable if the driver does not load it."""

    recordable = True

    def __init__(self, index: int) -> None:
        from cuda.bindings import driver, runtime

        self.lock = threading.Lock()
        self._driver, self._device = driver, f"cuda:{index}"
        CudaStream(index).handle()  # makes the context that the driver's functions need
        try:
            module = check(driver.cuModuleLoadData(PTX))
            self._function = check(driver.cuModuleGetFunction(module, KEEP.name.encode()))
        except CudaError as error:
            raise BackendUnavailable(
                f"The GPU {self._device} does not load the kernel of inpainting: {error}. Look at nvidia-smi, or update the"
                " driver."
            ) from error

        def unload() -> None:
            runtime.cudaSetDevice(index)
            driver.cuModuleUnload(module)

        weakref.finalize(self, unload).atexit = False  # at the end of the process the driver frees everything

    def bind(self, buffers: Mapping[str, Buffer], stream: CudaStream) -> Work:
        ordered = [buffers[name] for name in _TENSORS]
        count = int(ordered[-1].host.size)
        types: tuple[Any, ...] = (*[ctypes.c_void_p] * len(ordered), ctypes.c_int)
        blocks = -(-count // THREADS)

        def launch() -> None:
            handle = stream.handle()
            values = (*(int(buffer.device.address) for buffer in ordered), count)
            launched = self._driver.cuLaunchKernel(
                self._function, blocks, 1, 1, THREADS, 1, 1, 0, handle, (values, types), 0
            )
            try:
                check(launched)
            except CudaError as error:
                message = f"The GPU {self._device} failed to launch the kernel of inpainting: {error}."
                raise BackendUnavailable(message) from error

        return launch
