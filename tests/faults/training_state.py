"""Row 33 for a training that is not finished: its state damaged, then the same command again."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

from faultlib import Tally
from learning import _damaged, toys
from rows import named, row, trials_in_time
from verbs import VERB_ROWS


@row("33", "state of an unfinished training flipped, cut, swapped; resume", full=1000, gate=12,
     into=VERB_ROWS)  # fmt: skip
def bad_state(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    from models import SMALL

    from ripple.errors import IntegrityError
    from ripple.learn.config import TrainConfig
    from ripple.learn.training.train import train

    options = SMALL | {"epochs": 3, "draws": 3, "seeds": 2, "tensors": [str(toys(directory, 40))]}
    begun = directory / "begun"
    begin(TrainConfig.make(options | {"output": str(begun)}))
    names = sorted(p.name for p in (begun / ".train").iterdir())
    for trial in trials_in_time(trials):
        tally.trials, here = trial + 1, directory / f"state-{trial}"
        shutil.copytree(begun, here)
        path = here / ".train" / names[trial % len(names)]
        whole, kind = path.read_bytes(), rng.choice(["flip", "flip", "cut", "longer", "zeros", "other"])
        other = here / ".train" / rng.choice([n for n in names if n != path.name])
        damaged = other.read_bytes() if kind == "other" else _damaged(whole, kind, rng)
        path.write_bytes(damaged if damaged != whole else whole + b"x")
        try:
            train(TrainConfig.make(options | {"output": str(here)}))
            tally.silent += 1
            tally.note(f"{path.name} {kind}: trained on")
        except IntegrityError as err:
            named(tally, str(err), path.name)
        if (here / "model.json").exists():
            tally.silent += 1
            tally.note(f"{path.name} {kind}: a model was written")
        shutil.rmtree(here)


def begin(config: Any) -> None:
    """Train until the second member has two epochs behind it, as if a signal had come then."""
    from ripple.errors import Interrupted
    from ripple.learn.training import loop
    from ripple.learn.training.train import train

    original = loop._print_epoch

    def say(progress: Any, options: Any, seed: int) -> None:
        if seed != options.seed and progress.epoch == 2:
            raise Interrupted(15)

    loop._print_epoch = say
    try:
        train(config)
    except Interrupted:
        pass
    finally:
        loop._print_epoch = original
