"""Named implementations, one registry for each choice in the config."""

from collections.abc import Callable


class Registry(dict):
    """Maps the values of one config option to what they stand for.

    Args:
        option: name of the option, as the user writes it; errors name it.
    """

    def __init__(self, option: str):
        super().__init__()
        self.option = option

    def register(self, name: str) -> Callable:
        def add(implementation):
            if name in self:
                raise ValueError(f"{self.option}={name} is registered twice")
            self[name] = implementation
            return implementation

        return add

    def lookup(self, name: str):
        """Returns the implementation of ``name``; a ValueError lists the valid names."""
        if name not in self:
            raise ValueError(
                f"unknown {self.option}={name!r}; valid values: {', '.join(sorted(self))}"
            )
        return self[name]
