"""VBench's scores of every model whose sixteen dimensions the paper prints."""

import json

import pytest

from dollar_jax.errors import UserError
from dollar_jax.evaluate import vbench

# Columns of the paper's tables: the sixteen dimensions, then quality, semantic and total score, all in percent. Of
# Tab. 2 the models that the authors measured, and one of those that others did.
ROWS = [
    *("subject_consistency", "background_consistency", "temporal_flickering", "motion_smoothness", "dynamic_degree"),
    *("aesthetic_quality", "imaging_quality", "object_class", "multiple_objects", "human_action", "color"),
    *("spatial_relationship", "scene", "temporal_style", "appearance_style", "overall_consistency"),
    *("quality", "semantic", "total"),
]
TABLES = {
    "Tab. 2": {
        "Pika": "96.76 98.95 99.77 99.51 37.22 63.15 62.33 87.45 46.69 88.00 85.31 65.65"
        " 44.80 24.44 21.89 25.47 82.68 71.26 80.40",
        "teacher": "83.99 93.78 96.42 98.09 99.44 61.21 63.87 85.79 52.59 99.60 77.00 51.40"
        " 49.99 26.45 24.83 27.89 81.89 73.71 80.25",
        "DOLLAR (PickScore)": "93.77 96.80 96.30 97.76 75.83 63.80 69.40 91.63 69.71 99.00 77.95 68.56"
        " 55.06 24.64 24.45 26.93 83.49 77.90 82.37",
        "DOLLAR (HPSv2)": "92.57 96.14 97.48 98.59 81.67 63.14 65.61 93.84 72.21 99.00 74.78 68.35"
        " 52.72 25.23 23.50 26.85 83.83 77.51 82.57",
    },
    "Tab. 15": {
        "teacher": "83.99 93.78 96.42 98.09 99.44 61.21 63.87 85.79 52.59 99.60 77.00 51.40"
        " 49.99 26.45 24.83 27.89 81.89 73.71 80.25",
        "VSD4": "93.26 95.82 95.79 97.48 58.61 61.34 68.21 94.72 69.24 99.80 71.81 64.80"
        " 51.89 24.93 24.31 26.38 80.95 76.61 80.08",
        "VSD4+DDPO (PickScore)": "95.26 96.21 96.56 96.45 85.83 61.85 65.98 94.29 72.33 98.00 76.28 65.19"
        " 52.60 25.00 23.99 26.43 82.99 77.26 81.84",
        "VSD4+LRM (PickScore)": "94.34 96.08 95.85 97.30 94.44 61.84 68.49 87.28 55.11 98.80 76.12 54.25"
        " 49.17 24.39 23.68 25.97 84.01 72.51 81.71",
        "VSD4+DDPO (HPSv2)": "93.27 96.22 96.64 97.56 81.67 61.66 66.39 91.91 65.32 98.20 70.00 61.75"
        " 49.65 24.53 23.66 26.67 82.97 74.56 81.29",
        "VSD4+LRM (HPSv2)": "91.99 96.93 96.80 97.39 85.56 63.14 67.35 90.65 60.34 99.40 73.69 63.81"
        " 53.43 25.02 24.53 26.76 83.53 75.67 81.96",
    },
    "Tab. 16": {
        "teacher": "84.80 94.10 96.12 97.99 97.78 57.74 65.41 88.45 56.54 99.60 77.75 51.21"
        " 50.89 26.52 24.76 27.96 81.50 74.64 80.13",
        "VSD1": "89.39 94.91 96.96 97.57 91.94 57.33 62.10 89.89 73.86 98.00 86.19 70.13"
        " 35.32 26.21 23.93 28.06 81.60 77.10 80.70",
        "VSD4": "92.98 96.12 96.55 97.12 61.39 58.24 67.79 93.12 72.29 98.20 79.55 70.09"
        " 42.95 24.91 23.87 26.42 80.75 76.67 79.94",
        "VSD4+LRM (PickScore)": "94.13 95.14 95.29 96.77 93.06 58.08 68.97 57.34 38.43 92.00 78.36 44.49"
        " 13.31 23.03 23.47 24.81 82.64 60.04 78.12",
        "VSD4+LRM (HPSv2)": "91.72 96.34 96.50 96.65 94.17 60.20 67.12 92.67 66.45 96.60 82.90 63.32"
        " 36.90 25.11 24.45 27.05 83.03 75.08 81.44",
        "VSD4+CD1": "84.83 93.87 94.84 97.08 93.61 55.32 62.28 80.54 47.90 96.60 67.55 55.34"
        " 29.53 25.02 23.03 27.13 79.27 67.52 76.92",
    },
    "Tab. 17": {
        "teacher": "83.99 93.78 96.42 98.09 99.44 61.21 63.87 85.79 52.59 99.60 77.00 51.40"
        " 49.99 26.45 24.83 27.89 81.89 73.71 80.25",
        "1 step": "90.09 94.39 96.79 97.72 86.39 60.26 61.82 90.03 67.71 98.40 74.43 69.17"
        " 49.74 26.03 23.90 27.14 81.61 76.66 80.62",
        "2 steps": "92.27 95.17 95.73 96.96 93.33 61.55 66.09 87.86 58.06 99.60 65.44 63.96"
        " 52.21 25.19 23.77 26.91 82.71 73.86 80.94",
        "4 steps": "93.26 95.82 95.79 97.48 58.61 61.34 68.21 94.72 69.24 99.80 71.81 64.80"
        " 51.89 24.93 24.31 26.38 80.95 76.61 80.08",
    },
    "Tab. 18": {
        "teacher": "83.99 93.78 96.42 98.09 99.44 61.21 63.87 85.79 52.59 99.60 77.00 51.40"
        " 49.99 26.45 24.83 27.89 81.89 73.71 80.25",
        "VSD4+CD1": "86.36 94.84 95.60 97.70 87.50 60.16 62.85 85.84 52.53 99.40 64.02 55.34"
        " 49.29 25.82 23.22 27.24 80.75 71.57 78.92",
        "VSD4+CD5, velocity": "86.37 94.70 96.48 98.04 90.28 62.16 65.24 89.79 63.86 99.20 71.38 59.50"
        " 49.49 25.30 23.81 27.08 82.16 74.58 80.65",
        "VSD4+CD5, x0": "85.47 93.37 96.51 98.05 95.28 60.95 63.39 87.07 54.51 99.60 69.35 54.89"
        " 53.85 26.04 24.09 27.73 81.65 73.66 80.05",
    },
}
COLUMNS = [(table, model) for table, models in TABLES.items() for model in models]


