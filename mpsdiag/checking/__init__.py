"""`mpsdiag check`: combines probes, scenario and fixes into a verdict."""
