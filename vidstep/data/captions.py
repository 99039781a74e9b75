"""What the Doom scenarios look like, in words: a few paraphrases each, so that prompts are real."""

import numpy as np

CAPTIONS = {
  "health_gathering": (
    "a wide open field of green slime under a dark night sky, enclosed by low stone walls",
    "green toxic floor, black sky and a mossy wall in the distance, with medkits lying around",
    "running across an acid green arena at night in search of health packs",
    "an outdoor square of green ooze with white medical kits",
  ),
  "health_gathering_supreme": (
    "a maze of grey stone pillars standing in green slime under a dark sky",
    "grey brick walls rise out of a poisonous green floor at night",
    "walking between grey stone blocks in a field of acid",
    "an outdoor labyrinth of grey stone with a green floor",
  ),
  "my_way_home": (
    "a brown maze of small rooms lit by orange lamps on dark walls",
    "walking through an indoor labyrinth of brown stone rooms and glowing lamps",
    "narrow corridors with brown brick walls, brown floor and bright orange lights",
    "inside a dim brown dungeon with flickering lamps",
  ),
  "deadly_corridor": (
    "a long brown corridor with armed soldiers on both sides",
    "enemies shoot from the alcoves of a dark brown hallway",
  ),
  "defend_the_center": (
    "the middle of a round sandy arena with demons coming closer",
    "a circular brown pit with a grey floor and monsters all around",
  ),
  "defend_the_line": (
    "a wide grey hall with red demons approaching from the far wall",
    "monsters walk towards a line across a grey room with brown walls",
    "a hall with a grey floor, a grey ceiling and rust-red side walls",
    "standing guard in a wide grey room between two reddish brown walls",
  ),
  "take_cover": (
    "a grey rectangular room whose monsters throw fireballs",
    "fireballs fly through a grey hall with brown walls",
  ),
  "predict_position": (
    "a large grey tech base hall with rows of red lights on the ceiling",
    "an industrial room with a grey cracked floor and a ceiling of red lamps",
    "inside a military base, red lights above and grey concrete below",
    "a wide concrete hangar under a dark ceiling full of red lamps",
  ),
  "basic": (
    "a small brown room with one monster at the far wall",
    "a brick chamber with a sandy floor and a dark ceiling",
    "a closed room of brown bricks, pale sand below and darkness above",
    "inside a brown brick cell with a light floor and a black ceiling",
  ),
}


def captions(scenario: str) -> tuple[str, ...]:
  """All that is said about a scenario; its name in words for one that has no captions here."""
  return CAPTIONS.get(scenario, (f"a game of {scenario.replace('_', ' ')}",))


def caption(scenario: str, seed: int) -> str:
  """The caption of the episode of this seed, one of `captions(scenario)`."""
  texts = captions(scenario)
  return texts[int(np.random.default_rng([seed, len(texts)]).integers(len(texts)))]