def column(table="Tab. 15", model="teacher"):
    """{dimension: value in 0..1} and {score: percent}."""
    numbers = dict(zip(ROWS, map(float, TABLES[table][model].split()), strict=True))
    return {name: numbers[name] / 100 for name in ROWS[:16]}, {name: numbers[name] for name in ROWS[16:]}


@pytest.mark.parametrize(("table", "model"), COLUMNS)
def test_the_papers_tables(table, model):
    values, wanted = column(table, model)
    found = vbench.scores(values)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=0.011), name


def test_the_best_and_the_worst_scores():
    """At the ends of VBench's intervals; half the weight of the total's fifth is the dynamic degree's share."""
    high, low = ({name: getattr(one, end) for name, one in vbench.DIMENSIONS.items()} for end in ("high", "low"))
    assert vbench.scores(high) == pytest.approx({"quality": 100, "semantic": 100, "total": 100})
    assert vbench.scores(low) == pytest.approx({"quality": 0, "semantic": 0, "total": 0})
    only = low | {"dynamic_degree": 1.0}
    assert vbench.scores(only) == pytest.approx({"quality": 50 / 6.5, "semantic": 0, "total": 40 / 6.5})


def test_a_group_without_all_its_dimensions_has_no_score():
    values, wanted = column()
    del values["scene"], values["color"]
    assert vbench.scores(values) == pytest.approx({"quality": wanted["quality"]}, abs=0.011)
    assert vbench.missing(values) == ["color", "scene"]
    assert vbench.scores({}) == {}


def test_results_as_vbench_writes_them(tmp_path):
    values, _ = column()
    path = tmp_path / "results.json"
    clips = [{"video_path": "a.mp4", "video_results": 0.5}]
    path.write_text(json.dumps({name: [value, clips] for name, value in values.items()} | {"i2v_subject": [0.9]}))
    assert vbench.read_results(str(path)) == values
    path.write_text(json.dumps(values | {"human_action": 1}))
    assert vbench.read_results(str(path)) == values | {"human_action": 1.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("{", "Expecting"),
        ("[0.5]", "wanted"),
        ('{"color": [77.0]}', "color is 77.0"),
        ('{"color": []}', r"color is \[\]"),
        ('{"color": "0.77"}', "color is '0.77'"),
        ('{"color": true}', "color is True"),
        ('{"color": NaN}', "color is nan"),
        ('{"color": null}', "color is None"),
        ('{"color": -Infinity}', "color is -inf"),
        ('{"color": 1e999}', "color is inf"),
        ('{"color": [[0.5]]}', r"color is \[0.5\]"),
        ('{"color": {"value": 0.5}}', "color is {'value': 0.5}"),
        ('{"color": [["' + "x" * 10_000 + '"]]}', r"color is \['x+\.\.\.x+'\]"),
        ('{"color": "\\u001b[2J\\n0.5"}', r"color is '\\x1b\[2J\\n0.5'"),
        ('{"color": ' + "[" * 900 + "]" * 900 + "}", r"color is \[\[\["),
        ('{"color": ' + "1" * 4000 + "}", r"color is 1+\.\.\.1+"),
        ("[" * 100_000, "recursion"),
        ("1" * 100_000, "Exceeds the limit"),
        (b'{"color": "\xff"}', "can't decode byte 0xff"),
    ],
)
def test_what_is_no_result_is_refused(text, words, tmp_path):
    path = tmp_path / "results.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=words) as caught:
        vbench.read_results(str(path))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_the_table():
    values, _ = column()
    del values["scene"]
    lines = vbench.table(values, vbench.scores(values)).splitlines()
    assert len({len(line) for line in lines}) == 1
    shown = {line.rsplit(maxsplit=1)[0]: line.rsplit(maxsplit=1)[1] for line in lines if set(line) != {"-"}}
    assert (shown["color"], shown["scene"]) == ("77.00", "-")
    assert [shown[name] for name in ("quality", "semantic", "total")] == ["81.89", "-", "-"]
