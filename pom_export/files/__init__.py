"""Read files, and write outputs completely or not at all, together with the files that belong to them."""

from pom_export.files.mistaken import mistaken_for
from pom_export.files.names import AnyPath, as_path
from pom_export.files.places import check_replaceable, check_writable, made_folder
from pom_export.files.reading import readable_file, sha256_of
from pom_export.files.staged_folder import check_new_folder, staged_folder
from pom_export.files.staging import staged_output
from pom_export.files.staging_folder import scratch_folder

__all__ = [
    "AnyPath",
    "as_path",
    "check_new_folder",
    "check_replaceable",
    "check_writable",
    "made_folder",
    "mistaken_for",
    "readable_file",
    "scratch_folder",
    "sha256_of",
    "staged_folder",
    "staged_output",
]
