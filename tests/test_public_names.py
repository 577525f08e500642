"""What each folder of the library exports, and that a public name means one thing."""

import ast
import importlib
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXPORTS = {
    "data": """
        Channels DECODERS IGNORED ImageEntry Images KINDS Labels LabelsEntry Progress SAMPLE_NAMES
        SIDES SPLIT_FILE Sample Split SplitImage TrainingImages check_dataset damaged_entries
        dataset_digest dataset_files dataset_name decode_rle describe_training draw_synthetic
        encode_rle fingerprint fitting_scale folds_of format_problems format_report group_by_slide
        identities images_code images_of_known_slides imaging_kind in_threads is_sample labels_code
        load_image load_labels make_split open_raw originals picture_ending plain_cell prepare_images
        prepare_labels raw_digests read_images read_labels read_split read_truth reader_versions
        require_outside require_unchanged safe_cell scale_for shared_images slides_of_entries
        source_digests split_of_all_folds unlike write_index write_synthetic
    """,
    "engine": """
        Delivery EVENTS EventLog GpuError OutOfMemoryError RECORD SWITCHES Stage StoppedError
        abandoned_on_error active_switches back_up_home check_servers code_digest damaged_files
        end_with epochs explained follow fresh_home home_folder home_id home_in_use home_unused
        is_database_locked is_refusal kernel_switches new_process prepare_environment
        raise_if_abandoned raise_if_refused reporter run_in_worker run_stage ui_url use_lock
        without_credentials
    """,
    "network": """
        BUILTIN CHANNELS ExportFormat KERAS_LIBRARIES ModelOrigin bce_dice_loss best_precision
        build_segmenter builtin_model configure device_kind export_model gpu_compute_capability
        load_model maps_loss nvidia_gpus prediction_key random_matrix require_export resolve
        segment_images usable_cores warp_sample write_maps
    """,
    "nuclei": """
        Imported LabelFormat Outlines SPREAD THRESHOLDS encode_label_image import_annotations
        match_nuclei mean_spread nucleus_errors rated_nuclei read_submission
        require_format resize_maps separate_nuclei submission_rows table_csv validate_submission
        write_submission
    """,
    "reports": """
        Candidate Comparison PREDICTED_LEGEND SUSPECT_COLUMNS UNSURE_LEGEND Verdict compare_scores
        contact_sheet data_uri decide disagreement evaluate_model find_suspects format_scores
        markdown_table match_submission model_card most_uncertain overlay_file parallel_coordinates
        pictures predicted_overlay read_uncertainty score_interval scores_table short_name
        split_sheet suspects_sheet training_curves tuned_keys
    """,
    "runs": """
        CHAMPION EPOCHS ImageDifference KNOWS_EVERY Record Reproduction Trial best_half best_of
        candidates checkout_source compare_submissions describe_model fetch_origin fetch_record
        fetch_start_weights images_seen installed_packages make_database model_versions
        out_of_fold_scores recent_runs refused_by_mlflow reproduction_script require_run
        require_same_data run_differences run_of run_url side_by_side slides_seen submission_scores
        unseen_samples validation_warning with_start
    """,
}
HEAVY = {"keras", "tensorflow", "jax", "mlflow", "prefect", "matplotlib", "skimage", "sklearn"}
SHARED_VERBS = {"predict", "reproduce", "retrain", "sweep"}
"""A command, its flow and its task may share a verb."""


@pytest.mark.parametrize("folder", EXPORTS)
def test_the_public_names_of_a_folder(folder: str) -> None:
    module = importlib.import_module(f"nucleus_unet.{folder}")
    assert sorted(module.__all__) == EXPORTS[folder].split()
    assert all(hasattr(module, name) for name in module.__all__)


def definitions(path: Path) -> Iterator[str]:
    """The public names that a module defines."""
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            nodes = (part for target in targets for part in ast.walk(target))
            names = [part.id for part in nodes if isinstance(part, ast.Name)]
        else:
            continue
        yield from (name for name in names if not name.startswith("_"))


def test_a_public_name_is_defined_once() -> None:
    places = defaultdict(set)
    for package in ("nucleus_cli", "flows", "tasks", "nucleus_unet"):
        for path in ROOT.glob(f"{package}/**/*.py"):
            for name in definitions(path):
                places[name].add(str(path.relative_to(ROOT)))
    repeated = {name: found for name, found in places.items() if len(found) > 1}
    assert repeated.keys() == SHARED_VERBS


@pytest.mark.parametrize(
    "code",
    [
        *(f"import nucleus_unet.{folder}" for folder in EXPORTS),
        "from nucleus_unet.network import KERAS_LIBRARIES, resolve, write_maps",
        "from nucleus_unet.runs import Record, checkout_source",
    ],
)
def test_importing_a_folder_or_a_light_name_loads_no_heavy_package(
    code: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert HEAVY & set(done.stdout.split()) == set()
