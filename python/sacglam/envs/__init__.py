"""Text environments: the protocol and its checker, the built-in playground, adapters, vectors."""

from sacglam.envs.checker import check_env
from sacglam.envs.protocol import TextEnv
from sacglam.envs.registry import list_envs, make_env, register_env

__all__ = ["TextEnv", "check_env", "list_envs", "make_env", "register_env"]
