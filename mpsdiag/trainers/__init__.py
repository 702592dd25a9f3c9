"""MPSSafeTrainer, its variants, losses on the CPU, and callbacks."""
