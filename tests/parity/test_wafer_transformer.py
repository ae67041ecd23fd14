"""A whole GPT on one mesh: torch's greedy tokens, logits to float32's roundings, nothing done by the host."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from wafer_gpt_lab import TEXT, Sized, disturbed, greedy, logits_of, shape_of, trained, weights_of
from wafergpt.model.config import Activation, GPTConfig, MuPConfig, Parametrization
from wafergpt.model.gpt import GPT
from wafergpt.wafer.machine import native
from wafergpt.wafer.machine.errors import ProgramError, SramOverflowError
from wafergpt.wafer.machine.run import Machine
from wafergpt.wafer.programs.transformer import Generated, MeshGPT

pytestmark = pytest.mark.skipif(bool(native.available()), reason=f"no native core: {native.available()}")

SIGMAS = 6  # of the modelled error; 64 x 256 logits exceed it less than once in 10,000 runs
TINY = GPTConfig(d_model=64, n_layers=2, n_heads=4, vocab_size=256, max_seq_len=64)
SMALL = GPTConfig(d_model=16, n_layers=2, n_heads=2, vocab_size=32, max_seq_len=16)
OTHERS = {
    "tanh": (dataclasses.replace(SMALL, activation=Activation.GELU_TANH), 4, 8),
    "one head, one row": (dataclasses.replace(SMALL, n_heads=1), 8, 1),
    "one column": (SMALL, 1, 4),
    "mup": (
        dataclasses.replace(
            SMALL,
            parametrization=Parametrization.MUP,
            mup=MuPConfig(base_d_model=8, base_d_ffn=32, embedding_multiplier=3.0, output_multiplier=1.5),
            init_std=None,
        ),
        16,
        2,
    ),
}
PROMPT = list(TEXT.encode())[:32]


def on_mesh(model: GPT, n_positions: int, **how: Any) -> MeshGPT:
    return MeshGPT(weights_of(model), shape_of(model.config, n_positions), keep_logits=True, **how)


def expected(model: GPT, prompt: list[int], new: tuple[int, ...], n_positions: int) -> Sized:
    """Logits that chose `new`, in float64."""
    ids = [*prompt, *new[:-1]]
    whole = logits_of(weights_of(model), shape_of(model.config, n_positions), ids)
    return Sized(whole.value[len(prompt) - 1 :], whole.variance[len(prompt) - 1 :])


def close(logits: np.ndarray | None, wanted: Sized) -> bool:
    assert logits is not None
    return bool((np.abs(logits - wanted.value) <= SIGMAS * np.sqrt(wanted.variance)).all())


@pytest.fixture(scope="module")
def whole() -> tuple[MeshGPT, Generated]:
    """32 prompt and 32 new tokens of the trained model on 16 x 16 PEs."""
    mesh = on_mesh(trained(TINY), 64)
    return mesh, mesh.generate(PROMPT, 32)


def test_tokens_and_logits_are_torchs(whole: tuple[MeshGPT, Generated]) -> None:
    mesh, run = whole
    model = trained(TINY)
    assert list(run.tokens) == greedy(model, PROMPT, 32)
    assert len(set(run.tokens)) > 5, "the model has something to say"
    wanted = expected(model, PROMPT, run.tokens, 64)
    assert close(run.logits, wanted)
    with torch.no_grad():
        ids = torch.tensor([[*PROMPT, *run.tokens[:-1]]])
        theirs = GPT.from_arrays(weights_of(model), TINY).double()(ids, n_logits=32).logits
    assert theirs is not None
    np.testing.assert_allclose(wanted.value, theirs[0].numpy(), atol=1e-10)
    assert mesh.sram_bytes <= 49152


def test_the_cache_is_shared_equally(whole: tuple[MeshGPT, Generated]) -> None:
    """63 positions over 16 columns: 15 hold four, the last three; every row the same."""
    counts = whole[0].machine.memcpy_d2h("cache")[:, :, 3]
    assert (counts == [4] * 15 + [3]).all()


def test_every_token_has_its_cycles(whole: tuple[MeshGPT, Generated]) -> None:
    run = whole[1]
    assert len(run.token_cycles) == 63
    assert min(run.token_cycles) > 0 < run.wavelets
    assert sum(run.token_cycles) <= run.cycles
    assert max(run.token_cycles[:31]) < min(run.token_cycles[31:]), "the prompt's tokens skip the head"


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_and_meshes(name: str) -> None:
    config, width, height = OTHERS[name]
    model = disturbed(config)
    mesh = on_mesh(model, 16, width=width, height=height)
    for prompt, n_new in (([5, 31, 2], 14), ([7], 3)):  # the second finds the first one's cache
        run = mesh.generate(prompt, n_new)
        assert list(run.tokens) == greedy(model, prompt, n_new)
        assert close(run.logits, expected(model, prompt, run.tokens, 16))


def test_both_engines_agree_to_the_bit() -> None:
    config = GPTConfig(d_model=4, n_layers=1, n_heads=2, d_ffn=4, vocab_size=4, max_seq_len=2)
    runs = [on_mesh(disturbed(config), 2, width=2, height=2, engine=e) for e in ("numpy", "native")]
    found = [mesh.generate([1], 2) for mesh in runs]
    assert found[0].tokens == found[1].tokens
    assert found[0].token_cycles == found[1].token_cycles
    assert runs[0].machine.trace_hash() == runs[1].machine.trace_hash()


@pytest.mark.long
def test_a_hundred_runs_in_any_number_of_host_threads_are_one() -> None:
    """Every event with its cycle and value, and all memory at the end. The busy program of the machine's own
    tests does the same in any order of PEs, by default."""
    model, found = disturbed(SMALL), set()
    for run in range(100):
        mesh = on_mesh(model, 16, width=4, height=4, threads=1 + run % 4)
        mesh.generate([5, 31, 2], 6)
        found.add(mesh.machine.trace_hash())
    assert len(found) == 1


class Log:
    """What the host does with a machine: copies in, launches, copies out, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entries: list[tuple[str, str, np.ndarray | None]] = []
        into, out, launch = Machine.memcpy_h2d, Machine.memcpy_d2h, Machine.launch

        def memcpy_h2d(machine: Machine, name: str, values: Any) -> None:
            self.entries.append(("in", name, np.array(values)))
            into(machine, name, values)

        def memcpy_d2h(machine: Machine, name: str) -> np.ndarray:
            found = out(machine, name)
            self.entries.append(("out", name, found.copy()))
            return found

        def logged_launch(machine: Machine, task: str, **how: Any) -> Any:
            self.entries.append(("launch", task, None))
            return launch(machine, task, **how)

        monkeypatch.setattr(Machine, "memcpy_h2d", memcpy_h2d)
        monkeypatch.setattr(Machine, "memcpy_d2h", memcpy_d2h)
        monkeypatch.setattr(Machine, "launch", logged_launch)

    def take(self) -> list[tuple[str, str, np.ndarray | None]]:
        entries, self.entries = self.entries, []
        return entries


