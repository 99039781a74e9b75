"""Splits the fused forward-and-tangent where autodiff wants its halves apart.

`jvp` alone keeps the fused sweep. To build a gradient, partial evaluation computes what is known
(the output) now and stages what is linear (the tangent) for the transpose: here forward_tangent
becomes forward and tangent. One rule serves traces, one jaxprs (remat), one removes dead code.
"""

from jax.extend.core import DropVar, Var, new_jaxpr_eqn, no_effects
from jax.interpreters import partial_eval as pe

from vidstep.attention.primitives import forward_p, forward_tangent_p, tangent_p


def _split_trace(trace, *args, spec, flags):
  x, dx = args[: spec.inputs], args[spec.inputs :]
  known = [t.is_known() for t in args]
  if all(known) or not all(known[: spec.inputs]):
    return trace.default_process_primitive(forward_tangent_p, args, dict(spec=spec, flags=flags))
  o, lse = forward_p.bind(*(t.pval.get_known() for t in x), spec=spec, flags=flags)
  staged = (*x, o, lse, *dx)
  return [o, lse, *trace.default_process_primitive(tangent_p, staged, dict(spec=spec, flags=flags))]


def _split_eqn(saveable, unknown, instantiated, eqn):
  n = eqn.params["spec"].inputs
  fresh = [v for v, done in zip(eqn.invars, instantiated, strict=True) if not done]
  fresh = [v for v in fresh if isinstance(v, Var)]
  if any(unknown[:n]):
    return None, eqn, [True] * 4, [True] * 4, fresh
  save = _saves(saveable(forward_p, *(v.aval for v in eqn.invars[:n]), **eqn.params))
  if not any(unknown):
    if save:
      return eqn, None, [False] * 4, [False] * 4, []
    return eqn, eqn, [False] * 4, [True] * 4, fresh
  outs = [Var(v.aval) if isinstance(v, DropVar) else v for v in eqn.outvars[:2]]
  known = _replace(eqn, forward_p, eqn.invars[:n], outs)
  if not save:
    return known, eqn, [False, False, True, True], [True] * 4, fresh
  staged = _replace(eqn, tangent_p, [*eqn.invars[:n], *outs, *eqn.invars[n:]], eqn.outvars[2:])
  return known, staged, [False, False, True, True], [False, False, True, True], [*fresh, *outs]


def _drop_dead(used, *rest):
  """A tangent nobody reads is not computed: what is left is the forward (remat recomputes it)."""
  eqn = rest[-1]  # jax 0.12 passes which inputs are live before it
  n = eqn.params["spec"].inputs
  if not any(used):
    return [False] * len(eqn.invars), None
  if any(used[2:]):
    return [True] * len(eqn.invars), eqn
  forward = _replace(eqn, forward_p, eqn.invars[:n], eqn.outvars[:2])
  return [i < n for i in range(len(eqn.invars))], forward


def _replace(eqn, prim, invars, outvars):
  return new_jaxpr_eqn(invars, outvars, prim, eqn.params, no_effects, eqn.source_info)


def _saves(policy) -> bool:
  """Whether a checkpoint policy, which may answer with a bool or an enum, saves this output."""
  return policy if isinstance(policy, bool) else "Saveable" in type(policy).__name__


pe.custom_partial_eval_rules[forward_tangent_p] = _split_trace
pe.partial_eval_jaxpr_custom_rules[forward_tangent_p] = _split_eqn
pe.dce_rules[forward_tangent_p] = _drop_dead
