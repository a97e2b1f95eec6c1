"""A checkpoint's configuration, read so that nothing is assumed where it says something."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ltx2.errors import NotReady


@dataclass(frozen=True)
class Section:
    """One section of a file's configuration. It remembers what was asked of it.

    Args:
        file: the file's name, for messages.
        name: what the section is called.
        values: what it says.
    """

    file: str
    name: str
    values: Mapping[str, Any]
    asked: set[str] = field(default_factory=set)
    inner: dict[str, "Section"] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        """A value there is no default for.

        Raises:
            NotReady: the section does not have it.
        """
        self.asked.add(key)
        try:
            return self.values[key]
        except KeyError:
            raise NotReady(f"the configuration in {self.file} does not say {self.name}.{key}") from None

    def get(self, key: str, default: Any) -> Any:
        self.asked.add(key)
        return self.values.get(key, default)

    def section(self, key: str) -> "Section":
        """A section inside this one.

        Raises:
            NotReady: there is none.
        """
        values = self[key]
        if not isinstance(values, Mapping):
            raise self.unsupported(key)
        return self.inner.setdefault(key, Section(self.file, f"{self.name}.{key}", values))

    def only(self, **supported: Any) -> None:
        """Refuse other values than these, where the section says anything.

        Raises:
            NotReady: it has another value.
        """
        for key, value in supported.items():
            if self.get(key, value) != value:
                raise self.unsupported(key)

    def unsupported(self, key: str, value: object = None) -> NotReady:
        """What to raise about a value diffusers' classes do not know how to compute."""
        value = self[key] if value is None else value
        return NotReady(
            f"the configuration in {self.file} has {self.name}.{key} = {value!r}, which this server does not support"
        )

    def unread(self) -> list[str]:
        """What nobody has asked for, here and in the sections inside."""
        rest = [f"{self.name}.{key}" for key in self.values if key not in self.asked]
        return rest + [name for section in self.inner.values() for name in section.unread()]
