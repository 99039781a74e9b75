"""The recipes for launchers parse, and every command in them has flags and files that exist."""

import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "launch"
PAGE = (ROOT / "docs" / "launch.md").read_text()


def commands(text):
  """Words after `python -m` of every command of ours in a shell text, variables as they are."""
  text = text.replace("\\\n", " ").replace("\\$", "$")
  found = re.findall(r"python -m (experiments\.\w+[^\n|&]*)", text)
  return [shlex.split(re.sub(r"""['"]\s*$|\.\.\.`.*$""", "", line)) for line in found]


def all_commands():
  found = [(f"{f.name}", c) for f in FOLDER.glob("*s*") if f.suffix != ".yaml"
           for c in commands(f.read_text())]  # fmt: skip
  found += [("launch.md", c) for c in commands(PAGE)]
  yaml = pytest.importorskip("yaml")
  job = yaml.safe_load((FOLDER / "gke-jobset.yaml").read_text())
  pod = job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
  return [*found, ("gke-jobset.yaml", pod["containers"][0]["command"][2:])]


def test_every_flag_of_every_recipe_is_one_that_the_command_knows():
  found = all_commands()
  assert {name for name, _ in found} == {f.name for f in FOLDER.iterdir()} | {"launch.md"}
  helps = {}
  for name, (module, *words) in found:
    if module not in helps:
      done = subprocess.run(
        [sys.executable, "-m", module, "--helpfull"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
      )  # fmt: skip
      helps[module] = set(re.findall(r"^\s+--(?:\[no\])?(\w+)", done.stdout, re.M))
    for word in words:
      flag = word.partition("=")[0].removeprefix("--").removeprefix("no")
      assert word.startswith("--") or word == "&", (name, word)
      assert flag.startswith("config.") or flag in helps[module] or word == "&", (name, word)


def test_configs_and_their_keys_exist():
  from experiments import flags

  for _, (module, *words) in all_commands():
    given = dict(w.removeprefix("--").split("=", 1) for w in words if "=" in w)
    if "config" in given:
      assert module == "experiments.train"
      known = flags.flatten(flags.load_config(str(ROOT / given["config"])).to_dict())
      assert {key.removeprefix("config.") for key in given if "config." in key} <= set(known)


@pytest.mark.parametrize("name", ["slurm.sbatch", "tpu_pod.sh"])
def test_shell_recipes_parse(name):
  subprocess.run(["bash", "-n", FOLDER / name], check=True)


def test_the_jobset_starts_again_what_was_preempted():
  yaml = pytest.importorskip("yaml")
  spec = yaml.safe_load((FOLDER / "gke-jobset.yaml").read_text())["spec"]
  job = spec["replicatedJobs"][0]["template"]["spec"]
  assert job["parallelism"] == job["completions"] and job["backoffLimit"] == 0
  command = job["template"]["spec"]["containers"][0]["command"]
  status = next(int(w.partition("=")[2]) for w in command if w.startswith("--preempted_status"))
  rules = job["podFailurePolicy"]["rules"]
  assert status != 0 and status in rules[0]["onExitCodes"]["values"]
  assert job["template"]["spec"]["restartPolicy"] == "Never"  # a policy for failures wants it
  slurm = (FOLDER / "slurm.sbatch").read_text()
  assert f"--preempted_status={status}" in slurm and f'"$status" -eq {status}' in slurm


def test_the_page_links_to_every_recipe():
  assert set(re.findall(r"\(launch/([\w.-]+)\)", PAGE)) == {f.name for f in FOLDER.iterdir()}
