"""Where samples stand on the two maps, against the definition for one sample at a time."""

import numpy as np
import pyarrow as pa

from inrun.report._places import KINDS, components, sample_map, value_map


def visits_of(rows):
    """Visits in the order of steps, from {sample: its normalised values}; samples take turns."""
    length = max(map(len, rows.values()))
    found = [(t, i, x[t]) for t in range(length) for i, x in rows.items() if t < len(x)]
    step, ids, values = zip(*found, strict=True)
    return pa.table({"step": step, "sample_id": ids, "value_normalised": values})


def test_mean_spread_and_kind_are_those_of_each_samples_visits():
    rng = np.random.default_rng(0)
    rows = {i: (rng.normal(rng.normal(0, 1), 0.6, 6)).tolist() for i in range(30)}
    rows |= {
        30: [2.0] * 6,
        31: [-2.0] * 6,
        32: [3.0, -3.0] * 3,
        33: [4.0, 4, 4, 0, 0, 0],
        34: [1.0],
    }
    found = value_map(visits_of(rows))
    typical = np.median([np.mean(np.abs(x)) for x in rows.values()])
    for i, x in rows.items():
        mean, spread = np.mean(x), np.std(x, ddof=1) if len(x) > 1 else 0.0
        np.testing.assert_allclose((found["x"][i], found["y"][i]), (mean, spread), atol=1e-12)
        kind = "helpful" if mean >= 0 else "harmful"
        kind = "erratic" if abs(mean) < spread / 2 else kind
        kind = "finished" if np.mean(np.abs(x[len(x) // 2 :])) < typical / 4 else kind
        assert found["kind"][i] == (KINDS.index(kind) if len(x) > 1 else -1), (i, x)
    assert [KINDS[k] for k in found["kind"][30:34]] == list(KINDS)


def test_components_keep_most_of_the_distances():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(50, 5)) * [9, 4, 1, 0.5, 0.1] + 3
    found, share = components(rows)
    centred = rows - rows.mean(0)
    U, S, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(found), np.abs(U[:, :2] * S[:2]), atol=1e-9)
    np.testing.assert_allclose(share, (S[:2] ** 2).sum() / (S**2).sum())


def test_an_embedding_places_samples_before_their_values():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(8, 3))
    table = pa.table({"sample_id": range(8), "embedding": [str(r.tolist()) for r in rows]})
    found = sample_map(table, visits_of({i: [1.0] for i in range(8)}), ("one",))
    np.testing.assert_allclose(found["x"], components(rows)[0][:, 0])
    torn = table.set_column(1, "embedding", pa.array(["[1.0]", *[None] * 7]))
    assert sample_map(torn, visits_of({0: [1.0]}), ("one",)) == {}
