"""What a detector says, and the table of thresholds above which it speaks."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
  """When a detector speaks. Ratios unless said otherwise."""

  probes: int = 2  # a finding about samples must hold at so many probes in a row
  grace: float = 0.25  # share of the run in which what was never there is not missed
  grace_probes: int = 4  # and probes that must have been seen by then
  had: float = 0.35  # of real: what was here once was lost, and is back when it is here again
  sound: float = 0.5  # what rises must have been as near to real as this share of its limit

  static: float = 0.2  # motion / real, below
  flicker: float = 1.0  # motion / real - 1, above
  alike: float = 0.2  # diversity / real, below
  alike_fall: float = 0.4  # and that below its own best
  faded: float = 0.5  # contrast or spread / real, below
  faded_fall: float = 0.6  # and that below its own best

  clipped: float = 0.15  # share of clipped values above real's, absolute
  contrast: float = 0.5  # contrast / real - 1, above
  saturation: float = 0.2  # mean HSV saturation above real's, absolute
  burnt: float = 0.4  # share of clipped values above real's that is called a collapse, absolute

  windows: int = 6  # windows of updates that a trend needs
  trend: int = 40  # updates of student and fake that are compared by quarters, absolute
  lag_loss: float = 1.3  # the fake's loss in the last quarter / in the first, medians, above
  lag_gap: float = 1.3  # the gap in the last quarter / in the middle half, medians, above
  right: float = 0.99  # share of a critic's verdicts that are right, above
  missed: int = 20  # student updates without one of the fake, absolute
  explosion: float = 10.0  # both last windows / start of the run (of a gap: its median), above
  blown: float = 100.0  # the same, called a collapse
  silence: float = 1e-4  # gradient norm now / the upper quartile of its windows, below
  plateau: float = 0.95  # loss of the noise bin now / at its start, above
  others: float = 0.6  # while the mean of the other bins' ratios is below


LIMITS = Limits()


@dataclasses.dataclass(frozen=True)
class Finding:
  """One thing that is wrong.

  Attributes:
    name: stable, such as "diversity" or "explosion/student".
    severity: "warning", or "collapse" where going on is a waste of time.
    since: step at which it began, as far as the probes can tell.
    seen: what was measured.
    cause: the likely one.
    advice: what to try, in config keys.
  """

  name: str
  severity: str
  since: int
  seen: str
  cause: str
  advice: str

  @property
  def text(self):
    """One paragraph: what was seen, since when, the likely cause, what to try."""
    seen = self.seen[:1].upper() + self.seen[1:]
    return f"{seen}, since step {self.since}. {self.cause} {self.advice}"
