"""Worlds that players kept: one file each, the newest few, under names that the server gives."""

import pathlib
import threading

from vidstep.files import write_text


class Saves:
  """A folder of saved worlds.

  Args:
    folder: made when the first world is saved.
    most: worlds that are kept; the oldest makes room.
  """

  def __init__(self, folder, most: int = 20):
    self._folder, self._most = pathlib.Path(folder).absolute(), most
    self._lock = threading.Lock()

  def names(self) -> list[str]:
    """Names of the worlds, the newest first."""
    return sorted((path.stem for path in self._folder.glob("world-*.txt")), reverse=True)

  def save(self, session, scenario: str) -> str:
    """Saves a session and its scenario's name; returns the name it can be found by."""
    with self._lock:
      self._folder.mkdir(parents=True, exist_ok=True)
      last = self.names()[:1]
      name = f"world-{int(last[0].removeprefix('world-')) + 1 if last else 1:04d}"
      session.save(self._folder / f"{name}.stream")
      write_text(self._folder / f"{name}.txt", scenario)  # last: it makes the world known
      for old in self.names()[self._most :]:
        for path in self._folder.glob(f"{old}.*"):
          path.unlink()
    return name

  def find(self, name: str) -> tuple[pathlib.Path, str]:
    """The file of a saved world and its scenario.

    Raises:
      ValueError: there is none of this name.
    """
    if name not in self.names():
      raise ValueError(f"There is no saved world {name[:40]!a}.")
    return self._folder / f"{name}.stream", (self._folder / f"{name}.txt").read_text()
