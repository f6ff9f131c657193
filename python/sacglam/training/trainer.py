"""The loop: act, store, learn, log, evaluate, save."""

from __future__ import annotations

import time
import warnings
import weakref
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..config import TrainConfig
from ..envs.protocol import validate_reset
from ..envs.vector import close
from ..errors import (
    CheckpointError,
    ConfigError,
    DeviceMemoryError,
    DivergedError,
)
from ..files import shell_word, write_json
from ..models.device import use_device
from ..models.policy import load_saved_policy
from ..models.tiny import TINY
from . import checkpoint, evaluation, setup, signals
from .algorithm import make_algorithm
from .beginning import begun_from, keep_heads
from .callbacks import Callback, checked
from .checks import refuse_below
from .clock import Clock
from .contention import Contention
from .lock import exclusive
from .metrics import Meter, MetricsWriter, drop_after
from .parts import smaller_part
from .progress import shown
from .result import TrainResult
from .run_folder import load_run_config, refuse_foreign_progress, refuse_used_folder
from .seeds import ACTING, generator

if TYPE_CHECKING:
    from typing_extensions import Self


class Trainer:
    """Trains a language-model agent with SAC and hindsight relabeling, or with PPO.

    Args:
        config: everything that determines the run.
        env: a user's environment object (copied), or a function that makes one; by default
            `config.env.id` is made.
        model: a user's `(model, tokenizer)`; by default `config.model.id` is loaded.
        callbacks: told of episodes, log lines and checkpoints.
        resume: continue the run in `config.out` from its newest checkpoint.

    Raises:
        RunFolderError: `config.out` already holds a run (or, when resuming, holds none).
        EnvironmentProtocolError: the environment breaks a rule, which is named.
        ConfigError, UnknownEnvironmentError, UnknownModelError, UnsupportedModelError: see there.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        env: Any = None,
        model: tuple[Any, Any] | None = None,
        callbacks: Sequence[Callback] = (),
        resume: bool = False,
    ) -> None:
        if not isinstance(config, TrainConfig):
            raise ConfigError(
                f"config is a {type(config).__name__}; give a TrainConfig, e.g. "
                'TrainConfig().with_overrides({"total_steps": 1000})'
            )
        self.out = Path(config.out)
        if not resume:
            refuse_used_folder(self.out)
        self.callbacks = checked(callbacks)
        begun = None
        if not resume:
            config, begun = begun_from(config, model)
            model = model if begun is None else (begun.model, begun.tokenizer)
        config = setup.named(config, env)
        probe = setup.env_factory(config, env)()
        self.config = config = setup.resolve(config, probe, model)
        if config.threads:
            torch.set_num_threads(config.threads)
        use_device(config.device)
        self._reset_options = setup.reset_options(probe, config.env.split)
        self._has_expert = setup.attribute(probe, "expert_action") is not None
        self._envs = setup.make_envs(config, env)
        self._eval_envs = setup.make_envs(config, env)
        # Also where nobody calls close: at the end of this object, or of the program.
        self._close = weakref.finalize(self, _close, self._envs, self._eval_envs)
        resumed = checkpoint.latest_checkpoint(self.out) if resume else None
        if resumed is not None:
            with checkpoint.older_one_named(self.out, resumed):
                checkpoint.verify(resumed)
                self.policy = load_saved_policy(
                    resumed / "policy",
                    device=config.device,
                    trust_remote_code=config.model.trust_remote_code,
                )
        else:
            self.policy = setup.make_policy(config, probe, model)
            if begun is not None:
                keep_heads(self.policy, begun)
        self._check_segments(probe)
        close(probe)
        self._noise = generator(config.seed, ACTING)
        self.algorithm = make_algorithm(
            config, self.policy, self._envs, self._noise, self._reset_options
        )
        self.meter = Meter()
        self.env_steps = 0
        self._handled = 0  # the step after which all was done that was due then
        self.clock = Clock()
        self._stop = self._finish = False
        self._until = config.total_steps  # where `train` ends
        self._updating = False
        self._checkpoint = resumed  # the newest one, which is of this trainer's state or before
        self._begun = resumed is not None
        self._saved_s = time.monotonic()
        if resumed is not None:
            self._restore(resumed)

    @classmethod
    def resume(
        cls,
        out: str | Path,
        *,
        total_steps: int | None = None,
        micro_batch: int | None = None,
        threads: int | None = None,
        env: Any = None,
        callbacks: Sequence[Callback] = (),
    ) -> Trainer:
        """The trainer of a run that was stopped, ready to go on where its last checkpoint is.

        Args:
            out: the run's folder.
            total_steps: a new end, to train longer than first planned.
            micro_batch: a new `optim.micro_batch`, to train with less memory, or faster.
            threads: a new number of torch's CPU threads; their sums round differently.
            env: as for `Trainer`, if the run had a user's own environment.
            callbacks: as for `Trainer`.
        """
        folder = Path(out)
        config = load_run_config(folder, "holds no run to resume")
        config = config.with_overrides({"out": str(folder)})
        new = {
            "total_steps": total_steps,
            "optim.micro_batch": micro_batch,
            "threads": threads,
        }
        config = config.with_overrides({k: v for k, v in new.items() if v is not None})
        trainer = cls(config, env=env, callbacks=callbacks, resume=True)
        if total_steps is not None and total_steps < trainer.env_steps:
            raise ConfigError(
                f"total_steps is {total_steps}, but the run in {folder} has made "
                f"{trainer.env_steps} steps already; give more, or leave it away"
            )
        return trainer

    # --- the loop -----------------------------------------------------------------------------

    def train(self, until: int | None = None, *, progress: bool = False) -> TrainResult:
        """Run to `total_steps`, save and evaluate; Ctrl-C, SIGTERM and SIGHUP end it earlier.

        Then it is saved without an evaluation, and another call goes on.

        Args:
            until: pause as soon as so many environment steps are made, for a run in stages: it is
                saved without an evaluation, and another call goes on as if it had not paused.
            progress: show how far it is, and how it learns: live on a terminal, else by lines.

        Raises:
            ConfigError: `until` is no whole number, or below 0.
            DivergedError: a loss became NaN; a checkpoint from just before is saved.
            DeviceMemoryError: the GPU's memory ran out; likewise.
            EnvironmentProtocolError: an environment broke the protocol; likewise, as after any
                error of an environment or a callback.
            RunFolderError: another process or trainer is training in the folder, or did since this
                trainer was made; or the folder cannot be written to.
        """
        if until is not None:
            refuse_below("until", until, 0)
        total = self.config.total_steps
        result, paused = None, False
        display = shown(self) if progress else nullcontext()
        with exclusive(self.out), display, signals.stopping(self.stop):
            self._until = total if until is None else min(until, total)
            try:
                self._run()
                reached = not self._goes_on
                paused = reached and not self._stop and self.env_steps < total
                if self._finish or (reached and self.env_steps >= total):
                    self._stop = self._stop and not self._finish
                    self._warn_if_untrained()
                    with suppress(_Stopped):
                        result = self._final_evaluation()
            finally:
                self._stop = self._finish = False
        return TrainResult(
            self.out, self.env_steps, self.algorithm.updates, self.clock.wall_s, self.policy,
            result, interrupted=result is None and not paused,
        )  # fmt: skip

    def stop(self, *, finish: bool = False) -> None:
        """Have `train` end as Ctrl-C does: after the step or update under way, saved. From a
        callback, or from another thread.

        finish: evaluate then as at the end, for the run is good enough.
        """
        self._stop, self._finish = True, self._finish or finish
        for callback in self.callbacks:
            callback.on_interrupt()

    def close(self) -> None:
        """Close the environments, and end the processes that they ran in; the policy stays."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        steps, updates = self.env_steps, self.algorithm.updates
        return (
            f"Trainer({str(self.out)!r}, {steps:,} of {self.config.total_steps:,} environment "
            f"steps, {updates:,} updates)"
        )

    def _run(self) -> None:
        """Up to the checkpoint at the end."""
        config = self.config
        self._updating = False
        if not self._begun and (self.out / "config.yaml").exists():  # another trainer was faster
            refuse_used_folder(self.out, locked=True)
        refuse_foreign_progress(self.out, self._checkpoint)
        drop_after(self.out, self._handled)
        saved_at = self._position if self._begun else None
        self._begin()
        if self.env_steps == 0 and not (self.out / "baselines.json").exists():
            with suppress(_Stopped):  # then the loop ends at once, and saves
                write_json(self.out / "baselines.json", self._baselines())
        writer = MetricsWriter(self.out, self._handled)
        algorithm = self.algorithm
        since = (self.clock.wall_s, self.env_steps, algorithm.updates)
        self._saved_s = time.monotonic()
        contention = Contention()
        self.clock.start()
        try:
            while self._goes_on and not self._stop:
                if self._handled == self.env_steps and not self._behind:
                    self._collect()
                self._learn()
                if self._behind:  # told to stop; the rest is done when the run goes on
                    break
                before = self.env_steps - config.env.num_envs
                evaluates = _crossed(before, self.env_steps, config.eval.interval)
                if evaluates or _crossed(before, self.env_steps, config.log_interval):
                    now = (self.clock.wall_s, self.env_steps, algorithm.updates)
                    wall_s, steps, updates = (n - s for n, s in zip(now, since, strict=True))
                    self._log(writer, (steps / wall_s, updates / wall_s), evaluates)
                    if self.policy.device.type == "cpu":  # elsewhere its threads compute little
                        contention.look(torch.get_num_threads())
                    since = now
                self._handled = self.env_steps
                waited = 0 < config.checkpoint_minutes * 60 < time.monotonic() - self._saved_s
                if waited or _crossed(before, self.env_steps, config.checkpoint_interval):
                    self.save()
                    saved_at = self._position
        except DivergedError as error:
            folder = self.save()
            raise DivergedError(f"{error}. The run was saved in {folder}") from error
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory(error) from error
        except (Exception, SystemExit) as error:
            if self.algorithm.collector.whole and not self._updating:
                self._save_after(error)
            raise
        finally:
            self.clock.stop()
            writer.close()
        if saved_at != self._position:
            self.save()

    def _begin(self) -> None:
        """The first episodes, and what a run has beside its checkpoints."""
        if not self._begun:
            self.algorithm.collector.start()
            self._begun = True
            if self.config.model.id in TINY:
                self.policy.save_base(self.out / "model")
        self.config.save(self.out / "config.yaml")

    @property
    def _position(self) -> tuple[int, int, int]:
        return self.env_steps, self.algorithm.updates, self._handled

    @property
    def _behind(self) -> bool:
        """Whether the updates after the last step were left."""
        return self.algorithm.behind(self.env_steps)

    @property
    def _goes_on(self) -> bool:
        left = self._behind or self._handled != self.env_steps
        return left or self.env_steps < self._until

    def _collect(self) -> None:
        """One step in every environment."""
        collector, noise = self.algorithm.collector, self._noise.get_state()
        try:
            collector.step()
        except (Exception, SystemExit):
            if collector.ended is None:  # no step was made: others will be drawn as these were
                self._noise.set_state(noise)
            raise
        finally:
            results = collector.ended
            if results is not None:  # also where a new episode then failed to begin
                self.env_steps += self.config.env.num_envs
                for result in results:
                    self.meter.episode(result)
        assert results is not None
        for result in results:
            for callback in self.callbacks:
                callback.on_episode(result)
        self._tell_progress()

    def _learn(self) -> None:
        """The updates that are due, unless they can be left and the run is to stop."""
        updates = self.algorithm.learn(self.env_steps)
        while not (self._stop and self._behind):
            self._updating = True
            metrics = next(updates, None)
            self._updating = False
            if metrics is None:
                break
            self.meter.update(metrics)
            self._tell_progress()

    def _log(self, writer: MetricsWriter, rates: tuple[float, float], evaluates: bool) -> None:
        """One line of metrics, with an evaluation or without; `rates` are environment steps and
        updates per second."""
        found = None
        if evaluates:
            with suppress(_Stopped):  # then this line has no evaluation
                found = self._evaluate(self.config.eval.interval_episodes)
        metrics: dict[str, Any] = {
            "env_steps": self.env_steps,
            "updates": self.algorithm.updates,
            **self.clock.seconds(),
            **self.meter.line(),
            "env_steps_per_s": round(rates[0], 2),
            "updates_per_s": round(rates[1], 3),
        }
        if found is not None:
            metrics["eval"] = found
        writer.write(metrics)
        self.meter.clear()
        self._handled = self.env_steps
        for callback in self.callbacks:
            callback.on_log(metrics)

    # --- evaluation ---------------------------------------------------------------------------

    def evaluate(self, episodes: int, kind: str = "policy") -> dict[str, Any]:
        """Success on fresh episodes of "policy", "random" or "expert"; as in eval.json.

        Also from a callback. Its time is not counted as that of training, and it goes to its end
        where the run is to stop.

        Raises:
            ConfigError: another kind, or `episodes` is below 1.
        """
        refuse_below("episodes", episodes, 1)
        return self._evaluate(episodes, kind, to_the_end=True)

    def _evaluate(
        self, episodes: int, kind: str = "policy", *, to_the_end: bool = False
    ) -> dict[str, Any]:
        """Unless it is to go to its end, _Stopped is raised where the run is to stop."""
        seed, config = self.config.seed, self.config.eval
        choosers = {
            "policy": lambda: evaluation.policy_chooser(self.policy, config, seed),
            "random": lambda: evaluation.random_chooser(seed),
            "expert": lambda: evaluation.expert_chooser(self._eval_envs),
        }

        if kind not in choosers:
            raise ConfigError(f"kind is {kind!r}; choose one of {', '.join(choosers)}")

        def on_progress(ended: int) -> None:
            for callback in self.callbacks:
                callback.on_evaluation(kind, ended, episodes)
            on_step()

        def on_step() -> None:
            if self._stop and not to_the_end:
                raise _Stopped

        with self.clock.paused():
            return evaluation.evaluate(
                self._eval_envs,
                choosers[kind](),
                episodes=episodes,
                seed=seed,
                reset_options=self._reset_options,
                on_progress=on_progress,
                on_step=on_step,
            )

    def _baselines(self) -> dict[str, Any]:
        episodes = self.config.eval.episodes
        return {
            "baseline_random": self._evaluate(episodes, "random"),
            "untrained": self._evaluate(episodes),
            "expert": self._evaluate(episodes, "expert") if self._has_expert else None,
        }

    def _final_evaluation(self) -> dict[str, Any]:
        result = {
            "env_steps": self.env_steps,
            "updates": self.algorithm.updates,
            **self.clock.seconds(),
            **evaluation.settings(self.config.eval, self.config.env.split, self.config.seed),
            **self._evaluate(self.config.eval.episodes),
            **evaluation.read_baselines(self.out),
        }
        write_json(self.out / "eval.json", result)
        return result

    # --- saving and resuming ------------------------------------------------------------------

    def save(self) -> Path:
        """Write a complete checkpoint; returns its folder. Before `train`, it begins the run.

        Raises:
            CheckpointError: it cannot be written; the one before is kept.
            RunFolderError: before `train`, as there.
        """
        if not self._begun:
            with exclusive(self.out):
                refuse_used_folder(self.out, locked=True)
                self._begin()
        with checkpoint.writing(self.out, self.env_steps) as writer:
            self.policy.save(writer.folder / "policy", base=self.out / "model")
            learned = self.algorithm.save(writer)
            folder = writer.commit(
                {
                    "env_steps": self.env_steps,
                    "handled": self._handled,
                    "wall_s": self.clock.wall_s,
                    "cpu_s": self.clock.cpu_s,
                    "acting_generator": self._noise.get_state().tolist(),
                    "episodes": self.algorithm.collector.state(),
                    "meter": self.meter.state(),
                    **learned,
                }
            )
        checkpoint.prune(self.out, self.config.keep_checkpoints)
        self._checkpoint, self._saved_s = folder, time.monotonic()
        for callback in self.callbacks:
            callback.on_checkpoint(folder)
        return folder

    def _restore(self, folder: Path) -> None:
        with checkpoint.older_one_named(self.out, folder):
            state = checkpoint.read_state(folder)
            try:
                episodes = state["episodes"]
                self.algorithm.restore(folder, state)
                self.meter.restore(state["meter"])
                self.env_steps = state["env_steps"]
                self._handled = state.get("handled", self.env_steps)
                self.clock.add(state["wall_s"], state["cpu_s"])
                noise = torch.tensor(state["acting_generator"], dtype=torch.uint8, device="cpu")
                self._noise.set_state(noise)
            except torch.OutOfMemoryError:
                raise
            except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
                raise CheckpointError(f"{folder} is damaged: {error!r}") from error
            if len(episodes) != self._envs.num_envs:
                raise CheckpointError(
                    f"{folder} has {len(episodes)} episodes under way, and there are "
                    f"{self._envs.num_envs} environments"
                )
        # What an environment raises here says nothing of the checkpoint.
        self.algorithm.collector.restore(episodes)

    # --- small things -------------------------------------------------------------------------

    def _check_segments(self, env: Any) -> None:
        """Warn once if segments do not tokenise as the whole prompt does."""
        result = env.reset(seed=0, options=self._reset_options or None)
        observation, info = validate_reset(result)
        self.policy.codec.check(info["goal"], observation, info["possible_actions"])

    def _warn_if_untrained(self) -> None:
        """That the configuration left no room for an update was said before."""
        sac = self.config.algo == "sac"
        if sac and self.algorithm.updates == 0 < self.config.updates_due(self.env_steps):
            warnings.warn(
                f"no update was made: in {self.env_steps} environment steps no episode ended, and "
                "only those that have are learned from. Give the environment a time limit "
                "(--env.max-steps), or train longer (--total-steps)",
                RuntimeWarning,
                stacklevel=3,
            )

    def _save_after(self, error: BaseException) -> None:
        """Save, and have the error say so; if that fails too, the first error is what counts."""
        with suppress(Exception):
            folder = self.save()
            resume = f"sacglam train --resume {shell_word(self.out)}"
            note = f"The run was saved in {folder}; {resume} goes on"
            error.__notes__ = [*getattr(error, "__notes__", []), note]

    def _out_of_memory(self, error: torch.OutOfMemoryError) -> DeviceMemoryError:
        """Save, and say how to go on. The parameters are those after the last whole update."""
        folder = self.save()
        return DeviceMemoryError(
            f"{str(error).splitlines()[0]} The run was saved in {folder}. An update can be "
            "computed in smaller parts, with the same result: sacglam train --resume "
            f"{shell_word(self.out)} --optim.micro-batch {smaller_part(self.config)}"
        )

    def _tell_progress(self) -> None:
        for callback in self.callbacks:
            callback.on_progress(self.env_steps, self.algorithm.updates)


def _close(*envs: Any) -> None:
    for each in envs:
        each.close()


class _Stopped(Exception):
    """An evaluation was left, since the run is to stop."""


def _crossed(before: int, now: int, interval: int) -> bool:
    return interval > 0 and now // interval > before // interval
