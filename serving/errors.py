"""Every error that a user can mend, as one tree.

    WorkbenchError          one line: what is wrong, the value, the remedy; the command line exits with 2
    ├── InputError          a value, path or option that cannot work
    ├── ModelError          no such model, or one that cannot be used as asked
    ├── EngineError         vLLM did not start, died, or refused
    ├── MeasurementError    a run that must not be trusted
    ├── ExtrapolationError  a prediction outside what was measured
    ├── InfeasibleError     nothing in the search space keeps the SLO
    ├── BundleError         a bundle that is incomplete or was changed
    └── KnowledgeError      a knowledge base that is out of reach (serving/gateway/knowledge)

It stands in the package that everything else may import.
"""


class WorkbenchError(Exception):
    """What is wrong, with the offending value, and what to do about it."""

    def __init__(self, problem: str, *, remedy: str) -> None:
        super().__init__(f"{problem.rstrip('.')}. {remedy}")
        self.problem = problem
        self.remedy = remedy

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of the frames: the user can mend it, and they do not help."""
        return [f"{type(self).__name__}: {self.problem.rstrip('.')}.", self.remedy]

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross processes whole."""
        return _again, (type(self), self.problem, self.remedy)


def _again(kind: type[WorkbenchError], problem: str, remedy: str) -> WorkbenchError:
    return kind(problem, remedy=remedy)


class InputError(WorkbenchError):
    """A value, path or option that cannot work."""


class ModelError(WorkbenchError):
    """No such model, or one that cannot be used as asked."""


class EngineError(WorkbenchError):
    """vLLM did not start, died, or refused."""


class MeasurementError(WorkbenchError):
    """A run that must not be trusted."""


class ExtrapolationError(WorkbenchError):
    """A prediction outside what was measured."""


class InfeasibleError(WorkbenchError):
    """Nothing in the search space keeps the SLO."""


class BundleError(WorkbenchError):
    """A bundle that is incomplete or was changed."""
