"""The whole tour on real data: scikit-learn's digits, in about a minute on two cores."""
