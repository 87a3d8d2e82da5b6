"""Have Triton compile the one C module that it loads into every process, into its cache, or find it there.

    TRITON_LIBCUDA_PATH=/stub LD_LIBRARY_PATH=/stub TRITON_CACHE_DIR=... python triton_launcher.py

/stub holds an empty libcuda.so.1, which stands in for the driver's; what is undefined in it is looked up when it is
called, so nothing may be.  Fails where there is neither a compiler nor the module.
"""

import os
import sys

sys.setdlopenflags(os.RTLD_LAZY)

from triton.backends.nvidia.driver import CudaUtils  # noqa: E402 - the flags are read when it loads the module

CudaUtils()
