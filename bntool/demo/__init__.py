"""The whole tour on real data: scikit-learn's digits, in about a minute on two cores."""

from bntool.demo.tour import Step as Step
from bntool.demo.tour import Tour as Tour
from bntool.demo.tour import demo as demo

__all__ = ["Step", "Tour", "demo"]
