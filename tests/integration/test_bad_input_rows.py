"""Each row of docs/bad-input.md has a test that provokes it, named here by how the row begins."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import inrun
from inrun.errors import InRunWarning, NotSupportedError

HERE = Path(__file__).parents[1]
PAGE = HERE.parent / "docs" / "bad-input.md"

TESTS = {
    "integration/test_bad_input.py": {
        "a gradient that is NaN": "gradients_that_are_not_finite_are_refused_before_the_step",
        "a wrong number of ids": "ids_that_do_not_fit_are_refused_and_training_goes_on",
        "ids that are no ints": "ids_that_do_not_fit_are_refused_and_training_goes_on",
        "an input buffer that": "an_overwritten_input_buffer_is_noticed",
        "a model that does not run": "blocks_that_are_misused",
        "nested blocks": "blocks_that_are_misused",
        "hooks taken off": "hooks_that_somebody_else_removed_are_missed_before_the_next_batch",
        "an empty validation set": "an_empty_validation_set",
        "a `loss_fn` that returns": "a_loss_function_that_returns_something_else",
        "a validation batch on another": "a_validation_batch_on_another_device_is_said_at_attach",
        "an optimizer that does not hold": "attach_checks_what_it_is_given",
        "an estimator, capture": "attach_checks_what_it_is_given",
    },
    "integration/test_bad_input_rows.py": {
        "complex parameters": "complex_parameters_are_refused",
        "weights that are changed": "weights_that_are_changed_between_steps_are_told_of",
        "`validation_every=n`": "old_validation_gradients_are_told_of_at_attach",
        "`attribution.unattributed()` with": "a_penalty_on_sharded_parameters_is_refused",
    },
    "integration/test_newcomer.py": {
        "a file in UTF-16": "bad_input_is_one_sentence",
        "a `--label-column` or": "bad_input_is_one_sentence",
        "a label that is written": "missing_labels_and_labels_that_are_likely_one_are_told",
        "labels that differ in": "missing_labels_and_labels_that_are_likely_one_are_told",
        "`--task causal-lm` with": "bad_input_is_one_sentence",
        "`--max-length` beyond": "bad_input_is_one_sentence",
        "`--out` that is": "bad_input_is_one_sentence",
        "data that was changed": "a_file_that_is_not_the_one_trained_on_is_not_cut",
    },
    "integration/test_train_tasks.py": {
        "a number, a list of classes": "a_row_that_is_not_of_its_task_is_named",
        "numbers far from 0": "what_a_tokenizer_lacks_or_a_model_would_not_learn_is_said",
        "a tokenizer without chat": "what_a_tokenizer_lacks_or_a_model_would_not_learn_is_said",
        "an answer that lies": "what_a_tokenizer_lacks_or_a_model_would_not_learn_is_said",
    },
    "integration/test_edges.py": {
        "a validation loss that is finite":
            "a_validation_gradient_that_is_not_finite_is_refused_and_not_booked",
        "an attribution that nobody": "an_attribution_that_nobody_holds_is_told_of",
    },
    "integration/test_changed_gradients.py": {
        "a gradient whose elements": "what_mixes_or_adds_is_refused_with_the_reason",
    },
    "integration/test_failing_processes.py": {
        "a validation loss or gradient that":
            "every_process_says_it_leaves_out_the_same_step_and_goes_on",
        "an error of `loss_fn` in the":
            "an_attach_that_fails_in_one_process_is_said_by_all_and_can_be_done_again",
    },
    "integration/test_unattributed.py": {
        "a backward pass outside": "without_it_the_error_shows_the_way_out",
        "`attribution.unattributed()` inside": "it_is_no_part_of_a_block",
    },
    "integration/test_processes.py": {
        "processes that part": "what_cannot_be_done_is_said_in_every_process_alike",
        "training under `Join`": "what_cannot_be_done_is_said_in_every_process_alike",
        "a last backward pass": "what_cannot_be_done_is_said_in_every_process_alike",
        "DeepSpeed": "deepspeed_is_refused_and_fsdp2_named",
        "tensor parallelism": "sharded_and_threaded_models_are_refused",
    },
    "integration/test_random_loss.py": {
        "an optimizer that is not attached":
            "a_second_stage_with_another_optimizer_is_told_of",
        "a validation loss that draws": "it_is_told_once_and_names_both_ways_out",
        "`Utility(draws=k)`": "a_number_that_is_none_is_refused",
    },
    "unit/ledger/test_store_faults.py": {
        "an id that is no text": "an_id_that_is_no_text_is_refused_before_the_step",
        "a full disk": "a_disk_that_refuses_is_a_store_error_and_tables_still_answer",
        '`store=""`': "what_can_be_no_folder_is_refused",
        "a store with a name of 300": "a_name_that_is_too_long_is_a_store_error",
        "a store that was changed": "a_flipped_bit_anywhere_is_a_store_error",
        "a part of another run": "a_part_of_another_run_is_named",
        "a part that is missing": "a_part_that_is_missing_is_named",
        "a last part of the values":
            "a_last_part_of_the_values_per_token_that_is_missing_is_named",
        "`run.json` that is malformed": "a_malformed_manifest_is_said",
        "parts with renamed": "renamed_columns_are_named",
        "a state with parts": "states_with_parts_of_other_types_are_refused",
    },
    "integration/test_register.py": {
        "an update that is not what": "a_rule_that_is_not_the_step_is_refused_before_it_counts",
        "`linearized` with another": "linearized_is_refused_where_it_is_not_defined",
        "an optimizer without a rule":
            "a_namesake_without_a_rule_is_named_in_full_and_told_how_to_get_one",
        "`Muon` or `MuonWithAuxAdam`":
            "muon_that_is_divided_among_processes_is_refused_with_the_one_that_is_not",
    },
    "integration/test_payout_windows.py": {
        "momentum's memory emptied": "an_emptied_memory_pays_nobody",
    },
    "unit/replay/test_between.py": {
        "an odd number of halves": "numbers_out_of_range_are_refused",
    },
    "unit/replay/test_groups.py": {
        "groups that share": "groups_that_are_none_are_refused",
    },
    "unit/uses/test_methods.py": {
        "a method of `inrun validate": (
            "methods_without_contents_are_left_out_and_refused_where_named"
        ),
    },
    "unit/replay/test_lookahead_edges.py": {
        "weights or moments edited": "an_edit_between_two_steps_is_refused",
    },
    "unit/ledger/test_store_processes.py": {
        "the store is taken over": "attaching_again_in_one_program_takes_the_store_over",
        "a store that another process":
            "a_store_that_another_process_writes_is_refused_until_that_ends",
        "folders that a killed":
            "folders_of_held_in_are_gone_with_the_resuming_run_at_the_latest",
    },
    "unit/utility/test_rows.py": {
        "named targets given": "targets_that_are_given_as_a_batch_are_told_how_to_be_given",
        "`Utility(batch_size=n)` or": "a_loss_that_parts_do_not_add_up_to_is_refused_at_attach",
        "`Utility(batch_size=n)` that": "what_is_no_number_of_rows_is_refused",
    },
    "integration/test_batch_norm.py": {
        "BatchNorm in training": "that_samples_interact_is_said_once",
    },
    "integration/test_payout.py": {
        "`momentum_window` with": "what_cannot_be_paid_out_is_refused",
    },
    "integration/test_payout_places.py": {
        "`held_in` that is no": "a_folder_that_is_taken_away_is_said_and_steps_keep_what_they_have",
    },
    "integration/test_sampled.py": {
        "`Sampled(every)`": "frequencies_that_mean_nothing_are_refused",
    },
    "integration/test_cheaper_validation.py": {
        "`validation_parts=k`": "parts_that_cannot_be_made_are_refused",
    },
    "integration/test_resume.py": {
        "a store that holds a run": "a_store_is_not_taken_over_unless_it_is_said",
        "a state that was changed": "a_state_that_was_changed_is_refused",
        "a checkpoint that holds": "states_of_something_else_are_refused",
    },
    "unit/ledger/test_store_values.py": {
        'a target `""`': "targets_without_a_name_are_refused_when_they_are_named",
        "a store of an earlier":
            "a_run_of_an_earlier_version_is_read_with_a_note_and_can_be_resumed",
    },
    "integration/test_train.py": {
        "a row without label": "bad_rows_are_named_by_file_and_line",
        "an id that comes twice": "misuse_is_said",
        "an image model without": "an_image_model_of_transformers_gets_its_own_pixels",
        "`--trainer` with a name": "misuse_is_said",
        "a checkpoint of `inrun train`": "the_keyboard_stops_between_steps",
    },
    "integration/test_train_settings.py": {
        "`--record` in half":
            "a_recording_in_half_precision_is_refused_before_data_is_read",
    },
    "integration/test_sentence_transformers.py": {
        "a trainer's loss with": "a_loss_with_backward_passes_of_its_own_is_refused",
    },
    "integration/test_trl_packing.py": {
        "`InRun(examples=...)`": "examples_that_were_not_packed_are_refused",
    },
    "integration/test_transformers.py": {
        "validation items of which": "misuse_is_said_and_leaves_nothing_behind",
        "a collator that makes": "misuse_is_said_and_leaves_nothing_behind",
    },
    "unit/uses/test_load.py": {
        "a recorded run without": "a_run_needs_nothing_and_a_recorded_run_its_model",
        "a file of trainings": "a_file_of_something_else_is_refused",
    },
    "integration/test_window.py": {
        "clipping by value, a mask": "clipping_by_value_is_refused",
        "`audit` or `per_token`": "an_audit_and_values_a_token_are_refused",
        "a validation gradient that turns": "a_window_whose_gradient_turned_is_told",
        "gradients that begin to be scaled": "a_factor_that_no_measured_gradient_tells_is_refused",
        "an attribution that is dropped without": (
            "a_window_that_is_open_when_the_attribution_is_dropped_is_told"
        ),
        "`inrun.Window` with an optimizer": "refused",
        "`inrun.Window` with another": "bad_numbers_are_refused",
    },
    "unit/uses/test_judges.py": {
        "`judge=` of a run": "judges_that_cannot_be_are_refused",
        "a label that no": "nothing_is_said_of_a_label_that_nothing_judges",
    },
    "unit/uses/test_prune.py": {"ids to leave out": "names_of_nobody_or_everybody_are_refused"},
    "unit/uses/test_check.py": {"fewer trainings at most": "one_arm_or_one_seed_is_no_comparison"},
    "unit/uses/test_explain.py": {
        "a step without a score": "a_step_that_is_not_there_and_two_ways_at_once_are_refused",
        "training again without": "what_nobody_did_is_not_trained_again",
    },
    "unit/uses/test_diff.py": {
        "`inrun.diff` of runs": "ids_of_another_kind_are_refused",
    },
    "unit/scoring/test_gradient_sizes.py": {
        "`gradient_sizes` with": "what_cannot_be_had_is_refused",
        '`by="gradient"` of a run': "what_cannot_be_had_is_refused",
    },
    "unit/utility/test_contrast.py": {
        "good and bad answers": "answers_to_other_numbers_of_prompts_are_refused",
    },
    "unit/uses/test_labels.py": {
        "label doubts where": "doubts_without_what_they_need_are_refused",
    },
    "unit/uses/test_wrong_labels.py": {
        "planting flips in": "planted_labels_differ_from_the_given_ones_where_it_is_said",
        "counting wrong labels": "a_run_with_planted_flips_is_counted",
    },
    "unit/uses/test_rollup.py": {
        "a column of clusters": "nothing_is_told_of_one_group",
    },
    "unit/replay/test_recorder.py": {
        "a recording of which": "a_flipped_bit_anywhere_in_a_recording_is_a_store_error",
        "a recording whose": "data_that_changed_is_found_at_its_step",
    },
    "integration/test_foreign_runs.py": {
        "a picture that is damaged": "a_damaged_picture_costs_its_own_cell",
        "a table of samples": "training_rows_name_pictures_of_their_own_folder_alone",
        "terminal escapes": "no_command_prints_an_escape_of_a_foreign_run",
    },
    "unit/cli/test_terminal.py": {
        "texts that a spreadsheet": "no_cell_begins_a_formula_however_it_is_split",
    },
    "integration/test_wheel.py": {"an extra that": "a_command_that_needs_an_extra_names_it"},
    "unit/ledger/test_documents.py": {
        "a log of results": "a_line_that_was_taken_out_or_moved_is_a_store_error",
    },
    "unit/ledger/test_books.py": {
        "numbers that an older": "what_is_not_finite_is_left_out_and_said",
    },
}  # fmt: skip


def rows():
    """The first cell of every row of the page's tables."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return [line.split(" | ")[0].removeprefix("| ") for line in lines if line[2:6] != "what"]


