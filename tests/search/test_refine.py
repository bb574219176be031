"""Around the best recipe: which neighbours it has, and what Optuna proposes given the results in files."""

import json
import shutil
from random import Random
from types import SimpleNamespace

import pytest

from nncompress import extras
from nncompress.cli.app import run
from nncompress.passes import Factorize, PruneNodes, Quantize, Reduce
from nncompress.search import optimize
from nncompress.search.candidates import Family, recipe_key
from nncompress.search.layers.sensitivity import Effect
from nncompress.search.neighbourhood import Neighbourhood
from nncompress.search.refine import JOURNAL, Refinement
from nncompress.search.trial import Bounds, Judge, recipe_of

optuna_is_there = pytest.mark.skipif(
    not extras.installed("search"), reason="optuna is not installed: pip install 'nncompress[search]'"
)


def effect(method, where, strength, error):
    return Effect(method, where, strength, error, 0.2, 0.2, 0.2, "", "")


EFFECTS = [
    effect("prune-nodes", "a", 0.5, 0.1),
    effect("prune-nodes", "b", 0.5, 0.1),
    effect("factorize", "b", 0.5, 0.2),
    *(effect("quantize", where, bits, 0.1) for where in ("a", "b") for bits in (8, 4)),
]
PRUNED = (PruneNodes(ratios=("a=0.5",)),)


def test_neighbours_of_strengths_are_strengths_of_every_layer():
    near = Neighbourhood(PRUNED, EFFECTS)
    assert near.values["prune-nodes a"] == (0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65)
    assert near.values["prune-nodes b"] == (0.0, 0.05, 0.1, 0.15)  # left alone by the best
    assert near.values["factorize b"] == (0.85, 0.9, 0.95, 1.0)
    assert near.recipe(near.middle) == PRUNED
    moved = {**near.middle, "prune-nodes b": 2, "factorize b": 0}
    recipe = (PruneNodes(ratios=("a=0.5", "b=0.1")), Factorize(ratios=("b=0.85",)))
    assert near.recipe(moved) == recipe
    other_order = (PruneNodes(ratios=("b=0.1", "a=0.5")), recipe[1])
    assert near.positions(other_order) == moved
    for far in (
        (PruneNodes(ratios=("a=0.9",)),),
        (PruneNodes(ratios=("a=0.52",)),),
        (PruneNodes(macs=0.5),),
        (*PRUNED, Quantize()),
        (PruneNodes(ratios=("a=0.5",), exclude=("b",)),),
    ):
        assert near.positions(far) is None


def test_neighbours_of_budgets_and_of_bits():
    budgets = (PruneNodes(macs=0.7), Factorize(macs=0.96))
    near = Neighbourhood(budgets, EFFECTS)
    assert near.recipe(near.middle) == budgets
    assert set(near.values) == {
        *("prune-nodes the whole", "factorize the whole"),
        *("losses under prune-nodes a", "losses under prune-nodes b", "losses under factorize b"),
    }
    assert max(near.values["factorize the whole"]) < 1
    assert near.recipe({**near.middle, "prune-nodes the whole": 0})[0] == PruneNodes(macs=0.6625)
    reduced = (Reduce(params=0.5), Quantize())
    near = Neighbourhood(reduced, EFFECTS)
    assert near.recipe(near.middle) == reduced
    assert near.recipe({**near.middle, "reduce the whole": 4})[0] == Reduce(params=0.5125)
    weighed = near.recipe({**near.middle, "losses under reduce b": 5, "quantize a": 2})
    assert weighed == (Reduce(params=0.5, loss_weight=("b=4",)), *mixed_bits())
    assert near.positions(weighed) == {**near.middle, "losses under reduce b": 5, "quantize a": 2}
    assert near.positions((Reduce(params=0.5, loss_weight=("b=3",)), Quantize())) is None
    around = Neighbourhood(weighed, EFFECTS)  # and from there
    assert around.recipe(around.middle) == weighed
    assert max(around.values["losses under reduce b"]) == 32
    rounded = (*PRUNED, Quantize(keep=("a*",)))
    near = Neighbourhood(rounded, EFFECTS)
    assert near.values["quantize a"] == (32, 8, 4)
    assert near.recipe(near.middle) == rounded
    mixed = near.recipe({**near.middle, "quantize a": 2})
    assert mixed == (*PRUNED, *mixed_bits())
    assert near.positions(mixed) == {**near.middle, "quantize a": 2}


def mixed_bits():
    return Quantize(weight_bits=4, keep=("b*",)), Quantize()


