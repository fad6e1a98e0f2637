"""The rows of docs/reliability.md: each fault, what is promised, the tests that cause it, and what others do.

What others do is from their documentation and source, read or run on 2026-11-20 (orbax 0.12.8 was run); "?" was not looked
into.
"""

from __future__ import annotations

from typing import NamedTuple

HERE = "tests/faults"
SURROUNDINGS = f"{HERE}/test_surroundings.py"
CLASS_FOLDERS = "tests/data/test_class_folders.py"
CLASSES = "tests/training/test_classes.py"
LOAD = "tests/training/test_load.py"


class Row(NamedTuple):
    """One fault. `tests` are node ids without parameters; `others` orbax, MaxText, Lightning, big_vision."""

    fault: str
    promise: str
    tests: tuple[str, ...]
    others: tuple[str, str, str, str] = ("?", "?", "?", "?")


ROWS = (
    Row(
        "kill -9 at any moment (start, load, compile, restore, train, evaluate, row, save, final write)",
        "the next start resumes from the newest checkpoint; parameters, momentum and rows end bit-equal",
        (f"{HERE}/test_kills.py::test_kill_9",),
        (
            "a save cut short is ignored",
            "by orbax; resume compared with isclose",
            "atomic save of files",
            "pointer file moved after the commit",
        ),
    ),
    Row(
        "kill -9 in each stage of detection, and in HCP's training",
        "the next start goes on; detections, what was learned, measures, parameters and rows end bit-equal",
        (
            f"{HERE}/test_detection.py::test_detection_killed_in_every_stage",
            f"{HERE}/test_detection.py::test_hcp_killed",
        ),
    ),
    Row(
        "SIGTERM, SIGINT, SIGHUP, SIGUSR1 or SIGUSR2 in each phase, once and twice",
        "exit 75, one line, a checkpoint of the current step; under nohup SIGHUP stays ignored",
        (
            f"{HERE}/test_kills.py::test_signals",
            f"{HERE}/test_kills.py::test_nohup",
            f"{HERE}/test_kills.py::test_a_second_ctrl_c_does_not_wait",
            "tests/training/test_loop.py::test_a_signal_in_any_phase",
            "tests/training/test_loop.py::test_a_signal_while_a_checkpoint_is_restored",
            "tests/training/test_loop.py::test_ctrl_c_once_and_twice",
        ),
        ("only with jax.distributed", "saves, then StopTraining", "at the end of the batch; exit 143", "none"),
    ),
    Row(
        "damaged checkpoint: any file cut, emptied, flipped, removed, foreign, longer, of a later version",
        "resumes from the newest good step; each broken one is named in a line and set aside",
        (
            f"{HERE}/test_checkpoints.py::test_damaged_checkpoints",
            f"{HERE}/test_checkpoints.py::test_damaged_checkpoints_by_the_command",
            f"{HERE}/test_checkpoints.py::test_a_checkpoint_that_cannot_even_be_listed",
            "tests/training/test_loop.py::test_a_broken_newest_checkpoint",
            "tests/training/test_loop.py::test_no_harm_to_any_file_is_silent",
        ),
        (
            "46 of 46 flipped bits restored silently; no fallback",
            "no checksum; fallback only in the elastic path",
            "not tested",
            "no checksum",
        ),
    ),
    Row(
        "checkpoint of another run, config.json tampered",
        "exit 2, the difference named, nothing touched",
        (f"{HERE}/test_checkpoints.py::test_a_checkpoint_of_another_run", f"{HERE}/test_checkpoints.py::test_a_tampered_config"),
    ),
    Row(
        "training examples changed between two starts",
        "exit 2, both named; where the pixels alone are others, a warning, since a new decoder may round otherwise",
        (
            f"{HERE}/test_checkpoints.py::test_training_data_that_changed",
            f"{HERE}/test_checkpoints.py::test_pixels_that_changed_are_said",
        ),
    ),
    Row(
        "full disk (a small file system of the command's own)",
        "exit 74, one line, nothing half-written stays; once there is room it resumes, bit-equal",
        (f"{HERE}/test_storage.py::test_a_full_disk", "tests/training/test_loop.py::test_a_full_disk_ends_with_storage_failed"),
        ("error afterwards; the leftover keeps the disk full", "by orbax", "?", "?"),
    ),
    Row("read-only run directory", "exit 74, one line; evaluation works", (f"{HERE}/test_storage.py::test_a_read_only_workdir",)),
    Row(
        "run directory deleted or renamed during the run",
        "exit 74 at the next row or save",
        (f"{HERE}/test_storage.py::test_a_workdir_that_goes",),
    ),
    Row(
        "storage errors that pass (EIO on a write, a background save that fails)",
        "retried after 0.5, 2 and 8 s, then exit 74",
        (
            f"{HERE}/test_storage.py::test_what_is_tried_again",
            f"{HERE}/test_storage.py::test_storage_that_falters",
            f"{HERE}/test_storage.py::test_a_save_in_the_background_that_fails",
            f"{HERE}/test_storage.py::test_a_row_that_cannot_be_written_at_first",
            f"{HERE}/test_storage.py::test_a_whole_file_or_the_one_before",
        ),
    ),
    Row("clock that jumps ten days", "the same run", (f"{HERE}/test_storage.py::test_a_clock_that_jumps",)),
    Row(
        "two writers in one run directory; the first killed by -9",
        "the second exits with 2; after the kill the next start gets the lock",
        (f"{HERE}/test_storage.py::test_two_writers",),
    ),
    Row(
        "metrics.jsonl with half a last line, any other content",
        "each row once, none after the step that the run resumes from",
        ("tests/training/test_loop.py::test_half_a_last_row_and_a_broken_preprocessing_file", f"{HERE}/test_fuzz.py::test_any_metrics"),
    ),
    Row(
        "cached .npy cut, flipped, foreign, a pickle",
        "decoded again, one line",
        (
            "tests/data/test_tfds.py::test_a_damaged_entry_is_made_again",
            "tests/data/test_tfds.py::test_a_kill_while_writing_leaves_nothing_that_is_read",
        ),
    ),
    Row(
        "ArrayRecord file cut or flipped",
        "exit 2, the split named",
        (
            "tests/data/test_tfds.py::test_a_truncated_record_file_is_a_mistake",
            "tests/data/test_tfds.py::test_a_flipped_bit_in_a_record_file_is_noticed_or_harmless",
        ),
    ),
    Row(
        "record that cannot be decoded, label that is not a class",
        'exit 2, named; with bad_records="skip" left out, named and counted in the summary',
        (
            f"{HERE}/test_data.py::test_an_undecodable_record",
            f"{HERE}/test_data.py::test_an_undecodable_picture_in_a_folder",
            f"{HERE}/test_data.py::test_what_no_data_set_may_hold",
            f"{HERE}/test_data.py::test_labels_that_are_no_class_left_out",
        ),
    ),
    Row(
        "split folders called Training, Testing, val, valid; in capitals",
        "they are the splits; what may be meant in two ways (a class called like a split, folders beside train) is refused",
        (
            f"{HERE}/test_data.py::test_split_folders_of_any_usual_name",
            f"{CLASS_FOLDERS}::test_what_may_be_meant_in_two_ways_is_refused",
        ),
    ),
    Row(
        "a slice such as `train[80%:]` of a folder of pictures, or one that is trained on too",
        "its share of every class, the same on every machine; a class without an example is named, and examples in both splits are counted",
        (
            f"{HERE}/test_data.py::test_an_evaluation_on_what_was_trained_on_is_said",
            f"{HERE}/test_data.py::test_a_slice_of_a_folder_has_every_class",
            f"{CLASS_FOLDERS}::test_every_slice_has_its_share_of_every_class",
            f"{CLASS_FOLDERS}::test_the_order_is_mixed_and_that_of_the_names",
            f"{CLASS_FOLDERS}::test_the_order_does_not_depend_on_the_locale",
        ),
    ),
    Row(
        "pictures in other formats than JPEG and PNG, in linked folders; links to nothing; litter of systems",
        "what is decoded is taken, what is not is counted with the reason; a link to nothing is a bad record",
        (
            f"{CLASS_FOLDERS}::test_every_ending_that_is_decoded_is_taken",
            f"{CLASS_FOLDERS}::test_what_looks_like_a_picture_and_is_not_taken_is_counted",
            f"{CLASS_FOLDERS}::test_linked_folders_and_pictures_are_taken",
            f"{CLASS_FOLDERS}::test_loops_end",
            f"{HERE}/test_data.py::test_a_link_to_what_is_not_mounted",
            f"{CLASS_FOLDERS}::test_the_litter_of_systems_is_no_class_and_no_picture",
        ),
    ),
    Row(
        "transparent pictures",
        "laid on white (an argument), counted in the summary",
        (
            f"{HERE}/test_data.py::test_what_is_transparent",
            f"{CLASS_FOLDERS}::test_transparent_pictures_are_laid_on_white",
        ),
    ),
    Row(
        "whatever a folder of pictures holds",
        "a table at the start of every run: classes and their numbers, sizes, kinds, what is left out and why",
        (f"{CLASS_FOLDERS}::test_the_table_says_what_was_found",),
    ),
    Row(
        "records of a prepared data set removed or cut, its description still there",
        "training says to prepare, and preparing does it again",
        (
            "tests/data/test_prepare.py::test_records_that_are_gone_are_prepared_again",
            "tests/data/test_pack.py::test_shards_that_are_gone_are_packed_again",
        ),
    ),
    Row(
        "NaN or Inf in the inputs, or in what preprocessing fits",
        "exit 2, named",
        (f"{HERE}/test_data.py::test_what_no_data_set_may_hold", f"{HERE}/test_data.py::test_preprocessing_that_is_not_finite"),
    ),
    Row("class without examples", "a warning in one line", (f"{HERE}/test_data.py::test_a_class_without_examples",)),
    Row(
        "loss or parameters not finite, dead network",
        "exit 70, the update named, never saved in a checkpoint; with `rollbacks`, back to the newest good step at a "
        "lower rate, recorded",
        (
            f"{HERE}/test_divergence.py::test_a_rollback",
            f"{HERE}/test_divergence.py::test_no_rollback_is_left",
            f"{HERE}/test_divergence.py::test_a_divergence_before_the_first_checkpoint",
            f"{HERE}/test_divergence.py::test_parameters_that_are_not_finite_are_never_saved",
            f"{HERE}/test_divergence.py::test_a_kill_during_a_rollback",
            "tests/training/test_loop.py::test_a_dead_network_is_noticed",
            "tests/training/test_loop.py::test_an_exploding_network_is_noticed",
        ),
        (
            "a NaN metric deletes the best",
            "abort_on_nan_loss, skip_step_on_spikes",
            "EarlyStopping(check_finite)",
            "RuntimeError at a logged step",
        ),
    ),
    Row(
        "hang (device, file system, peer)",
        "exit 75 after `watchdog_seconds`, every thread's stack on stderr",
        (f"{HERE}/test_watchdog.py::test_a_run_that_hangs", f"{HERE}/test_watchdog.py::test_a_process_that_was_stopped_gets_its_time_anew"),
        ("waits forever", "a playbook", "?", "waits forever"),
    ),
    Row(
        "one of several processes killed by -9",
        "the others exit with 75 and one line, or JAX aborts them (134) if the first process is gone; started again, all "
        "resume from the newest checkpoint, bit-equal",
        (f"{HERE}/test_peers.py::test_a_process_is_killed", "tests/launch/test_local.py::test_a_killed_process_is_an_interruption"),
        ("aborts, by JAX's heartbeat", "elastic_retry with Pathways on TPUs", "?", "?"),
    ),
    Row(
        "one of several processes stopped (SIGSTOP)",
        "the others exit with 75 after `watchdog_seconds`, or JAX aborts them (134) after 30 to 60 s; then as above",
        (f"{HERE}/test_peers.py::test_a_process_is_stopped",),
    ),
    Row(
        "one of several processes preempted",
        "all save the same step and exit with 75",
        (f"{HERE}/test_peers.py::test_a_process_is_preempted", "tests/launch/test_local.py::test_two_processes_are_one_run"),
    ),
    Row(
        "started again with a different number of processes",
        "the same run, equal to rounding",
        (f"{HERE}/test_peers.py::test_another_number_of_processes_goes_on", "tests/launch/test_local.py::test_a_stopped_launcher_stops_its_run"),
    ),
    Row(
        "out of memory",
        "exit 2, the batch sizes named; no checkpoint is mistaken for broken",
        (
            "tests/test_main.py::test_what_a_machine_lacks_is_one_line",
            "tests/training/test_loop.py::test_a_machine_without_memory_breaks_no_checkpoint",
        ),
    ),
    Row(
        "a stranger's run directory: pickles, modules named in config.json, links, compressed bombs",
        "nothing is executed, nothing outside is touched",
        (
            f"{HERE}/test_security.py::test_nothing_is_unpickled",
            f"{HERE}/test_security.py::test_no_module_is_imported_by_a_name_in_a_config",
            f"{HERE}/test_security.py::test_a_lock_that_is_a_link",
            f"{HERE}/test_security.py::test_files_that_are_links_are_replaced",
            f"{HERE}/test_security.py::test_a_compressed_preprocessing_file",
        ),
    ),
    Row(
        "weights from PyTorch as people have them: under `net`, `model`, `model_state_dict`, `state_dict`, with NumPy scalars or "
        "objects beside them, half precision, old formats; whole modules and TorchScript",
        "the logits of PyTorch, without PyTorch and with nothing executed; or exit 2 and one line with the remedy",
        (
            "tests/weights/test_pytorch.py::test_every_kind_of_file_gives_the_logits_of_pytorch",
            "tests/weights/test_pytorch.py::test_half_precision_is_read_as_it_is",
            "tests/weights/test_pytorch.py::test_what_does_not_fit_is_one_whole_line",
            "tests/weights/test_pytorch.py::test_any_damage_is_noticed_or_harmless",
        ),
    ),
    Row(
        "weights from PyTorch whose layers have equal shapes, whose filters' order no file tells (maxout), or several networks "
        "in one file",
        "the file's own order; where its format keeps none, exit 2 with the mapping, or `--check` against given logits; "
        "exit 2 until `--prefix` names one network",
        (
            "tests/weights/test_pytorch.py::test_layers_of_one_shape_keep_the_order_of_the_file",
            "tests/weights/test_pytorch.py::test_layers_of_one_shape_in_a_file_without_order",
            "tests/weights/test_pytorch.py::test_maxout_layers_before_a_matrix_on_flattened_maps",
            "tests/weights/test_pytorch.py::test_what_a_file_does_not_say_of_the_order_of_filters",
            "tests/weights/test_pytorch.py::test_of_several_networks_one_is_named",
            "tests/weights/test_pytorch.py::test_the_check_compares_logits",
        ),
    ),
    Row(
        "a sweep's directory moved, named relatively, or by a link; a remote one (`gs://`)",
        "the same sweep, finished trials are kept; exit 2 and one line",
        (
            "tests/launch/test_sweep.py::test_a_directory_may_be_moved_and_named_in_any_way",
            "tests/launch/test_sweep.py::test_a_directory_that_is_no_local_one",
        ),
    ),
    Row(
        "images that unpack to gigabytes, archives with links or larger than they say",
        "refused from the header; archives are read in memory, up to the size they should have",
        (
            f"{HERE}/test_security.py::test_the_pixels_of_a_record_are_limited",
            "tests/data/datasets/test_folder.py::test_unreadable_pictures_are_named",
            "tests/data/test_prepare.py::test_wrong_members",
            "tests/data/test_prepare.py::test_truncated_tar_with_the_right_checksum",
        ),
    ),
    Row(
        "anything in config.json, rollbacks.json, summary.json, dataset_info.json, preprocess.npz, a checkpoint's JSON, IDX and "
        ".mat files, op strings, overrides",
        "a value, or exit 2 and one line",
        (
            *(
                f"{HERE}/test_fuzz.py::test_any_{what}"
                for what in (
                    "config_json", "list_of_rollbacks", "summary", "dataset_info", "preprocessing_file",
                    "json_of_a_checkpoint", "idx_file", "mat_file",
                )
            ),
            "tests/test_registry.py::test_any_text_is_a_call_or_a_mistake",
            "tests/test_main.py::test_any_command_line_is_a_command_or_a_mistake",
            "tests/test_config.py::test_any_config_is_checked_or_a_mistake",
        ),
    ),
    Row(
        "`[`, `]`, a backslash or any other character in the path of a run, of its data or of the cache",
        'the same checkpoints under any path; "saved" is said only of a checkpoint that was read back',
        (
            f"{SURROUNDINGS}::test_a_run_in_an_odd_directory",
            "tests/runs/test_checkpoint.py::test_no_character_of_a_path_changes_what_a_checkpoint_is",
            "tests/data/test_tfds.py::test_no_character_of_a_path_changes_what_is_read",
        ),
        ("finds none under a[1]; reads a backslash as /", "?", "?", "?"),
    ),
    Row(
        "a mistake in the config of a new run directory, corrected",
        "a directory belongs to nobody until a run in it has trained",
        ("tests/runs/test_directory.py::test_a_mistake_claims_no_directory", "tests/runs/test_directory.py::test_what_was_trained_claims_it"),
    ),
    Row(
        "`gs://`, `s3://` or another scheme in workdir, data_dir, init_from or an ensemble",
        "exit 2 and one line before anything starts",
        ("tests/test_main.py::test_mistakes_on_the_command_line",),
    ),
    Row(
        "evaluation, resuming or fine-tuning on data with other class names, or in another order",
        "labels are matched by name; exit 2 with the class that the run does not know; fine-tuning starts the layer of the classes "
        "anew. A run keeps its class names, and is loaded without its data",
        (
            f"{CLASSES}::test_the_run_knows_its_classes",
            f"{CLASSES}::test_data_with_some_of_the_classes_are_matched_by_name",
            f"{CLASSES}::test_other_classes_are_refused",
            f"{CLASSES}::test_fine_tuning_on_other_classes_starts_their_layer_anew",
            f"{CLASSES}::test_by_class_reorders_the_classes",
        ),
    ),
    Row(
        "`load_run` given floats, booleans, numbers above 255, channels first, one image, none, another size",
        "one line that says what is wanted; another size is taken, and said, where neither preprocessing nor network depends on it",
        (
            f"{LOAD}::test_what_is_no_image_of_this_network_is_refused",
            f"{LOAD}::test_whole_numbers_of_any_type_are_images",
            f"{LOAD}::test_a_network_of_means_takes_other_sizes_and_says_so",
            f"{LOAD}::test_other_sizes_are_refused_where_something_depends_on_them",
        ),
    ),
    Row(
        "JAX_ENABLE_X64=1; JAX_DISABLE_JIT=1, another generator of random numbers, a platform that is not there",
        "the same run and the same checkpoints, also of imported weights; exit 2 and one line",
        (
            f"{LOAD}::test_in_64_bit_mode_a_run_is_the_same",
            "tests/weights/test_pytorch.py::test_in_64_bit_mode_an_import_is_the_same",
            f"{LOAD}::test_a_switch_that_makes_another_run_is_refused_in_one_line",
            "tests/test_main.py::test_a_mistake_is_one_line_and_exit_code_2",
        ),
    ),
    Row(
        "`--config.init_from=None`; an argument of the model that the experiment does not set",
        "None where None is legal; every argument of the chosen model can be set, with its type",
        ("tests/test_main.py::test_none_and_arguments_of_the_model_that_the_experiment_does_not_set",),
    ),
    Row(
        "a file system without flock (errno 38, 37, 95)",
        "a warning; a file with its owner and a heartbeat is the lock, taken over when it has stood still for 20 s",
        (
            f"{SURROUNDINGS}::test_two_writers_where_there_are_no_locks",
            f"{SURROUNDINGS}::test_a_file_stands_for_a_lock",
            f"{SURROUNDINGS}::test_another_error_of_a_lock",
        ),
    ),
    Row(
        "a signal to all processes of a run, again and again from before its processes that decode have begun",
        "these leave it to the run, which goes on decoding",
        ("tests/data/test_stream.py::test_processes_that_decode_leave_signals_to_the_run_and_do_not_outlive_it",),
    ),
    Row(
        "nobody reads stderr or stdout any more (`| head`, a closed terminal, a full disk)",
        "training continues; a result of `--mode=eval` that cannot be stored is exit 74",
        (
            f"{SURROUNDINGS}::test_a_run_outlives_the_readers_of_its_output",
            f"{SURROUNDINGS}::test_a_result_that_cannot_be_stored_is_an_error",
        ),
    ),
    Row(
        "several processes: a host name that does not resolve",
        "exit 2, the name named",
        (f"{SURROUNDINGS}::test_a_machine_whose_name_does_not_resolve", f"{SURROUNDINGS}::test_an_address_that_is_none"),
    ),
    Row(
        "several processes: a proxy in the environment, or one that never comes",
        "no proxy is asked; exit 2 after 60 s by `launch.local`, 300 s otherwise, without another try; a stop is obeyed meanwhile",
        (
            f"{SURROUNDINGS}::test_processes_of_a_run_need_no_proxy",
            f"{SURROUNDINGS}::test_a_rendezvous_is_bounded",
            f"{SURROUNDINGS}::test_a_stop_is_obeyed_while_waiting_for_the_others",
        ),
    ),
)  # fmt: skip
