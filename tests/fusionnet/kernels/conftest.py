"""These tests run the kernels: on a GPU where there is one, else by Triton's interpreter, in
processes that tests/test_interpreted.py starts.
"""

import os

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.9 warns where it is unset
