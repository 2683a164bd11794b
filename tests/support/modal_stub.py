"""As much of the package `modal` as deploy/modal uses, for machines without it.

What is built or run at Modal is only remembered; `.local()` runs the function here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any


class Image:
    """Remembers its steps."""

    def __init__(self, *steps: tuple[str, tuple[Any, ...], dict[str, Any]]) -> None:
        self.steps = steps

    @staticmethod
    def debian_slim(**options: Any) -> Image:
        return Image(("debian_slim", (), options))

    def _and(self, name: str, *arguments: Any, **options: Any) -> Image:
        return Image(*self.steps, (name, arguments, options))

    def pip_install(self, *arguments: str) -> Image:
        return self._and("pip_install", *arguments)

    def add_local_file(self, local: Any, remote: str, *, copy: bool) -> Image:
        return self._and("add_local_file", local, remote, copy=copy)

    def add_local_dir(self, local: Any, remote: str, *, copy: bool, ignore: list[str]) -> Image:
        return self._and("add_local_dir", local, remote, copy=copy, ignore=ignore)

    def run_commands(self, *commands: str) -> Image:
        return self._and("run_commands", *commands)

    def env(self, variables: dict[str, str]) -> Image:
        return self._and("env", variables)


class Volume:
    def __init__(self, name: str) -> None:
        self.name = name

    @staticmethod
    def from_name(name: str) -> Volume:
        return Volume(name)

    def commit(self) -> None:
        raise AssertionError("there is no volume here")


class Secret:
    @staticmethod
    def from_name(name: str, *, required_keys: list[str]) -> Secret:
        return Secret()


class Function:
    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def local(self, *arguments: Any, **options: Any) -> Any:
        return self._function(*arguments, **options)


class App:
    def __init__(self, name: str) -> None:
        self.name = name

    def function(
        self,
        *,
        image: Image,
        volumes: dict[str, Volume],
        timeout: int,
        gpu: str | None = None,
        secrets: tuple[Secret, ...] = (),
        max_containers: int | None = None,
    ) -> Callable[[Callable[..., Any]], Function]:
        return Function


@contextlib.contextmanager
def forward(port: int, *, h2_enabled: bool = False) -> Iterator[SimpleNamespace]:
    raise AssertionError("there is no tunnel here")
    yield


def module() -> ModuleType:
    """The package."""
    made = ModuleType("modal")
    for thing in (Image, Volume, Secret, App, forward):
        setattr(made, thing.__name__, thing)
    made.is_local = lambda: True  # type: ignore[attr-defined]
    return made
