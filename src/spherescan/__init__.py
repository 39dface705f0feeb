"""Train selective state-space models whose classes are points on a hypersphere, on CPUs."""

__version__ = "0.1.0"
