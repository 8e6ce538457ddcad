"""Mistakes in a script that the doctor finds without running it."""

import pytest

from tfdist import ConfigError
from tfdist.doctor import script


def checks(code):
    tree, findings = script.parse_source(code.encode(), "train.py")
    assert findings == []
    return [f.check.removeprefix("script.") for f in script.check("train.py", tree)]


JOIN = """
server = tf.distribute.Server(cluster, job_name="ps", task_index=0)
if FLAGS.job_name == "ps":
    server.join()
"""


@pytest.mark.parametrize("code", [JOIN, "tf.train.Server(c, job_name='ps').join()"])
def test_server_join_is_found(code):
    assert checks(code) == ["server_join"]


@pytest.mark.parametrize(
    "code",
    [
        JOIN.replace("server.join()", "tfdist.parameter_server(task)"),
        "server = tf.distribute.Server(c)\nthread.join()",
        "server = http.server()\nserver.join()",
        "os.path.join('a', 'b')\n','.join(names)",
    ],
)
def test_other_joins_are_no_finding(code):
    assert checks(code) == []


@pytest.mark.parametrize(
    "code",
    [
        "tf.data.Dataset.list_files(p).shard(n, i)",
        "tf.data.Dataset.list_files(p, shuffle=True).map(f).shard(n, i)",
        "tf.data.Dataset.list_files(p, None).shard(n, i)",
        "files = tf.data.Dataset.list_files(p)\ndata = files.map(f)\ndata = data.shard(n, i)",
    ],
)
def test_a_shard_of_shuffled_files_is_found(code):
    assert checks(code) == ["list_files"]


@pytest.mark.parametrize(
    "code",
    [
        "tf.data.Dataset.list_files(p, shuffle=False).shard(n, i)",
        "tf.data.Dataset.list_files(p, False).shard(n, i)",
        "tf.data.Dataset.list_files(p, seed=3).shard(n, i)",
        "tf.data.Dataset.list_files(p, True, 3).shard(n, i)",
        "tf.data.Dataset.list_files(p, **options).shard(n, i)",
        "tf.data.Dataset.list_files(p, shuffle=is_training).shard(n, i)",
        "tf.random.set_seed(1)\ntf.data.Dataset.list_files(p).shard(n, i)",
        "tf.data.Dataset.list_files(p).interleave(f)",
        "a = tf.data.Dataset.list_files(p)\nb = tf.data.Dataset.range(9).shard(n, i)",
        "a = b\nb = a\na.shard(n, i)",
    ],
)
def test_other_shards_are_no_finding(code):
    assert checks(code) == []


def test_disabling_eager_execution_is_found():
    assert checks("tf.compat.v1.disable_eager_execution()") == ["eager"]
    assert checks("tf.disable_v2_behavior()") == ["eager"]
    assert checks("tf.executing_eagerly()") == []


SESSION = """
with tfdist.worker_server(task) as target:
    with tf.compat.v1.Session(target) as session:
        session.run(step)
"""


def test_a_session_without_filters_is_found():
    assert checks(SESSION) == ["device_filters"]
    other = "s = tf.distribute.Server(c)\ntf.compat.v1.train.MonitoredTrainingSession(s.target)"
    assert checks(other) == ["device_filters"]


@pytest.mark.parametrize(
    "code",
    [
        SESSION.replace("(target) as s", "(target, config=C(device_filters=f)) as s"),
        SESSION + "config.device_filters.append('/job:ps')",
        SESSION.replace("tfdist.worker_server(task)", "nothing()"),
        SESSION.replace("tf.compat.v1.Session", "tfdist.train.session"),
    ],
)
def test_a_session_with_filters_or_without_a_server_is_no_finding(code):
    assert checks(code) == []


def test_a_finding_names_the_line():
    tree, _ = script.parse_source(b"\n\ntf.disable_v2_behavior()", "train.py")
    (finding,) = script.check("train.py", tree)
    assert finding.what.startswith("train.py:3: ")


@pytest.mark.parametrize(
    ("source", "where"),
    [(b"x = 1\nx =\n", "train.py:2: "), (b"\xff\xfe", "train.py"), (b"\0", "train.py")],
)
def test_a_syntax_error_is_a_finding(source, where):
    tree, (finding,) = script.parse_source(source, "train.py")
    assert tree is None
    assert (finding.check, finding.severity) == ("script.syntax", "error")
    assert finding.what.startswith(where)


def test_a_missing_script_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        script.parse(str(tmp_path / "gone.py"))
    with pytest.raises(ConfigError, match="directory"):
        script.parse(str(tmp_path))
