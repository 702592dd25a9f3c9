"""The cells of a matrix on several machines, through dask.distributed."""
