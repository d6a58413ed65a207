"""Check the Python and YAML blocks of Markdown pages, and the settings that pages name, without running anything."""

import ast
import builtins
import doctest
import importlib
import importlib.util
import inspect
import re
import shlex
import tempfile
import typing
from collections.abc import Iterator
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from docs_checker import FENCE, PLACEHOLDER, SPAN, commands_of, tool_of

from bootmae.config.load import find_config, load_config
from bootmae.config.options import OptionText
from bootmae.config.schema import READ
from bootmae.config.settings import apply_options, check_settings
from bootmae.suite.spec import load_suite, merge

WITH_CONFIG = ('train', 'test', 'knn', 'plan', 'visualize', 'verify_data')
NOT_A_CONFIG = re.compile(r'.*[/.]|timm:')
SETTING = re.compile(r'(?!.*\.(?:safetensors|pth|bin)$)([a-z_]+(?:\.\w+)+|[a-z_]+(?==\S))(?:=(\S.*)?)?$')
# a setting without a command must fit one of these
EXAMPLES = (
    *('bootmae_small_data', 'bootmae_vitb', 'mae_vitb', 'bootmae_vitb_finetune', 'bootmae_vitb_linear'),
    *('bootmae_vitb_upernet', 'bootmae_vitb_maskrcnn_1x', 'bootmae_vitb_vitdet', 'bootmae_small_data_finetune'),
)
UNKNOWN = object()  # what is not known about a value


def snippet_problems(text: str, root: Path) -> list[str]:
    """Return what is wrong with the snippets and settings of a page."""
    found, names = [], dict(vars(builtins))
    for language, block in FENCE.findall(text):
        if language in ('python', 'py'):
            found += python_problems(block, names, root)
        elif language in ('yaml', 'yml'):
            found += yaml_problems(block, root)
    return found + setting_problems(text)


# ---- settings


def setting_problems(text: str) -> list[str]:
    """Return settings that nothing reads, and names of configs that do not exist."""
    found = []
    for words in commands_of(text):
        tool, arguments = tool_of(words)
        if tool not in WITH_CONFIG:
            continue
        config = arguments[0] if arguments and not arguments[0].startswith('-') else 'CONFIG'
        named = not (PLACEHOLDER.search(config) or NOT_A_CONFIG.match(config))
        if named and config.isidentifier():
            found += _problem(find_config, config)
        ours = named or re.match(r'configs/[\w/]+\.py$', config)
        options = dict(_options(arguments))
        if options:
            found += _problem(_apply, (config,) if ours else EXAMPLES, options)
    for span in SPAN.findall(FENCE.sub('', text)):
        match = SETTING.match(' '.join(span.split()))
        if match and match[1].partition('.')[0] in READ and not re.search(r'\b[A-Z][A-Z_]+\b', span):
            value = shlex.split(match[2])[0] if match[2] else 'None'
            with_it = tuple(name for name in EXAMPLES if match[1].partition('.')[0] in _loaded(name))
            found += _problem(_apply, with_it or EXAMPLES, {match[1]: OptionText(value)})
    return found


def _options(arguments: list[str]) -> Iterator[tuple[str, OptionText]]:
    """Yield the settings after ``--cfg-options``."""
    inside = False
    for word in arguments:
        inside = word == '--cfg-options' or (inside and not word.startswith('--'))
        key, equals, value = word.partition('=')
        if inside and equals and not PLACEHOLDER.search(key):
            yield key, OptionText(value)


def _apply(configs: tuple[str, ...], options: dict[str, OptionText]) -> None:
    """Apply options to the first config that takes them; raises the error of the first one if none does."""
    errors = []
    for config in configs:
        try:
            cfg = deepcopy(_loaded(config))
            apply_options(cfg, options)
            check_settings(cfg)
        except ValueError as error:
            errors.append(error)
        else:
            return
    raise errors[0]


@lru_cache
def _loaded(config: str):
    return load_config(config)


def _problem(function, *args: Any) -> list[str]:
    try:
        function(*args)
    except (ValueError, FileNotFoundError) as error:
        return [str(error)]
    return []


# ---- YAML


def yaml_problems(block: str, root: Path) -> list[str]:
    """Return what is wrong with a suite file, or with a part of one."""
    try:
        content = yaml.safe_load(block)
    except yaml.YAMLError as error:
        return [f'not YAML: {error}']
    if not {'pretrain', 'tasks'} & set(content):  # a part, merged over a whole one
        content = merge(yaml.safe_load((root / 'suites' / 'paper_vitb.yaml').read_text(encoding='utf-8')), content)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'suite.yaml')
        file.write_text(yaml.safe_dump(content, sort_keys=False), encoding='utf-8')
        return _problem(load_suite, file)


# ---- Python


def python_problems(block: str, names: dict[str, Any], root: Path) -> list[str]:
    """Return names, attributes and arguments that do not exist; ``names`` are those of the page so far."""
    if '>>>' in block:
        block = ''.join(example.source for example in doctest.DocTestParser().get_examples(block))
    try:
        tree = ast.parse(block)
    except SyntaxError as error:
        return [f'not Python: {error}']
    if any(isinstance(node, ast.Name) and node.id == '_base_' for node in ast.walk(tree)):
        return config_problems(block, root)
    reader = Reader(names)
    reader.visit(tree)
    return reader.found


