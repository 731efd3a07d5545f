"""Norms as modules: those torch lacks, how each is made, and what takes a layer's place together with one."""
