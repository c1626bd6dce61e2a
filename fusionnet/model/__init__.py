"""The fusion network, its heads and loss, and its fast form for evaluation."""
