"""How many programs this process has compiled: what must not grow while something streams."""

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_count = 0


def compilations() -> int:
  """Programs compiled (or read from the compilation cache) since this module was imported.

  All of the process, also the small programs of operations outside `jax.jit`: whoever asserts that
  nothing compiles wants to hear of those, too.
  """
  return _count


def _listen(event, duration, **_):
  global _count
  del duration
  _count += event == _EVENT


jax.monitoring.register_event_duration_secs_listener(_listen)
