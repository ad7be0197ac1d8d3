"""Which type's tolerance a file is judged by: its graph's, whatever it claims."""

from __future__ import annotations

from pom_export.graph.exported import PRECISIONS, ExportedModel

_DTYPE = "dtype"


def judged_precision(model: ExportedModel, matrix_values: int | None = None) -> tuple[str, list[str]]:
    """Return the type whose tolerance applies, and what is to be noted.

    The graph's weights decide: half precision's bound is for a graph whose products are in half. A claim to the
    contrary makes it stricter at most.

    Args:
        model: the file.
        matrix_values: how many numbers the reference's weight matrices have: so many, by half at least, must be in
            half, and fewer than half of that in float32; None: there is no reference but outputs.
    """
    found, claimed = model.precision, model.properties.get(_DTYPE, "")
    notes = []
    if matrix_values is not None and found != PRECISIONS[0]:
        single = model.weight_types.get("float32", 0) + model.weight_types.get("float64", 0)
        half = sum(model.weight_types.get(precision, 0) for precision in PRECISIONS[1:])
        if 2 * half < matrix_values or 2 * single > matrix_values:
            notes.append(f"{half} numbers of its weights are in {found}, of the reference's {matrix_values}")
            found = PRECISIONS[0]
    if claimed and claimed != found:
        stricter = min(claimed, found, key=PRECISIONS.index)
        notes.append(f"the file says {claimed}, its weights are {found}: judged as {stricter}")
        return stricter, notes
    return found, notes