def test_neighbours_of_blocks_left_out_are_a_block_more_or_less():
    effects = [effect("prune-nodes", "g", 0.5, 0.1), effect("quantize", "a", 8, 0.2)]
    middle = (PruneNodes(drop_blocks=1), Quantize())
    near = Neighbourhood(middle, effects, 9)
    assert near.recipe(near.middle) == middle
    saving, giving = list(near.steps(True)), list(near.steps(False))
    assert (PruneNodes(drop_blocks=2), Quantize()) in saving
    assert (PruneNodes(drop_blocks=1),) in giving  # nothing in int8
    assert not any(recipe[0].drop_blocks < 1 for recipe in giving)  # none left out is another family
    assert all(recipe[0].drop_blocks < 2 for recipe in Neighbourhood(middle, effects, 1).steps(True))


def test_single_steps_save_or_give_back_and_the_cheapest_come_first():
    steps = list(Neighbourhood((Reduce(params=0.5), Quantize()), EFFECTS).steps(True))
    assert steps[0] == (Reduce(params=0.4875), Quantize())
    assert steps[1] == (Reduce(params=0.5), *mixed_bits())  # 4 bits in one layer
    assert len(steps) == 3
    back = list(Neighbourhood((*PRUNED, Quantize(keep=("a*",))), EFFECTS).steps(False))
    assert (PruneNodes(ratios=("a=0.45",)), Quantize(keep=("a*",))) in back
    assert PRUNED in back  # b in float as well


def test_a_few_settings_are_moved_by_a_step_or_two():
    near, generator, moved = Neighbourhood((Reduce(params=0.5), Quantize()), EFFECTS), Random(0), set()
    for _ in range(200):
        found = near.moved(generator)
        steps = {
            name: abs(found[name] - near.middle[name]) for name in found if found[name] != near.middle[name]
        }
        assert 1 <= len(steps) <= 4
        assert max(steps.values()) <= 2
        assert all(0 <= place < len(near.values[name]) for name, place in found.items())
        moved |= set(steps)
    assert moved == set(near.values)


LAYERS = [effect("prune-nodes", where, 0.5, 0.1) for where in "abc"]
START = (PruneNodes(ratios=("a=0.5", "b=0.5", "c=0.5")),)


def result(recipe):
    """What is lost in `a` counts three times, what is saved the same in all."""
    taken = {"a": 0.0, "b": 0.0, "c": 0.0}
    for each in recipe:
        taken |= {pair.split("=")[0]: float(pair.split("=")[1]) for pair in each.ratios}
    lost = 0.03 * taken["a"] + 0.01 * taken["b"] + 0.01 * taken["c"]
    row = {"macs": 1 - sum(taken.values()) / 3, "size": 1, "lost": lost, "at_most": lost, "samples": 9}
    return {"recipe": [{"name": each.name, **each.settings()} for each in recipe], **row}


def judge():
    found = SimpleNamespace(bounds=Bounds(0.0252, None, None, "macs"), machine="here")
    for name in ("holds", "within", "goal"):
        setattr(found, name, getattr(Judge, name).__get__(found))
    return found


def tried(*recipes):
    return {recipe_key(recipe): (recipe, result(recipe)) for recipe in recipes}


def refinement(folder, said=None, seed=0):
    return Refinement(folder, judge(), LAYERS, seed, [].append if said is None else said.append)


def test_without_the_extra_strengths_are_varied_one_by_one_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "installed", lambda extra: False)
    said = []
    refined = refinement(tmp_path, said)
    moves = refined.recipes(START, tried(START))
    assert [each[0].ratios[0] for each in moves] == ["a=0.55", "a=0.5", "a=0.5"]
    assert len(refined.recipes(START, tried(START, moves[0]))) == 2
    assert refined.recipes(START, tried(START, *moves)) == []
    assert len(said) == 1
    assert "pip install 'nncompress[search]'" in said[0]
    assert not (tmp_path / JOURNAL).exists()


def test_near_what_has_nothing_left_to_save_nothing_is_tried(tmp_path):
    """All in int8: layers that go back to floats are slower and larger, and the bound holds without them."""
    said, recipe = [], (Quantize(),)
    assert refinement(tmp_path, said).recipes(recipe, {recipe_key(recipe): (recipe, {})}) == []
    assert said == []


def searched(folder, trials, seed=0):
    """The best after so many trials of one worker, begun at `START`."""
    rows, verdict = tried(START), judge()
    while len(rows) < trials:
        best = min(
            (key for key in rows if verdict.holds(rows[key][1])), key=lambda k: (rows[k][1]["macs"], k)
        )
        found = refinement(folder, seed=seed).recipes(rows[best][0], rows)
        if not found:
            break
        assert recipe_key(found[0]) not in rows
        rows |= tried(found[0])
    return rows, rows[best][1]["macs"]


