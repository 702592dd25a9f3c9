"""The folder that `mpsdiag run` puts on PYTHONPATH. Nothing is imported from here but `sitecustomize`."""
