"""What a device multiplies in hardware.

torch computes bf16 on any CPU, but emulates it where instructions for it are missing: before AMD's
Zen 4, Intel's Sapphire Rapids and ARM's v8.6. There it is slower than fp32 (by how much:
benchmarks/results/LOG.md).
"""

import torch

# as torch.cpu.get_capabilities names them; the last two are ARM's
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether a CPU or GPU has instructions for products in bf16.

    What cannot be known (torch before 2.13 on a CPU) counts as no.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # without oneDNN, torch does not use them
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in BF16_INSTRUCTIONS)
