"""Misspelt options are answered with the nearest ones, before anything is made."""

import pytest
from conftest import ROOT, composed

from ganforge.cli.resolvers import register_resolvers
from ganforge.cli.spelling import check_spelling
from ganforge.runtime.errors import UserError
from ganforge.runtime.overrides import literal

MISSPELT = {
    "trainr.max_steps=3": "trainr.max_steps: there is no such option. Did you mean trainer.max_steps",
    "lr=1e-3": "Did you mean model.generator_optimizer.lr or model.discriminator_optimizer.lr",
    "fast_dev_run=true": "fast_dev_run: no such option; use debug=fast",
    "compile=true": "Did you mean model.compile\\?",
    "modle=dcgan": "Did you mean model\\?",
    "~callbacks.prunning": "Did you mean callbacks.pruning\\?",
    "content=vgg16": "content=: the chosen model and data do not use this group",
    "loss={_target_:my_lab.Loss,margin:1}": "loss.margin: there is no such option. If a class accepts it, \\+",
    "augment={mine:{_target_:my_lab.Jitter}}": "If a class accepts it, \\+augment.mine= adds it",
    "-m model=gan,dcgan model.generator.width=3,4": "model.generator.width: there is no such option",
}
WITHOUT_COMPOSING = {
    "model=dcgn": "model=dcgn: there is no such option. Did you mean model=dcgan\\? Choose from bicubic, cgan",
    "loss=hinged": "Did you mean loss=hinge\\?",
    "-m model=dcgan,cgann": "model=cgann: there is no such option. Did you mean model=cgan\\?",
    "regularizer=[r1,r3]": "regularizer=r3: there is no such option",
    "dcgan": "dcgan: options are given as key=value",
    "seed=a(b": "seed: Hydra cannot parse a\\(b",
}
FINE = ["seed=0 ~callbacks.pruning +new.key=3", "schedule=cosine schedule.hold=9 model.loss.average_halves=true"]
FINE += [
    "~loss +loss={_target_:my_lab.Loss,margin:1} +augment.mine={_target_:my_lab.Jitter}",
    "loss={average_halves:true}",
    "-m model=glob(*gan)",
    "-m model=dcgan,cgan_conv model.generator.width=3,4 optimizer@model.generator_optimizer=sgd",
]


@pytest.mark.parametrize("command", [*WITHOUT_COMPOSING, *MISSPELT])
def test_misspelt_options_are_answered(command: str) -> None:
    register_resolvers()
    with pytest.raises(UserError, match={**MISSPELT, **WITHOUT_COMPOSING}[command]):
        check_spelling(command.split(), ROOT / "conf", "train")


@pytest.mark.parametrize("command", FINE)
def test_others_are_not(command: str) -> None:
    register_resolvers()
    check_spelling(command.split(), ROOT / "conf", "train")


def test_keys_of_a_record_are_looked_for_there() -> None:
    record = composed("model=gan", "data=ring")
    check_spelling(["model.generator.hidden=[3]"], ROOT / "conf", "train", record)
    with pytest.raises(UserError, match=r"model\.generator\.width: there is no such option"):
        check_spelling(["model.generator.width=3"], ROOT / "conf", "train", record)


AWKWARD = "/data/é #1 (new), a & b's = {x}[0]: 100% ~home\\x"


@pytest.mark.parametrize(
    "key", ["data.root", "run", "resume", "output", "+data.cache_dir", "metrics.lpips.weights", "name"]
)
def test_paths_are_taken_literally(key: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(literal(f"{key}={AWKWARD}"))
    assert parsed.value() == AWKWARD
    assert literal(f"{key}=null") == f"{key}=null"
    assert literal(f"{key}='{AWKWARD}'") == f"{key}='{AWKWARD}'"


def test_commas_of_a_sweep_separate_paths() -> None:
    assert literal("data.root=/a b,/c#d", is_sweep=True) == "data.root='/a b','/c#d'"
    assert literal("data.root='/a,b'", is_sweep=True) == "data.root='/a,b'"
    assert literal("data.root=choice(a,b)", is_sweep=True) == "data.root=choice(a,b)"
    assert literal("data.valid=[/a b,c]") == "data.valid=['/a b','c']"
    assert literal("data.valid=[]") == "data.valid=[]"
