"""The operation itself: fully masked rows, the float64 reference, attention that is safe with them."""
