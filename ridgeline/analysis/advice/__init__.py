"""``ridgeline advise``: what bounds a workload, and what each technique would gain."""

from ridgeline.analysis.advice.advise import Advice, Suggestion, advise
from ridgeline.analysis.advice.plan import Outcome, Plan, Speculation, Workbench

__all__ = ["Advice", "Outcome", "Plan", "Speculation", "Suggestion", "Workbench", "advise"]
