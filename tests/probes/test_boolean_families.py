"""The reference families of a Boolean task know how its inputs are drawn."""

from gradatim.probes.boolean_bayes import TernaryBayes
from gradatim.probes.boolean_families import boolean_families
from gradatim.tasks import BooleanTask


def bayes_learners(task):
    made = [family.make() for family in boolean_families(task) if not family.grids]
    return [learner for learner in made if isinstance(learner, TernaryBayes)]


def test_bayes_learners_plant_what_the_task_plants():
    plain, taught = BooleanTask(6, "conjunction", 12), BooleanTask(6, "conjunction", 12, teaching=True)
    assert plain.planted_share != taught.planted_share
    for task in (plain, taught):
        assert [learner.share for learner in bayes_learners(task)] == [task.planted_share] * 2