def config_problems(block: str, root: Path) -> list[str]:
    """Return what is wrong with a config file whose bases start in the folder in which the first one exists."""
    bases = re.findall(r"['\"]([^'\"]+\.py)['\"]", re.search(r'_base_ = (?:\[[^]]*\]|.*)', block)[0])
    base = bases[0]
    folders = [folder for folder in (root, *sorted((root / 'configs').iterdir())) if (folder / base).is_file()]
    if not folders and not base.startswith('bootmae::'):
        return [f'no base {base}']
    for name in bases if folders else ():  # other tests read these folders, so nothing is written there
        block = block.replace(name, str(folders[0] / name))
    with tempfile.NamedTemporaryFile('w', suffix='.py') as file:
        file.write(block)
        file.flush()
        return _problem(load_config, file.name)


class Reader(ast.NodeVisitor):
    """Follows names through a block as far as imports, signatures and annotations tell.

    Args:
        names: values by name: modules, classes and functions; of a variable, its class. Names are added.
    """

    def __init__(self, names: dict[str, Any]):
        self.names, self.found = names, []

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            module = self._module(alias.name)
            top = alias.name.partition('.')[0]
            self.names[alias.asname or top] = module if alias.asname else self._module(top)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = self._module(node.module)
        for alias in node.names:
            value = UNKNOWN if module is UNKNOWN else getattr(module, alias.name, None)
            if value is None:
                self.found.append(f'no {alias.name} in {node.module}')
            self.names[alias.asname or alias.name] = value or UNKNOWN

    def _module(self, name: str) -> Any:
        """The module; unknown if its package is not installed."""
        if importlib.util.find_spec(name.partition('.')[0]) is None:
            return UNKNOWN
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            self.found.append(f'no module {name}')
            return UNKNOWN

    def visit_Assign(self, node: ast.Assign) -> None:
        value = self.value(node.value)
        for target in node.targets:
            self._define(target, value)

    def visit_For(self, node: ast.For) -> None:
        self.value(node.iter)
        self._define(node.target, UNKNOWN)
        for part in node.body:
            self.visit(part)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            value = self.value(item.context_expr)
            if item.optional_vars:
                self._define(item.optional_vars, value)
        for part in node.body:
            self.visit(part)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.names[node.name] = UNKNOWN

    visit_ClassDef = visit_FunctionDef

    def visit_Expr(self, node: ast.Expr) -> None:
        self.value(node.value)

    def _define(self, target: ast.expr, value: Any) -> None:
        parts = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
        for part in parts:
            if isinstance(part, ast.Name):
                self.names[part.id] = value if part is target else UNKNOWN

    def value(self, node: ast.expr) -> Any:
        """What is known of the value of an expression; reports what does not exist in it."""
        if isinstance(node, ast.Name):
            if node.id not in self.names:
                self.found.append(f'{node.id} is not defined')
            return self.names.get(node.id, UNKNOWN)
        if isinstance(node, ast.Attribute):
            return self._attribute(self.value(node.value), node.attr, ast.unparse(node))
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.ListComp | ast.DictComp | ast.SetComp | ast.GeneratorExp | ast.Lambda):
            return UNKNOWN
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.value(child)
        return UNKNOWN

    def _attribute(self, owner: Any, name: str, text: str) -> Any:
        if owner is UNKNOWN:
            return UNKNOWN
        value = getattr(owner, name, UNKNOWN)
        if value is UNKNOWN and not _set_in_class(owner, name):
            self.found.append(f'no {text}')
        return value

    def _call(self, node: ast.Call) -> Any:
        function, text = self.value(node.func), ast.unparse(node.func)
        for part in [*node.args, *(keyword.value for keyword in node.keywords)]:
            self.value(part.value if isinstance(part, ast.Starred) else part)
        if not getattr(function, '__module__', '').startswith('bootmae'):
            return function if inspect.isclass(function) and function.__module__ != 'builtins' else UNKNOWN
        signature = inspect.signature(function)
        method = isinstance(node.func, ast.Attribute) and inspect.isclass(self.value(node.func.value))
        try:
            given = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            signature.bind(*[None] * (len(node.args) + method), **given)
        except TypeError as error:
            self.found.append(f'{text}: {error}')
        if text in ('bootmae.build', 'bootmae.train') and node.args and isinstance(node.args[0], ast.Constant):
            self.found += _problem(find_config, node.args[0].value)
        result = function if inspect.isclass(function) else typing.get_type_hints(function).get('return')
        return result if inspect.isclass(result) and result.__module__.startswith('bootmae') else UNKNOWN


def _set_in_class(owner: Any, name: str) -> bool:
    """Whether the code of a class sets an attribute of its objects."""
    if not inspect.isclass(owner):
        return False
    return any(
        name in getattr(part, '__annotations__', {}) or re.search(rf'\bself\.{name}\b', _source(part))
        for part in owner.__mro__
    )


def _source(part: type) -> str:
    try:
        return inspect.getsource(part)
    except (OSError, TypeError):
        return ''
