"""Does a server answer with a release as the release was when it was exported?"""

from __future__ import annotations

import shutil

from cascade.artifact import Array
from cascade.errors import CascadeError
from cascade.spec import ENSEMBLE
from export.releases.canary import Canary
from export.releases.control import Control
from export.releases.repository import NEXT, Repository, configs_of


class TrialError(CascadeError):
    """It does not. What was live before still is."""


def before_switch(repository: Repository, control: Control, number: int, canary: Canary) -> None:
    """Ask the members of a release that is not live, one after the other, as the ensemble would.

    Raises:
        ControlError: there is no answer.
        TrialError: it is another one.
    """
    known = {"dense": canary.dense, "categorical": canary.categorical}
    configs = configs_of(repository.root, number)
    if repository.members() == [ENSEMBLE]:
        known |= _alone(repository, control, number, known)
    else:
        for member in repository.members():
            inputs = {t.name: known[t.name] for t in configs[member].input if t.name in known}
            known |= control.ask(member, number, inputs)
    _compare(canary, known, f"release {number}")


def after_switch(control: Control, number: int, canary: Canary) -> None:
    """Ask what clients ask.

    Raises:
        ControlError: there is no answer.
        TrialError: it is another one, or another release's.
    """
    users = {"dense": canary.dense, "categorical": canary.categorical}
    answer = control.ask(ENSEMBLE, None, users)
    if (found := {*answer["release"][:, 0].tolist()}) != {number}:
        raise TrialError(f"release {number} was switched to, and {sorted(found)} answers")
    _compare(canary, answer, f"release {number}, live")


def _alone(
    repository: Repository, control: Control, number: int, inputs: dict[str, Array]
) -> dict[str, Array]:
    """One process is the whole cascade, and loading it is the switch: try it under another name."""
    name, *_ = repository.alias(NEXT, number)
    try:
        control.load(name)
        answer = control.ask(name, number, inputs)
        control.unload(name)
    finally:
        for alias in repository.aliases(NEXT):
            shutil.rmtree(repository.root / alias)
    return answer


def _compare(canary: Canary, answer: dict[str, Array], who: str) -> None:
    wrong = [*canary.differences(answer["item_ids"], answer["scores"])]
    if wrong:
        raise TrialError(f"{who} answers the canary requests wrongly: {'; '.join(wrong)}")
