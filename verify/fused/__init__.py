"""What the fused log-partition and its gradients ought to give, and how far correct loops may be from it."""
