"""Writes tests/data/schedule.safetensors: diffusers' schedulers run on an eps that C can compute too.

The configuration is that of SD1.5's scheduler_config.json, given to each scheduler as diffusers' from_config would:
beta_start 0.00085, beta_end 0.012, scaled_linear, set_alpha_to_one and clip_sample false, steps_offset 1, and their own
defaults for the rest (final sigma zero, lower_order_final, solver order 2, midpoint and bh2), but for:
  discrete   timestep_spacing "linspace". LCM spaces by itself, whatever that says.
  karras     use_karras_sigmas. Euler a has none: it gets the levels of Euler.
  reference  timesteps range(0, 1000, 1000 // S) + 1, as custom timesteps where the scheduler takes them, else set on
             it as it would set its own. Spacing "leading", which decides Euler's first scale.
eps = 0.3 x + 0.5 sin(0.01 t + 0.7 j), x what the network sees, j the index of the element.

Stored for SAMPLER.SCHEDULER.STEPS: the latent after each step, variance preserving, and .t the timesteps.
"""
import os
import warnings

import diffusers
import numpy as np
import torch
from diffusers import (DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler,
                       EulerDiscreteScheduler, LCMScheduler, UniPCMultistepScheduler)
from safetensors.torch import save_file

import job

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tests/data/schedule.safetensors")
N = 24
STEPS = (1, 2, 5, 10, 20, 30)
BETAS = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
             steps_offset=1)
CLASSES = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler, "euler_a": EulerAncestralDiscreteScheduler,
           "dpm++2m": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler, "lcm": LCMScheduler}
COMBINATIONS = [(s, k) for s in CLASSES for k in ("reference", "discrete", "karras")
                if not (k == "karras" and s in ("ddim", "lcm"))]


def eps_of(x, t):
    return 0.3 * x + 0.5 * torch.sin(0.01 * float(t) + 0.7 * torch.arange(N, dtype=torch.float64)).to(x.dtype)


def reference_timesteps(steps):
    return [t + 1 for t in range(0, 1000, 1000 // steps)][::-1]


def make(sampler, scheduler, steps):
    options = dict(BETAS)
    if sampler in ("ddim", "lcm"):
        options.update(set_alpha_to_one=False, clip_sample=False)
    if scheduler == "karras" and sampler != "euler_a":
        options["use_karras_sigmas"] = True
    options["timestep_spacing"] = "leading" if scheduler == "reference" else "linspace"
    s = CLASSES[sampler](**options)
    if scheduler != "reference":
        s.set_timesteps(steps)
        if scheduler == "karras" and sampler == "euler_a":
            donor = make("euler", "karras", steps)
            s.sigmas, s.timesteps = donor.sigmas, donor.timesteps
        return s
    ts = reference_timesteps(steps)
    if sampler in ("euler", "dpm++2m", "lcm"):
        s.set_timesteps(timesteps=ts)
        return s
    s.set_timesteps(len(ts))
    if sampler == "ddim":
        s.timesteps = torch.tensor(ts)
    else:
        sigmas = ((1 - s.alphas_cumprod) / s.alphas_cumprod) ** 0.5
        s.sigmas = torch.cat([sigmas[torch.tensor(ts)], torch.zeros(1)])
        s.timesteps = torch.tensor(ts, dtype=s.timesteps.dtype)
    return s


class Draws:
    """Stands in for diffusers' randn_tensor."""

    def __init__(self, noise):
        self.noise, self.i = noise, 0

    def __call__(self, shape, **_):
        self.i += 1
        return self.noise[self.i - 1].reshape(shape)


def run(sampler, scheduler, steps, x_t, noise, eta=0.0, network=None):
    """Latents after each step, and the timesteps. network: eps of (latents, timestep, steps done, steps)."""
    s = make(sampler, scheduler, steps)
    draws = Draws(noise)
    diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor = draws
    diffusers.schedulers.scheduling_lcm.randn_tensor = draws
    x = x_t * s.init_noise_sigma
    kept = []
    exploding = sampler.startswith("euler")
    for i, t in enumerate(s.timesteps):
        seen = s.scale_model_input(x, t)
        e = network(seen, t, i, len(s.timesteps)) if network else eps_of(seen, t)
        extra = {"eta": eta, "variance_noise": noise[i]} if sampler == "ddim" and eta else {}
        x = s.step(e, t, x, **extra).prev_sample
        kept.append(x / (s.sigmas[i + 1] ** 2 + 1) ** 0.5 if exploding else x)
    return torch.cat(kept), s.timesteps.double().float()


def run_reference_ddim(steps, x_t, noise, eta):
    """diffusers' DDIM counts 1000 // S down from each timestep for S that it was set to: where the reference runs more
    steps than S, that is another number. Written out, then; compared with diffusers where both are the same."""
    ac, ts = job.alphas_cumprod(), reference_timesteps(steps)
    x, kept = x_t.double(), []
    for i, t in enumerate(ts):
        a, prev = ac[t], ac[ts[i + 1]] if i + 1 < len(ts) else ac[0]
        e = eps_of(x, t)
        sigma = eta * ((1 - prev) / (1 - a) * (1 - a / prev)).sqrt()
        x = prev.sqrt() * (x - (1 - a).sqrt() * e) / a.sqrt() + (1 - prev - sigma ** 2).sqrt() * e + sigma * noise[i]
        kept.append(x)
    return torch.cat(kept).float(), torch.tensor(ts).float()


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    diffusers.logging.set_verbosity_error()
    g = torch.Generator().manual_seed(11)
    shape = (1, 1, 1, N)
    x_t, noise = torch.randn(shape, generator=g), torch.randn((40,) + shape, generator=g)
    out = {"x_T": x_t.reshape(-1), "noise": noise.reshape(40, N)}
    for sampler, scheduler in COMBINATIONS:
        for steps in STEPS:
            etas = (0.0, 0.7) if sampler == "ddim" else (0.0,)
            for eta in etas:
                name = f"{sampler}.{scheduler}.{steps}" + (".eta" if eta else "")
                if (sampler, scheduler) == ("ddim", "reference"):
                    x, t = run_reference_ddim(steps, x_t, noise, eta)
                    if 1000 % steps == 0:
                        theirs = run(sampler, scheduler, steps, x_t, noise, eta)[0]
                        assert (theirs - x).abs().max() < 2e-5, name
                else:
                    x, t = run(sampler, scheduler, steps, x_t, noise, eta)
                assert torch.isfinite(x).all(), name
                out[name], out[name + ".t"] = x.reshape(-1, N).float().contiguous(), t
                if steps == 20:
                    print(f"{name:26} last latent std {x[-1].std():.3f} max {x.abs().max():.2f} t {t[:3].tolist()}")
    save_file(out, OUT)
    os.chmod(OUT, 0o644)
    print(os.path.getsize(OUT), "bytes")


if __name__ == "__main__":
    main()
