"""The result of one row of the table of tests."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Report:
    """What a row has done and found.

    Attributes:
        count: Attempts made.
        failures: What was wrong, with all that is needed to see it again.
        facts: Figures worth keeping.
    """

    count: int = 0
    failures: list[str] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)

    def expect(self, right: object, failure: str) -> None:
        """Note a failure unless something holds."""
        if not right:
            self.failures.append(failure)

    def add(self, fact: str, n: int = 1) -> None:
        """Count something."""
        value = self.facts.get(fact, 0)
        assert isinstance(value, int)
        self.facts[fact] = value + n
