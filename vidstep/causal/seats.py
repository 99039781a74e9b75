"""Which sessions an engine has, and where: each in a row of its batch, or paused beside it."""

import secrets


class Seats:
  """Rows of a batch and who sits in them. Only the engine changes it, under its lock.

  Args:
    rows: of the batch.
  """

  def __init__(self, rows: int):
    self._rows = [None] * rows
    self._parked = set()

  def __len__(self):
    return len(self._rows)

  @property
  def sessions(self) -> list:
    """All, paused ones included."""
    return [s for s in self._rows if s is not None] + list(self._parked)

  @property
  def running(self) -> list:
    """(row, session) of those that are not paused."""
    return [(row, s) for row, s in enumerate(self._rows) if s is not None]

  @property
  def free(self) -> int:
    """Rows without a session."""
    return self._rows.count(None)

  def find(self) -> int:
    """A row that is free.

    Raises:
      RuntimeError: if there is none.
    """
    if not self.free:
      raise RuntimeError(
        f"All {len(self._rows)} sessions are taken: close or pause one, or build the Engine with "
        "more."
      )
    return self._rows.index(None)

  def take(self, row, session):
    """Seats a session in a row that is free."""
    session._row = row
    self._rows[row] = session
    self._parked.discard(session)

  def leave(self, session, *, paused=False):
    """Frees the session's row, if it has one; paused, it stays one of the engine's."""
    if session._row is not None:
      self._rows[session._row] = None
      session._row = None
    (self._parked.add if paused else self._parked.discard)(session)

  def name(self, name: str | None) -> str:
    """A name that is free; by default one that no autosave of an earlier engine has either.

    Raises:
      ValueError: if it is taken, or cannot be part of a file's name.
    """
    name = secrets.token_hex(4) if name is None else name
    if not name or any(c in name for c in "/\\\0") or name in {s.name for s in self.sessions}:
      raise ValueError(f"name={name!r} must be unique, not empty, and without slashes.")
    return name
