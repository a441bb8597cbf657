"""What an audit says where nothing explains low agreement, and where R is low for no harm."""

from inrun.truth._causes import likely_causes

CALM = {
    "step": 50, "estimator": "path", "age": 49, "pearson": 0.9999, "relative_error": 0.01,
    "residual": 0.001, "covered": 1.0, "low_precision": False, "forecast_error": 0.0,
    "loss_noise": 0.0, "validation_rows": 100,
}  # fmt: skip


def names(*checks):
    return [cause.name for cause in likely_causes(checks, 0.95)]


def test_a_calm_check_has_no_cause():
    assert names(CALM) == []


def test_what_nothing_explains_is_said_to_be_unknown():
    assert names(CALM, CALM | {"pearson": 0.3, "relative_error": 0.5}) == ["Cause unknown"]


def test_a_low_correlation_of_right_values_is_no_harm():
    found = names(CALM, CALM | {"pearson": 0.3, "relative_error": 0.02})
    assert found == ["Values that hardly differ"]
    assert names(CALM | {"pearson": float("nan"), "relative_error": 0.02}) == found
