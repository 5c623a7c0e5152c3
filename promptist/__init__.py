"""Promptist as an HPC batch suite: prompt optimisation for text-to-image models by SFT and PPO."""

__version__ = "0.1.0"
