"""From a machine to a verdict: the scenario through stock transformers, the evidence, what follows from it."""

from mpsdiag.diagnosis.examination import check

__all__ = ["check"]
