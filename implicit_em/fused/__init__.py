"""The log-partition in fused loops around the kernels' own code."""