def bits(*arrays: Any) -> np.ndarray:
    """The float32 bit patterns of arrays, sorted."""
    flat = [np.ascontiguousarray(array, np.float32).view(np.int32).ravel() for array in arrays]
    return np.sort(np.concatenate(flat))


def check_only_copies(log: Log, model: GPT) -> list[tuple[str, str, list[int]]]:
    """Load and generate: what goes in is the weights' own bits, the prompt and integers, what comes out the
    PEs' own; nothing goes in after the launch. Returns the integers."""
    mesh = on_mesh(model, 16, width=4, height=4)
    loaded = log.take()
    run = mesh.generate([5, 31, 2], 6)
    used = log.take()
    weights, integers = weights_of(model), []
    for action, name, values in loaded:
        if values is not None and values.dtype.kind == "f":
            layers = [""] if name in ("wte", "wpe") else [f"h.{layer}." for layer in range(2)]
            names = [f"{layer}{name}" for layer in layers]
            if name.startswith("ln."):
                kind = name.removeprefix("ln.")
                names = [f"{layer}ln_{i}.{kind}" for layer in layers for i in (1, 2)] + [f"ln_f.{kind}"]
            names = [f"{each}.weight" if name in ("wte", "wpe") else each for each in names]
            assert values.dtype == np.float32
            np.testing.assert_array_equal(bits(values), bits(*(weights.pop(each) for each in names)))
        else:
            assert action != "out"
            given = np.zeros(0) if values is None else values
            integers.append((action, name, given.astype(np.int64).ravel().tolist()))
    assert not weights, "every weight is on the mesh"
    assert [(action, name) for action, name, _ in used][:4] == [
        *(("in", name) for name in ("tokens", "n_prompt", "n_steps")),
        ("launch", "generate"),
    ]
    assert {action for action, _, _ in used[4:]} == {"out"}
    copied = {name: values for action, name, values in used if action == "out"}
    prompt = next(values for action, name, values in used if (action, name) == ("in", "tokens"))
    assert prompt is not None
    assert prompt.ravel().tolist() == [5, 31, 2] + [0] * 14
    tokens = copied["tokens"]
    assert tokens is not None and list(run.tokens) == tokens[0, 0, 3:9].tolist()
    assert set(bits(run.logits).tolist()) <= set(bits(copied["logits of all steps"]).tolist())
    return integers


