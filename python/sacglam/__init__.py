"""sacglam: a fast trainer for SAC-GLAM, soft actor-critic with hindsight for language-model agents."""

__version__ = "0.1.0"
