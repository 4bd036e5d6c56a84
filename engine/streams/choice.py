"""Which streams a session's devices have."""

from pagedkv.engine.streams.stream import Streams
from pagedkv.engine.streams.threads import ThreadStreams
from pagedkv.reference.device import InferenceSession


def streams_for(session: InferenceSession) -> Streams:
    """CUDA streams if any device is a GPU, else threads."""
    if all(device.is_cpu() for device in session.devices):
        return ThreadStreams(len(session.devices))
    # Imported late: it looks for the driver.
    from pagedkv.engine.streams.cuda import CudaStreams

    return CudaStreams(session)
