"""What an audit says where nothing explains low agreement, and where R is low for no harm."""

from inrun.truth._causes import likely_causes

CALM = {
    "step": 50,
    "estimator": "path",
    "age": 49,
    "pearson": 0.9999,
    "relative_error": 0.01,
    "residual": 0.001,
    "covered": 1.0,
    "low_precision": False,
    "forecast_error": 0.0,
    "loss_noise": 0.0,
    "validation_rows": 100,
    "truth": [0.2, 0.1],
    "label_gain": 0.9,
    "judged": "all rows",
    "share_error": 0.0,
}
LOW = CALM | {"pearson": 0.3, "relative_error": 0.5}
UNKNOWN = LOW | {"residual": float("nan")}  # fmt: skip


def names(*checks):
    return [cause.name for cause in likely_causes(checks)]


def test_a_calm_check_has_no_cause():
    assert names(CALM) == []


def test_what_nothing_explains_is_said_to_be_unknown():
    assert names(CALM, CALM | {"pearson": 0.3, "relative_error": 0.5}) == ["Cause unknown"]


def test_a_low_correlation_of_right_values_is_no_harm():
    found = names(CALM, CALM | {"pearson": 0.3, "relative_error": 0.02})
    assert found == ["Values that hardly differ"]
    assert names(CALM | {"pearson": float("nan"), "relative_error": 0.02}) == found


def test_parts_of_the_rows_and_older_gradients_are_told_apart():
    part, older = (
        UNKNOWN | {"judged": "a part of the rows"},
        UNKNOWN | {"judged": "older gradients"},
    )
    assert names(CALM, part) == ["Parts of the rows"]
    assert names(CALM, older) == ["Older gradients"]
    assert names(part, older) == ["Parts of the rows", "Older gradients"]


def test_a_loss_that_is_not_repeatable_explains_what_comes_with_it():
    """Residuals, first steps and owners cannot be told where the loss changes by itself."""
    noisy = LOW | {"loss_noise": 2.0, "residual": 0.9, "share_error": 0.5, "age": 1, "step": 2}
    assert names(CALM, noisy) == ["Validation loss that is not repeatable"]


def test_rules_that_always_act_like_signs_have_no_first_steps():
    first, later = LOW | {"step": 2, "age": 0}, LOW | {"step": 40, "age": 0}
    assert names(first, later) == ["Signs"]
    assert names(first | {"age": 1}, CALM) == ["First steps"]


def test_samples_that_together_raise_the_loss_at_nearly_every_check_are_named():
    raised = CALM | {"truth": [-0.2, 0.1]}
    assert names(*[raised] * 9, CALM) == ["Training against what judges"]
    assert names(*[raised] * 8, CALM, CALM) == []
    assert names(*[raised] * 4) == []  # too few to say


def test_validation_labels_that_are_of_no_use_are_named_once_the_loss_falls_no_more():
    poor, raised = CALM | {"label_gain": 0.4}, {"truth": [-0.2, 0.1]}
    assert names(poor, poor) == []  # it still learns
    assert names(CALM, poor | raised) == ["Validation labels"]
    assert names(CALM, CALM | {"label_gain": -0.1}) == ["Validation labels"]
    assert names(CALM | {"label_gain": None}) == []


def test_rows_of_classes_that_nothing_judges_are_named_where_they_are_many():
    many, few = {"samples": 10, "unjudged": 0.7}, {"samples": 90, "unjudged": 0.01}
    told = {"validation_classes": 3}
    assert names(CALM | told | many) == ["Classes without validation rows"]
    assert names(CALM | told | many, CALM | told | few) == ["Classes without validation rows"]
    assert names(CALM | told | few) == []
    assert names(CALM | {"samples": 10, "unjudged": None}) == []


def test_nothing_is_always_there():
    few = CALM | {"validation_rows": 8}
    assert names(few) == ["Small validation batch"]
    older = {k: v for k, v in CALM.items() if k not in ("truth", "label_gain", "judged")}
    assert names(older) == []  # a check that an earlier version made
