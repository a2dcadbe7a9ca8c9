"""Models of well-known packages: the logits are those of the packages' own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from cascade.located import LocatedError
from tests.export.converters import facebook_reference as facebook
from tests.export.converters.entries import (
    FIXTURES,
    IDS,
    INPUTS,
    SIZES,
    arguments,
    converted,
    form,
    rows,
)

PACKAGED = {
    "torchrec_dlrm": "torchrec_dlrm",
    "torchrec_dcn": "torchrec_dlrm",
    "deepctr_numbers": "deepctr_dcn",
    "deepctr_matrices": "deepctr_dcn",
}
CONFIG: dict[str, dict[str, Any]] = {
    "torchrec_dcn": {"pooling": "mean", "tables": ["t_user", "t_user", "t_item", "t_tags"]},
    "deepctr_matrices": {"activation": "sigmoid"},
}
TABLES = {"torchrec_dlrm": [f"t_{name}" for name in IDS], "deepctr_dcn": IDS}
LAYERS: dict[str, tuple[int, dict[str, Any]]] = {
    "dot": (4 + 10, {}), "dot with itself": (4 + 15, {"itself": True}),
    "cat": (20, {"interaction": "cat"}),
}  # fmt: skip


def entry(name: str) -> dict[str, Any]:
    inputs = {"ids": IDS} if name == "deepctr_matrices" else INPUTS
    weights = str(FIXTURES / f"{name}.pt")
    found = {"converter": PACKAGED[name], "weights": weights, "inputs": inputs}
    return found | ({"config": CONFIG[name]} if name in CONFIG else {})


def logits(folder: Path, entry: dict[str, Any]) -> Any:
    """Those of the module for all rows of the fixtures."""
    module = converted(folder, entry)
    with torch.no_grad():
        return module(
            *map(torch.from_numpy, arguments({"inputs": INPUTS} | entry).values())
        ).numpy()


@pytest.mark.parametrize("name", PACKAGED)
def test_the_logits_are_those_of_the_package(tmp_path: Path, name: str) -> None:
    np.testing.assert_allclose(logits(tmp_path, entry(name)), rows()[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["torchrec_dlrm", "deepctr_matrices"])
def test_the_graph_gives_the_logits_of_the_package(tmp_path: Path, name: str) -> None:
    given, path = entry(name), tmp_path / "model.onnx"
    form(tmp_path, given).write_onnx(arguments(given, 2), path)
    (found,) = onnxruntime.InferenceSession(path).run(None, arguments(given))
    np.testing.assert_allclose(found, rows()[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PACKAGED)
def test_safetensors_does_not_keep_the_order_of_tables(tmp_path: Path, name: str) -> None:
    state = torch.load(FIXTURES / f"{name}.pt", weights_only=True)
    save_file(state, tmp_path / "weights.safetensors")
    moved = entry(name) | {"weights": "weights.safetensors"}
    named = CONFIG.get(name, {}).keys() - {"tables"}
    unordered = {"config": {key: CONFIG[name][key] for key in named}}
    with pytest.raises(LocatedError, match="does not keep the order of the tables"):
        converted(tmp_path, moved | unordered)
    listed = {"config": {"tables": TABLES[PACKAGED[name]]} | CONFIG.get(name, {})}
    np.testing.assert_allclose(logits(tmp_path, moved | listed), rows()[name], rtol=0, atol=1e-5)


def members() -> list[list[list[int]]]:
    ids = rows()["ids"]
    single = [[[int(value)] for value in ids[:, column]] for column in range(3)]
    return [*single, [[int(tag) for tag in row if tag] for row in ids[:, 3:]]]


def saved(folder: Path, state: dict[str, Any], name: str = "dlrm.pt") -> str:
    torch.save({key: torch.from_numpy(value) for key, value in state.items()}, folder / name)
    return name


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("sigmoid", [-1, 0])
def test_facebook_dlrm_gives_the_logits_of_the_paper(
    tmp_path: Path, kind: str, sigmoid: int
) -> None:
    takes, options = LAYERS[kind]
    state = facebook.state([*SIZES.values()], 4, [3, 6, 4], [takes, 8, 1])
    weights, config = saved(tmp_path, state), {"sigmoid_bot": sigmoid}
    own = logits(tmp_path, {"converter": "facebook_dlrm", "weights": weights, "config": config})
    wanted = facebook.logits(state, rows()["dense"], members(), sigmoid_bot=sigmoid, **options)
    np.testing.assert_allclose(own, wanted, rtol=0, atol=1e-5)


def test_a_checkpoint_of_the_program_is_read(tmp_path: Path) -> None:
    """It holds metrics of NumPy, and the state of a model in DistributedDataParallel."""
    state = facebook.state([*SIZES.values()], 4, [3, 4], [14, 1])
    tensors = {f"module.{key}": torch.from_numpy(value) for key, value in state.items()}
    checkpoint = {
        "epoch": 1, "test_acc": np.float64(0.5), "count": np.int64(3), "state_dict": tensors,
        "opt_state_dict": {"state": {}, "param_groups": [{"lr": 0.1}]},
    }  # fmt: skip
    torch.save(checkpoint, tmp_path / "dlrm.pt")
    own = logits(tmp_path, {"converter": "facebook_dlrm", "weights": "dlrm.pt"})
    wanted = facebook.logits(state, rows()["dense"], members())
    np.testing.assert_allclose(own, wanted, rtol=0, atol=1e-5)


def renamed(state: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {key.replace(old, new): value for key, value in state.items()}


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a key is missing": (
        lambda s: {k: v for k, v in s.items() if k != "top_l.2.bias"}, {},
        "top_l.2.bias is missing; the file has emb_l.0.weight",
    ),
    "a layer is missing": (
        lambda s: {k: v for k, v in s.items() if "bot_l.0" not in k}, {},
        "bot_l.0.weight is missing",
    ),
    "a key is unknown": (
        lambda s: s | {"v_W_l.0": s["emb_l.0.weight"]}, {}, "v_W_l.0 came, which no model has",
    ),
    "the keys of another package": (
        lambda s: renamed(s, "bot_l", "dense_arch"), {}, "bot_l.0.weight is missing",
    ),
    "a table of another width": (
        lambda s: s | {"emb_l.1.weight": s["emb_l.1.weight"][:, :3]}, {},
        r"emb_l.1.weight is \[7, 3\]; expected \[any, 4\]",
    ),
    "layers that do not join": (
        lambda s: s | {"top_l.2.weight": s["top_l.2.weight"][:, :5]}, {},
        r"top_l.2.weight is \[1, 5\]; expected \[any, 8\]",
    ),
    "a top net of another interaction": (
        lambda s: s | {"top_l.0.weight": s["top_l.0.weight"][:, :13]}, {},
        "takes 13 numbers, but 5 vectors of width 4 give by dot 14, dot with itself 19, cat 20",
    ),
    "config of another interaction": (
        None, {"config": {"interaction": "cat"}}, "takes 14 numbers, .* `config` says",
    ),
    "an option of no one": (None, {"config": {"pooling": "sum"}}, "unknown key 'pooling'"),
    "a number too few": (
        None, {"inputs": {"dense": ["n0", "n1"], "ids": IDS}},
        "`dense` has 2 features; expected 3, as bot_l.0 takes",
    ),
    "a table too few": (
        None, {"inputs": {"dense": INPUTS["dense"], "ids": ["user", "tags"]}},
        "`ids` has 2 features .user, tags.; expected 4, one for each of the tables emb_l.0",
    ),
    "an id among the numbers": (
        None, {"inputs": {"dense": ["n0", "n1", "shop"], "ids": IDS}},
        "shop is a categorical feature; list it in `ids`",
    ),
    "an input of another name": (
        None, {"inputs": {"numbers": ["n0"], "ids": IDS}}, "unknown key 'numbers'",
    ),
    "a probability": (None, {"output": "probability"}, "a converter gives the logit"),
    "a score": (None, {"score": "x"}, "a converter gives one logit"),
    "an unknown converter": (None, {"converter": "facebook"}, "unknown converter 'facebook'"),
    "no file": (None, {"weights": "none.pt"}, "there is no file"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_weights_are_refused_by_name(tmp_path: Path, what: str) -> None:
    change, more, message = WRONG[what]
    state = facebook.state([*SIZES.values()], 4, [3, 6, 4], [14, 8, 1])
    weights = saved(tmp_path, change(state) if change else state)
    with pytest.raises(LocatedError, match=message) as raised:
        converted(tmp_path, {"converter": "facebook_dlrm", "weights": weights} | more)
    assert "cascade.yaml, line " in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_pickle_of_more_than_tensors_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), tmp_path / "model.pt")
    wrong = {"converter": "facebook_dlrm", "weights": "model.pt"}
    with pytest.raises(LocatedError, match="holds more than tensors") as raised:
        converted(tmp_path, wrong)
    assert "\n" not in str(raised.value)
    (tmp_path / "model.pt").write_bytes(b"no pickle")
    with pytest.raises(LocatedError, match=r"not of torch\.save"):
        converted(tmp_path, wrong)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(LocatedError, match="cannot be read as safetensors"):
        converted(tmp_path, wrong | {"weights": "model.safetensors"})


def test_tables_of_another_name_are_refused(tmp_path: Path) -> None:
    wrong = entry("torchrec_dlrm") | {"config": {"tables": ["t_user", "t_shop", "t_item"]}}
    with pytest.raises(LocatedError, match="t_user, t_shop, t_item came; expected t_user, t_shop"):
        converted(tmp_path, wrong)


def test_a_bag_stands_last_in_deepctr(tmp_path: Path) -> None:
    inputs = {"dense": INPUTS["dense"], "ids": ["tags", *IDS[:3]]}
    with pytest.raises(LocatedError, match="a bag before a single id"):
        converted(tmp_path, entry("deepctr_numbers") | {"inputs": inputs})


def test_a_converter_makes_no_tower(tmp_path: Path) -> None:
    with pytest.raises(LocatedError, match="a converter makes a ranker"):
        form(tmp_path, entry("torchrec_dlrm") | {"inputs": {"ids": ["user"]}}, ("user",))