@optuna_is_there
def test_an_exchange_between_layers_is_found_that_no_single_step_reaches(tmp_path, monkeypatch):
    rows, best = searched(tmp_path, 40)
    assert best < 0.42  # of the start 0.5; each single step more of it breaks the bound
    (tmp_path / "again").mkdir()
    assert list(searched(tmp_path / "again", 12)[0]) == list(rows)[:12]  # the same for the same seed
    (tmp_path / "other").mkdir()
    assert list(searched(tmp_path / "other", 12, seed=1)[0]) != list(rows)[:12]
    monkeypatch.setattr(extras, "installed", lambda extra: False)
    assert searched(tmp_path, 40)[1] == pytest.approx(0.5)


def told(folder):
    """Trials that Optuna counts, over all studies of a folder, as it reads them from the journal."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    return [
        tuple(sorted(trial.params.items()))
        for study in storage.get_all_studies()
        for trial in storage.get_all_trials(study._study_id)
        if trial.state.name == "COMPLETE"
    ]


MOVED = tuple((PruneNodes(ratios=(f"a={a}", "b=0.5", "c=0.5")),) for a in (0.55, 0.45, 0.6))


@optuna_is_there
def test_what_a_killed_worker_was_at_is_proposed_again_and_counted_once(tmp_path):
    rows = tried(START, MOVED[0])  # an even number of trials: Optuna's turn
    (left,) = refinement(tmp_path).recipes(START, rows)  # and killed
    found = refinement(tmp_path).recipes(START, rows)
    assert found[0] == left
    assert len(found) == 2
    rows |= tried(left, MOVED[1] if left != MOVED[1] else MOVED[2])
    for _ in range(2):  # two workers that see the same files
        assert left not in refinement(tmp_path).recipes(START, rows)
    assert len(told(tmp_path)) == len(set(told(tmp_path))) == 4


@optuna_is_there
def test_the_lock_that_a_killed_worker_left_is_not_waited_for(tmp_path, monkeypatch):
    rows = tried(START, MOVED[0])
    refinement(tmp_path).recipes(START, rows)
    (tmp_path / f"{JOURNAL}.lock").touch()
    monkeypatch.setattr("optuna.storages.journal._file.time.sleep", lambda seconds: pytest.fail("it waits"))
    assert refinement(tmp_path).recipes(START, rows)


@optuna_is_there
def test_workers_that_measured_other_layers_keep_one_journal(tmp_path):
    rows, said = tried(START, MOVED[0]), []
    for layers in (LAYERS, LAYERS[:1], LAYERS):
        Refinement(tmp_path, judge(), layers, 0, said.append).recipes(START, rows)
    assert not any("damaged" in sentence for sentence in said)


@optuna_is_there
@pytest.mark.parametrize("damage", ["{}\n", "{\n", "\0\n\n", '[1]\n"x"\n'])
def test_a_damaged_journal_is_begun_anew_from_the_results_and_that_is_said(tmp_path, damage):
    rows = tried(START, MOVED[0])
    refinement(tmp_path).recipes(START, rows)
    journal = tmp_path / JOURNAL
    journal.write_text(journal.read_text()[:300] + damage + journal.read_text()[300:])
    said = []
    assert refinement(tmp_path, said).recipes(START, rows)
    assert f"{journal} is damaged" in said[-1]
    assert len(told(tmp_path)) == 2


@optuna_is_there
def test_failed_trials_and_latencies_of_other_machines_are_not_taken_for_good_ones(tmp_path):
    timed = judge()
    timed.bounds = Bounds(0.05, 10.0, None, "latency", "ort-cpu")
    refined = Refinement(tmp_path, timed, LAYERS, 0, [].append)
    assert refined._result({"failed": "cannot"}) == (0.0, {"failed": 1.0})
    row = {**result(START), "latency": {"there": {"share": 0.5, "seconds": 1.0}}}
    assert refined._result(row) is None
    row["latency"]["here"] = {"share": 0.7, "seconds": 1.0}
    value, broken = refined._result(row)
    assert (value, max(broken.values()) <= 0) == (0.7, True)
    assert refined._result({**row, "size": 20})[1]["size"] == pytest.approx(1.0)
    assert refined._result({**row, "at_most": 0.07})[1]["drop"] == pytest.approx(0.02)


@optuna_is_there
def test_the_command_says_how_it_goes_on_near_the_best(here, effects, capsys, monkeypatch):
    shutil.copytree(effects, "m.optimize/sensitivity")
    monkeypatch.setattr(optimize, "families", lambda *_: [Family("one", lambda share: START_HERE)])
    asked = ["--data", "val.npz", "--max-drop", "30", "--goal", "macs", "--trials", "3", "--json"]
    code = run(["optimize", "m.pt2", *asked])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert err.count("jointly as Optuna proposes") == 1
    assert (here / "m.optimize" / JOURNAL).exists()
    rows = json.loads(out)["trials"]
    assert len({recipe_key(recipe_of(row)) for row in rows.values()}) == 3


START_HERE = (PruneNodes(ratios=("0=0.25",)),)
