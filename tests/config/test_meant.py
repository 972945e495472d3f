"""What people write is taken as they mean it, or refused in one line with its key: text, paths, sizes, editors."""

from __future__ import annotations

from pathlib import Path

import pytest

from partialkd.config.keys import nearest
from partialkd.config.load import load_config
from partialkd.errors import ConfigError

FILE = """
[run]
name = "trial"
[data]
path = "data/trial"
[student]
model = { name = "mobilefacenet" }
method = { name = "arcface" }
epochs = 2
global_batch = 64
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize("name", ["20241129", "1.10", "007", "2024_11", "2024-11-29", "true", "1e5", "0x10", "x=y"])
def test_text_needs_no_quotes_in_an_override(file: Path, name: str) -> None:
    assert load_config(file, [f"data.path={name}"]).data.path == name
    assert load_config(file, [f"evaluate.sets=[{name}, lfw.bin]"]).evaluate.sets == (name, "lfw.bin")


@pytest.mark.parametrize(
    ("written", "sets"),
    [
        ("[lfw.bin]", ("lfw.bin",)),
        (" [ lfw.bin , cfp.bin, ] ", ("lfw.bin", "cfp.bin")),
        ("['a, b.bin', c.bin, \"d.bin\"]", ("a, b.bin", "c.bin", "d.bin")),
        ("[2024_1, 7]", ("2024_1", "7")),
        ("[]", ()),
    ],
)
def test_a_list_may_hold_bare_words(file: Path, written: str, sets: tuple[str, ...]) -> None:
    assert load_config(file, [f"evaluate.sets={written}"]).evaluate.sets == sets


def test_a_bare_list_of_numbers_stays_one(file: Path) -> None:
    assert load_config(file, ["evaluate.fars=[0.1, 1e-4]"]).evaluate.fars == (0.1, 1e-4)
    with pytest.raises(ConfigError, match=r"^override evaluate\.fars=\[a, 0\.1\]: evaluate\.fars\.0: must be a valid"):
        load_config(file, ["evaluate.fars=[a, 0.1]"])


def test_a_number_or_date_in_the_file_where_text_is_meant(file: Path) -> None:
    for written, name in (("20241129", "20241129"), ("2024-11-29", "2024-11-29")):
        file.write_text(FILE.replace('"trial"', written))
        assert load_config(file).run.name == name
    file.write_text(FILE.replace('"trial"', "1.10"))  # TOML does not keep how it was written
    with pytest.raises(ConfigError, match=r"run\.toml: run\.name: must be a valid string, got 1\.1$"):
        load_config(file)


def test_home_and_variables_in_every_path(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/she")
    monkeypatch.setenv("FACES", "/big/faces")
    given = [
        "run.folder=~/runs", "data.path=$FACES", "data.label_map=${FACES}/map.txt", "data.exclude_identities=~/out.txt",
        "data.index_cache=$HOME/index", "evaluate.sets=[~/lfw.bin, b.bin]", "teacher.source=checkpoint",
        "teacher.path=~/t.safetensors", "teacher.cache=$FACES/cache", "teacher.centres=classifier",
        "teacher.classifier=~/fc.npy", "teacher.label_map=identity",
        "data.prepare={kind='archive', images='~/a.tar.gz', exclude_identities='~/o', pairs_images='~/p', pairs='~/c'}",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="must be left out beside"):
        load_config(file, [*given, "data.parts=[{path='x'}]"])
    config = load_config(file, given)
    data, teacher = config.data, config.teacher
    assert (config.run.folder, data.path, data.label_map) == ("/users/she/runs", "/big/faces", "/big/faces/map.txt")
    assert (data.exclude_identities, data.index_cache) == ("/users/she/out.txt", "/users/she/index")
    assert config.evaluation.sets == ("/users/she/lfw.bin", "/big/faces/b.bin")
    assert (teacher.path, teacher.cache) == ("/users/she/t.safetensors", "/big/faces/cache")
    assert (teacher.classifier, teacher.label_map) == ("/users/she/fc.npy", "identity")
    assert data.prepare is not None
    assert "~" not in data.prepare.model_dump_json()
    part = load_config(file, ["data.parts=[{path='~/d', label_map='~/m', exclude_identities='~/e'}]"]).data.parts[0]
    assert (part.path, part.label_map, part.exclude_identities) == ("/users/she/d", "/users/she/m", "/users/she/e")


def test_a_variable_that_is_not_set_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FACES", raising=False)
    with pytest.raises(ConfigError) as error:
        load_config(file, ["data.path=$FACES/webface"])
    assert str(error.value) == (
        "override data.path=$FACES/webface: must name environment variables that are set, $FACES is not, "
        "got '$FACES/webface'"
    )


def test_files_of_other_editors(file: Path) -> None:
    plain = load_config(file)
    for text in (b"\xef\xbb\xbf" + FILE.encode(), FILE.replace("\n", "\r\n").encode()):
        file.write_bytes(text)
        assert load_config(file) == plain
    file.write_bytes(FILE.encode("utf-16"))
    with pytest.raises(ConfigError, match=r"run\.toml: must be text in UTF-8: "):
        load_config(file)


BEYOND = (
    "run.seed=18000000000001", "run.log_every=1e300", "dist.timeout_s=1e300", "student.model.width=1e300",
    "student.model.depth=1e9", "student.optimizer.lr=1e300", "student.optimizer.lr=1e-300", "student.epochs=1e300",
    "student.optimizer.eps=1e300", "student.optimizer.clip_norm=1e300", "student.centres.sample_rate=1e-300",
    "student.method.scale=1e300", "student.global_batch=100000000000000000000", "data.workers=1000000000",
    "evaluate.batch=1000000000000", "health.spike_factor=1e300", "teacher.input.std=1e-300", "teacher.input.mean=nan",
    "run.name=" + 300 * "x", "data.path='a\\u0000b'", "data.parts=[{path='a', weight=1e300}]",
)  # fmt: skip


@pytest.mark.parametrize("override", BEYOND)
def test_no_key_is_without_bounds(file: Path, override: str) -> None:
    override = override.replace("'a\\u0000b'", '"a\\u0000b"')
    with pytest.raises(ConfigError) as error:
        load_config(file, [override])
    told = str(error.value)
    assert told.startswith(f"override {override.partition('=')[0]}=")
    assert "must " in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (FILE + "max_steps = " + 5000 * "9", r"line 11: max_steps: must not be a number of 5000 digits"),
        (
            FILE + "max_steps = 0x" + 5000 * "9",
            r"student\.max_steps: must be less than or equal to 1000000000000, got a",
        ),
        (FILE + "max_steps = " + 5000 * "[", r"values are nested too deep"),
        (".".join(3000 * "a") + " = 1\n" + FILE, r"a(\.a)+\.\.\.: keys are nested at most 16 deep"),
        (FILE + 'model = ""', r"Cannot overwrite a value"),
    ],
)
def test_absurd_files_are_refused_in_a_line(file: Path, text: str, told: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"run\.toml: {told}") as error:
        load_config(file)
    assert len(str(error.value)) < 600
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("student.max_steps=" + 5000 * "9", "too long a number, or nested too deep"),
        ("student.max_steps=" + 5000 * "[", "too long a number, or nested too deep"),
        (".".join(3000 * "a") + "=1", "keys have at most 16 parts, this one 3000"),
    ],
)
def test_absurd_overrides_are_refused_in_a_line(file: Path, override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        load_config(file, [override])
    assert str(error.value).startswith(f"override {override[:80]}... ({len(override)} characters): ")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("student.lr", "student.optimizer.lr"),
        ("alone.optimizer.lrr", "alone.optimizer.lr"),
        ("student.optimizer.learning_rate", None),
        ("data.parts.0.wieght", "data.parts.weight"),
        ("teacher.train.epoch", "teacher.train.epochs"),
        ("evaluate.set", "evaluate.sets"),
        ("zzz", None),
    ],
)
def test_the_nearest_key(key: str, meant: str | None) -> None:
    assert nearest(key) == meant
