"""Nothing here runs what it reads, or compares secrets in a time that depends on them; and the search has teeth."""

from pathlib import Path

import pytest

from tests.security.banned import banned_in

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
FUZZ = sorted((ROOT / "fuzz").rglob("*.py"))
CANARIES = {
    "pickle": "import pickle\npickle.loads(b'')",
    "pickle under another name": "from pickle import loads as decode",
    "pickle inside a function": "def f():\n    import _pickle",
    "a deserialiser by its name": "import importlib\nimportlib.import_module('pickle')",
    "marshal": "import marshal",
    "shelve": "import shelve",
    "dill": "import dill",
    "joblib": "from joblib import load",
    "cloudpickle": "import cloudpickle.cloudpickle",
    "eval": "eval('1')",
    "exec": "exec('1')",
    "compile": "compile('1', '', 'eval')",
    "torch.load": "import torch\ntorch.load('x')",
    "torch.load that says it is safe": "import torch as t\nt.load('x', weights_only=True)",
    "yaml.load": "import yaml\nyaml.load('x')",
    "yaml.load with the wrong loader": "import yaml\nyaml.load('x', Loader=yaml.Loader)",
    "yaml.unsafe_load": "import yaml\nyaml.unsafe_load('x')",
    "numpy with pickles": "import numpy as np\nnp.load('x', allow_pickle=True)",
    "numpy with maybe pickles": "import numpy as np\nnp.load('x', allow_pickle=flag)",
    "pandas pickles": "import pandas\npandas.read_pickle('x')",
    "zmq's pickles": "socket.recv_pyobj()",
    "a shell": "import subprocess\nsubprocess.run('x', shell=True)",
    "a shell by chance": "import subprocess\nsubprocess.run('x', shell=flag)",
    "os.system": "import os\nos.system('x')",
    "os.popen": "import os\nos.popen('x')",
    "asyncio's shell": "import asyncio\nasyncio.create_subprocess_shell('x')",
    "hmac ==": "import hmac\nhmac.digest(k, m, 'sha256') == tag",
    "hmac object ==": "import hmac\nhmac.new(k, m).hexdigest() != given",
    "grants ==": "state.grant == event.grant",
    "secrets !=": "ok = presented_secret != self._secret",
}
HARMLESS = {
    "yaml.safe_load": "import yaml\nyaml.safe_load('x')",
    "yaml.parse": "import yaml\nyaml.load('x', Loader=yaml.CSafeLoader)",
    "numpy without": "import numpy as np\nnp.load('x', allow_pickle=False)",
    "compare_digest": "import hmac\nhmac.compare_digest(grant, other_grant)",
    "a method called load": "config.load('x')",
    "is None": "state.grant is None",
    "tokens of a text": "token == other_token",
    "no shell": "import subprocess\nsubprocess.run(['x'])",
}


@pytest.mark.parametrize("what", CANARIES)
def test_the_search_finds_each_of_them(what):
    assert banned_in(CANARIES[what])


@pytest.mark.parametrize("what", HARMLESS)
def test_the_search_leaves_the_right_way_alone(what):
    assert banned_in(HARMLESS[what]) == []


def test_there_is_none_in_our_code():
    assert len(SOURCES) > 100
    found = {
        f"{path.relative_to(ROOT)}:{one.line}": one.what
        for path in (*SOURCES, *FUZZ)
        for one in banned_in(path.read_text(encoding="utf-8"))
    }
    assert found == {}
