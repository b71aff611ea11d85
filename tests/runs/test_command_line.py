"""Options over presets, and errors that fit one screen."""

import pytest

from attn_flax import runs
from attn_flax.checks import InputError
from experiments.classification import PRESETS


def test_the_first_preset_is_the_default():
    assert runs.parse(PRESETS, []) == PRESETS["default"]


@pytest.mark.parametrize("arguments", [["--preset", "article"], ["--preset=article"]])
def test_a_preset_is_what_other_options_change(arguments):
    config = runs.parse(PRESETS, [*arguments, "--epochs", "3", "--model.attention", "none"])
    assert config.optimizer == PRESETS["article"].optimizer
    assert config.data.augment == PRESETS["article"].data.augment
    assert (config.preset, config.epochs, config.model.attention) == ("article", 3, "none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "artcle"], "artcle"),
        (["--epochs", "many"], "many"),
        (["--parallel", "fork"], "fork"),
        (["--epoch", "3"], "--epoch"),
    ],
)
def test_a_wrong_option_ends_the_process_with_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        runs.parse(PRESETS, arguments)
    assert exit_info.value.code == 2
    shown = "".join(capsys.readouterr())
    assert message in shown
    assert "Traceback" not in shown


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as exit_info:
        runs.parse(PRESETS, ["--help"])
    assert exit_info.value.code == 0
    shown = capsys.readouterr().out
    for option in ("preset", "data.name", "data.augment.flip", "model.attention-arguments", "optimizer.warmup", "run"):
        assert f"--{option}" in shown


def test_an_input_error_is_shown_without_traceback(capsys):
    with pytest.raises(SystemExit) as exit_info, runs.error_screen():
        raise InputError("size must be even, got 7 [not markup].")
    assert exit_info.value.code == 2
    shown = capsys.readouterr().err
    assert "size must be even, got 7 [not markup]." in shown
    assert "Traceback" not in shown


def test_an_interrupt_ends_the_process_as_shells_expect(capsys):
    with pytest.raises(SystemExit) as exit_info, runs.error_screen():
        raise KeyboardInterrupt
    assert exit_info.value.code == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), runs.error_screen():
        _ = 1 / 0