def test_the_host_only_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the integers it copies in, routes and places, are the same whatever the weights."""
    log = Log(monkeypatch)
    assert check_only_copies(log, disturbed(SMALL)) == check_only_copies(log, disturbed(SMALL, std=0.3))


def test_planted_a_host_that_scales_a_weight_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(monkeypatch)
    logged = Machine.memcpy_h2d

    def helps(machine: Machine, name: str, values: Any) -> None:
        logged(machine, name, values * np.float32(0.5) if name == "wpe" else values)

    monkeypatch.setattr(Machine, "memcpy_h2d", helps)
    with pytest.raises(AssertionError):
        check_only_copies(log, disturbed(SMALL))


def test_planted_errors_are_beyond_the_bound() -> None:
    """One weight of one PE off by 2 %; another attention scale, form of GELU or eps."""
    model = disturbed(SMALL)
    shape, weights = shape_of(SMALL, 16), weights_of(model)
    prompt = [5, 31, 2]

    def passes(mesh: MeshGPT) -> bool:
        run = mesh.generate(prompt, 4)
        return close(run.logits, expected(model, prompt, run.tokens, 16))

    how: dict[str, Any] = {"width": 4, "height": 4, "keep_logits": True}
    assert passes(MeshGPT(weights, shape, **how))
    name = "h.0.mlp.c_proj.weight"
    changed = {**weights, name: weights[name].copy()}
    changed[name][7, 21] *= 1.02
    assert not passes(MeshGPT(changed, shape, **how))
    for wrong in ({"attention_scale": 1 / SMALL.d_head}, {"gelu": "tanh"}, {"layer_norm_eps": 2e-5}):
        assert not passes(MeshGPT(weights, dataclasses.replace(shape, **wrong), **how)), wrong


def test_the_placement_is_where_the_weights_are() -> None:
    model = disturbed(SMALL)
    mesh, weights = on_mesh(model, 16, width=8, height=4), weights_of(model)
    placed = {each.name: each for each in mesh.placement()}
    assert set(placed) == set(weights)
    for name, memory in (("wte.weight", "wte"), ("h.0.mlp.c_fc.weight", "mlp.c_fc.weight")):
        tiles = mesh.machine.memcpy_d2h(memory)
        rows, columns = placed[name].part(5, 2)
        tile = weights[name][slice(*rows), slice(*columns)]
        assert tile.shape == placed[name].tile
        np.testing.assert_array_equal(tiles[2, 5, : tile.size], tile.T.ravel())
    name = "h.1.attn.c_proj.weight"
    rows, columns = placed[name].part(5, 2)
    tile = weights[name][slice(*rows), slice(*columns)]
    tiles = mesh.machine.memcpy_d2h("attn.c_proj.weight")
    np.testing.assert_array_equal(tiles[2, 5, -tile.size :], tile.T.ravel())
    assert placed["h.0.ln_1.weight"].n_copies == 4
    assert sum(each.bytes_per_pe for each in placed.values()) < mesh.sram_bytes


def test_what_does_not_fit_is_refused() -> None:
    model = disturbed(SMALL)
    with pytest.raises(ProgramError, match="d_model 16 does not divide by width 5"):
        on_mesh(model, 16, width=5, height=4)
    with pytest.raises(ProgramError, match="height 1 does not divide by n_heads 2"):
        on_mesh(model, 16, width=4, height=1)
    mesh = on_mesh(model, 16, width=4, height=4)
    with pytest.raises(ProgramError, match="3 and 15 tokens in 16 positions"):
        mesh.generate([1, 2, 3], 15)
    with pytest.raises(ProgramError, match="is not in 0"):
        mesh.generate([32], 1)
    large = GPTConfig(d_model=128, n_layers=2, n_heads=2, vocab_size=32, max_seq_len=16)
    with pytest.raises(SramOverflowError):
        on_mesh(disturbed(large), 16, width=2, height=2)
