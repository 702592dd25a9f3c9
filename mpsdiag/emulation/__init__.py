"""CPU models of the MPS attention kernels of torch 2.0 to 2.15, with their known defects.

Everything here is emulated: it shows what a release is known to do, not what a Mac was observed to do. Naming an
emulation, and refusing one that does not exist, needs no torch.
"""
