"""Packages whose public names are imported when they are first used."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


class _Lazy(ModuleType):
    """Keeps `package.fit` the function, also when something imports the module package.fit."""

    _home: Mapping[str, str]

    def __getattr__(self, name: str) -> Any:
        home = self.__dict__["_home"]
        if name not in home:
            known = ", ".join(sorted(home))
            raise AttributeError(f"{self.__name__} has no {name!r}; it has {known}")
        value = getattr(import_module(home[name]), name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in self._home and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted(self._home)


def lazy(package: str, home: Mapping[str, str]) -> None:
    """Let a package give each name from the module that is its home, on first use.

    Args:    home: name -> module; a name may be that of its own module.
    """
    module = sys.modules[package]
    module.__dict__["_home"] = home
    module.__class__ = _Lazy
