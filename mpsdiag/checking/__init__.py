"""`mpsdiag check`: probes, scenario and fixes put together into a verdict."""
