"""What a host application imports: thin clients of the running system. No database, no second implementation.

`app` is a namespace package, so that this one can lie beside a host's own `app`. Two things of a host can hide ours: a
regular `app` package (with an `__init__.py`), and a module called `protocol` or `actors`. The first makes this import
fail by itself; the way out is ``__path__ = pkgutil.extend_path(__path__, __name__)`` in that `__init__.py`. The second
is told apart here, before anything strange happens.
"""

import os
from types import ModuleType

import actors
import protocol


def _refuse_strangers(*modules: ModuleType) -> None:
    """Raise unless `modules` lie beside this package.

    Raises:
        ImportError: naming the one that hides ours, and the ways out.
    """
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    for module in modules:
        found = getattr(module, "__file__", None)
        if found is None or os.path.dirname(os.path.dirname(os.path.realpath(found))) != root:
            name = module.__name__
            raise ImportError(
                f"app.reliability needs its own {name!r} in {root}, but Python found {found or 'another one'} first. "
                f"Rename that {name!r}, or let {root} come before it in sys.path.",
                name=name,
                path=found,
            )


_refuse_strangers(protocol, actors)
