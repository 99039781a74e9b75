"""A thread that writes streams to files while they go on; the newest state of each wins."""

import threading

from absl import logging


class Writer:
  """Runs `write()` functions one after the other, behind the back of whoever hands them in.

  At most one waits for each name: a disk slower than the streams skips states, never gathers them.

  Attributes:
    written: how many were written.
    error: the last failure as a sentence, or None. A full disk stops no stream.
  """

  def __init__(self):
    self.written, self.error = 0, None
    self._waiting = {}
    self._changed = threading.Condition()
    self._busy = self._stopped = False
    self._thread = threading.Thread(target=self._run, name="autosave", daemon=True)
    self._thread.start()

  def put(self, name, write):
    """Has `write()` called soon, in place of an earlier one of this name that still waits."""
    with self._changed:
      self._waiting[name] = write
      self._changed.notify_all()

  def flush(self):
    """Waits until everything handed in is on disk."""
    with self._changed:
      self._changed.wait_for(lambda: not self._waiting and not self._busy)

  def close(self):
    """Flushes and ends the thread."""
    self.flush()
    with self._changed:
      self._stopped = True
      self._changed.notify_all()
    self._thread.join()

  def _run(self):
    while True:
      with self._changed:
        self._busy = False
        self._changed.notify_all()
        self._changed.wait_for(lambda: self._waiting or self._stopped)
        if not self._waiting:
          return
        name = next(iter(self._waiting))
        write = self._waiting.pop(name)
        self._busy = True
      try:
        write()
        self.written += 1
      except Exception as error:
        self.error = f"The stream {name} could not be saved: {error}"
        logging.warning("%s", self.error)
