"""The claims, one a file. A claim asks for trials and turns their results into a finding."""