@pytest.mark.parametrize("file", TESTS)
def test_the_tests_that_are_named_are_there(file):
    found = set(re.findall(r"def test_(\w+)", (HERE / file).read_text()))
    assert set(TESTS[file].values()) <= found


def test_every_row_has_its_test():
    begins = [begin for named in TESTS.values() for begin in named]
    untold = {row: [b for b in begins if row.startswith(b)] for row in rows()}
    assert {row: found for row, found in untold.items() if len(found) != 1} == {}
    assert [b for b in begins if not any(row.startswith(b) for row in rows())] == []


def attached(model=None, **options):
    """A model, its optimizer and its attribution."""
    torch.manual_seed(0)
    model = model or nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    utility = inrun.Utility(lambda model, x: model(x).abs().square().mean(), torch.randn(4, 4))
    settings = {"options": inrun.Options(progress=False), **options}
    return model, optimizer, inrun.attach(model, optimizer, utility, **settings)


def trained(model, optimizer, attribution):
    """One step."""
    with attribution.batch([0, 1]):
        model(torch.randn(2, 4)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_complex_parameters_are_refused():
    with pytest.raises(NotSupportedError, match="weight is complex"):
        attached(nn.Linear(4, 3, dtype=torch.complex64))


def test_weights_that_are_changed_between_steps_are_told_of():
    model, optimizer, attribution = attached()
    trained(model, optimizer, attribution)
    with torch.no_grad():
        model.weight.mul_(0.5)
    with pytest.warns(InRunWarning, match="Weights were changed between two optimizer steps"):
        trained(model, optimizer, attribution)
    assert abs(attribution.ledger()["other"].to_pylist()[1]) > 1e-3


def test_old_validation_gradients_are_told_of_at_attach():
    with pytest.warns(InRunWarning, match="validation_every=3 judges 2 of 3 steps"):
        _, _, attribution = attached(scoring=inrun.EveryStep(validation_every=3))
    attribution.detach()


def test_a_penalty_on_sharded_parameters_is_refused(monkeypatch):
    model, _, attribution = attached()
    monkeypatch.setattr(attribution._loop.capture, "sharded", True)
    with (
        pytest.raises(NotSupportedError, match="are sharded"),
        attribution.unattributed(),
    ):
        model.weight.abs().sum().backward()
    attribution.detach()
