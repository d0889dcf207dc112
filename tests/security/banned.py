"""Calls that must not be here, found in syntax trees. What ruff finds by import, this finds by use as well."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Found", "banned_in"]

MODULES = frozenset(
    {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle", "pickletools"}
)
"""Deserialisers that run what they read."""

BUILTINS = frozenset({"eval", "exec", "compile", "__import__"})
METHODS = frozenset({"recv_pyobj", "send_pyobj", "load_state_dict_from_url", "read_pickle", "unsafe_load", "full_load"})
SAFE_LOADERS = ("SafeLoader", "CSafeLoader")
SECRETS = ("tag", "mac", "hmac", "grant", "secret", "signature", "password")
"""Names whose equality is to be asked of `hmac.compare_digest`. As whole words of a name."""


@dataclass(frozen=True, slots=True)
class Found:
    """One finding."""

    line: int
    what: str


def banned_in(source: str) -> list[Found]:
    """Every banned call in a module's source."""
    return sorted({Found(node.lineno, what) for node, what in _walk(ast.parse(source))}, key=lambda found: found.line)


def _walk(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                for alias in node.names:
                    if alias.name.split(".")[0] in MODULES:
                        yield node, f"import {alias.name}"
            case ast.ImportFrom() if (node.module or "").split(".")[0] in MODULES:
                yield node, f"from {node.module} import"
            case ast.Call():
                yield from ((node, what) for what in _call(node))
            case ast.Compare() if any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
                names = [_last(side) for side in (node.left, *node.comparators)]
                if sum(_secret(name) for name in names) >= 2 or any(
                    _is_digest(s) for s in (node.left, *node.comparators)
                ):
                    yield node, "secret compared with =="


def _call(node: ast.Call) -> Iterator[str]:
    name, last = _name(node.func), _last(node.func)
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    if name in BUILTINS:
        yield f"{name}()"
    if last in METHODS:
        yield f"{last}()"
    if last in ("import_module",) and node.args and _text(node.args[0]).split(".")[0] in MODULES:
        yield "import_module of a deserialiser"
    if name in ("torch.load", "torch.jit.load", "torch.package.PackageImporter"):
        yield f"{name}()"
    if name in ("yaml.load", "yaml.load_all") and _last(keywords.get("Loader", ast.Constant(None))) not in SAFE_LOADERS:
        yield f"{name}()"
    if "allow_pickle" in keywords and _constant(keywords["allow_pickle"]) is not False:
        yield "allow_pickle"
    if name in ("os.system", "os.popen"):
        yield f"{name}()"
    if "shell" in keywords and _constant(keywords["shell"]) is not False:
        yield "shell=True"
    if last == "create_subprocess_shell":
        yield "create_subprocess_shell()"
    if name in ("tempfile.mktemp",):
        yield f"{name}()"
    if keywords.get("weights_only") is not None:
        yield "weights_only: torch.load by another name"


def _name(node: ast.AST) -> str:
    """`a.b.c` of an expression, '' where it is no plain name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return ""


def _last(node: ast.AST) -> str:
    return _name(node).rpartition(".")[2]


def _text(node: ast.AST) -> str:
    value = _constant(node)
    return value if isinstance(value, str) else ""


def _constant(node: ast.AST) -> object:
    return node.value if isinstance(node, ast.Constant) else ...


def _secret(name: str) -> bool:
    return any(word in SECRETS for word in name.lower().split("_"))


def _is_digest(node: ast.AST) -> bool:
    """`hmac.new(...).digest()`, `hmac.digest(...)` as a side of a comparison."""
    if not isinstance(node, ast.Call):
        return False
    if _name(node.func) in ("hmac.digest", "hmac.new"):
        return True
    inner = node.func.value if isinstance(node.func, ast.Attribute) else None
    return isinstance(inner, ast.Call) and _is_digest(inner)
