"""Fault models: how a defect changes what a kernel reads, keeps or writes. One file an idea."""
