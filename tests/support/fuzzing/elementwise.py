"""Steps that act on each value: activations with usual and odd parameters, in every way of writing, and casts."""

from __future__ import annotations

from random import Random

from support.fuzzing.source import Draft, step

SLOPES = (0.01, 0.2, 0.9, 1.0, 1.5, 4.0, -0.3, -2.0)
ALPHAS = (0.3, 1.0, 2.5)
BETAS = (0.5, 1.0, 3.0, -1.0)
THRESHOLDS = (20.0, 5.0, 1.0, 0.5, 0.1)
LIMITS = ((-1.0, 1.0), (-0.2, 0.5), (0.0, 6.0), (0.3, 0.8), (-3.0, -0.1))


def function(random: Random, of: str, *, rare: bool = False) -> str:
    """An activation of an expression, as code."""
    slope, alpha, beta = random.choice(SLOPES), random.choice(ALPHAS), random.choice(BETAS)
    threshold, (low, high) = random.choice(THRESHOLDS), random.choice(LIMITS)
    usual = (
        f"torch.relu({of})", f"F.relu({of})", f"({of}).relu()", f"torch.tanh({of})", f"({of}).sigmoid()",
        f"F.gelu({of})", f"F.gelu({of}, approximate='tanh')", f"F.silu({of})", f"F.elu({of}, {alpha})",
        f"F.leaky_relu({of}, {slope})", f"F.leaky_relu({of}, 0.1)", f"F.softplus({of})",
        f"F.softplus({of}, beta={beta}, threshold={threshold})", f"F.hardtanh({of}, {low}, {high})",
        f"({of}).clamp({low}, {high})", f"({of}).clamp(min={low})", f"torch.clamp({of}, max={high})", f"F.relu6({of})",
        f"(({of}) > {low}).to(({of}).dtype) * ({of})", f"F.celu({of}, {alpha})", f"F.selu({of})", f"F.mish({of})",
        f"F.hardswish({of})", f"F.hardsigmoid({of})", f"({of}).abs()", f"torch.exp(torch.tanh({of}))",
        f"torch.sin({of})", f"torch.cos(3 * ({of}))", f"({of}) ** 2", f"1 / (1 + ({of}).abs())",
        f"torch.maximum({of}, torch.zeros_like({of}))", f"F.prelu({of}, torch.tensor([{slope}], dtype=({of}).dtype))",
        f"torch.maximum({of}, torch.tanh({of}))", f"torch.sqrt(({of}) * ({of}) + 0.5)",
    )  # fmt: skip
    odd = (
        f"F.threshold({of}, {low}, {high})", f"F.softsign({of})", f"F.logsigmoid({of})", f"F.tanhshrink({of})",
        f"F.softshrink({of}, 0.2)", f"F.hardshrink({of}, 0.2)", f"torch.log1p(({of}).abs())", f"({of}) ** 3",
        f"torch.log(0.1 + ({of}).abs())", f"torch.rsqrt(({of}).square() + 0.1)", f"(1.5 + torch.tanh({of})) ** -0.5",
        f"torch.minimum({of}, -({of}).abs())", f"({of}).square()",
        f"torch.where(({of}) > {low}, {of}, {slope} * ({of}))",
        f"torch.atan({of})", f"torch.erf({of})", f"torch.sign({of})",
        f"torch.heaviside({of}, torch.zeros_like({of}))", f"torch.round({of})", f"torch.floor(3 * ({of})) / 3",
        f"torch.reciprocal(1.5 + torch.tanh({of}))", f"F.normalize({of}, dim=1)",
        f"({of}) / (1 + ({of}).norm(dim=1, keepdim=True))", f"({of}) - ({of}).amax(1, keepdim=True)",
        f"torch.min({of}, 1, keepdim=True)[0] * ({of})", f"(0.3 + ({of}).abs()) ** torch.tanh({of})",
        f"torch.clamp({of}, min=torch.tensor({low}, dtype=({of}).dtype))",
    )  # fmt: skip
    if not rare and random.random() < 0.5:
        usual = (f"torch.relu({of})", f"F.relu({of})", f"torch.tanh({of})", f"torch.sigmoid({of})")
    return random.choice(odd if rare else usual)


def module(random: Random, *, rare: bool = False) -> str:
    """A module without parameters of its own, as code."""
    slope, alpha, beta = random.choice(SLOPES), random.choice(ALPHAS), random.choice(BETAS)
    threshold, (low, high) = random.choice(THRESHOLDS), random.choice(LIMITS)
    inplace = random.random() < 0.4
    usual = (
        f"nn.ReLU(inplace={inplace})", "nn.ReLU()", "nn.Tanh()", "nn.Sigmoid()", "nn.GELU()",
        "nn.GELU(approximate='tanh')", f"nn.SiLU(inplace={inplace})", f"nn.ELU({alpha}, inplace={inplace})",
        f"nn.LeakyReLU({slope}, inplace={inplace})", "nn.Softplus()", f"nn.Softplus({beta}, {threshold})",
        f"nn.Hardtanh({low}, {high}, inplace={inplace})", f"nn.ReLU6(inplace={inplace})", "nn.Hardsigmoid()",
        f"nn.CELU({alpha}, inplace={inplace})", f"nn.SELU(inplace={inplace})", "nn.Mish()", "nn.Hardswish()",
        "nn.PReLU()", "nn.PReLU(init=-0.7)",
    )  # fmt: skip
    odd = (
        f"nn.CELU(-{alpha})", f"nn.Threshold({low}, {high})", f"nn.RReLU({slope}, {slope} + 0.5)", "nn.PReLU(init=1.6)",
        "nn.LogSigmoid()", "nn.Softsign()", "nn.Hardshrink()", "nn.Softshrink()", "nn.Tanhshrink()",
    )  # fmt: skip
    if not rare and random.random() < 0.5:
        usual = (f"nn.ReLU(inplace={inplace})", "nn.Tanh()", "nn.Sigmoid()")
    return random.choice(odd if rare else usual)


@step(weight=4)
def activated(draft: Draft, random: Random) -> None:
    draft.run(f"h = {function(random, 'h')}")


@step(weight=4)
def activation_module(draft: Draft, random: Random) -> None:
    draft.run(f"h = {draft.keep(module(random))}(h)")


@step(rare=True)
def odd_activation(draft: Draft, random: Random) -> None:
    if random.random() < 0.6:
        draft.run(f"h = {function(random, 'h', rare=True)}")
    else:
        draft.run(f"h = {draft.keep(module(random, rare=True))}(h)")


@step()
def jumping(draft: Draft, random: Random) -> None:
    """A softplus whose jump, at the threshold over beta, is near values that inputs often have."""
    beta, threshold = random.choice((0.5, 1.0, 3.0, 10.0)), random.choice((0.1, 0.5, 1.0))
    shift = threshold / beta - random.choice((0.0, 0.5, 1.0))
    if random.random() < 0.6:
        draft.run(f"h = F.softplus(h + {shift}, beta={beta}, threshold={threshold})")
    else:
        draft.run(f"h = {draft.keep(f'nn.Softplus({beta}, {threshold})')}(h + {shift})")


@step(weight=0.6)
def cast(draft: Draft, random: Random) -> None:
    narrow = random.choice(
        (
            "h = h.to(torch.float16).to(h.dtype)", "h = h.half().type_as(h)", "h = h.to(torch.bfloat16).to(h.dtype)",
            "h = (3 * h).int().to(h.dtype)", "h = h + h.to(torch.int64)", "h = h.to(torch.float16) * h",
            "h = h.double().to(h.dtype)", "h = h.type_as(torch.zeros(1, dtype=torch.float16)).to(h.dtype)",
            "h = h.to(h.dtype)", "h = h.to('cpu')", "h = h.detach()",
        )
    )  # fmt: skip
    draft.run(narrow)


@step(weight=0.8)
def scaled(draft: Draft, random: Random) -> None:
    temperature = draft.keep(str(random.choice((0.1, 0.5, 2.0, 8.0))))
    draft.run(random.choice((f"h = h / {temperature}", f"h = {temperature} * h - 0.2", f"h = -h / {temperature} + 1")))


@step(weight=0.6)
def in_place(draft: Draft, random: Random) -> None:
    """Code that changes `h`, which is the input itself where it comes first, and may be read before and after."""
    kept = random.random() < 0.4
    if kept:
        draft.run("r = h")
    draft.run(
        random.choice(
            (
                "h = h.relu_()", "h = F.relu(h, inplace=True)", "h += 0.3", "h *= 0.5", "h.mul_(2.0)",
                "h.clamp_(-0.4, 0.6)",
                "h = torch.relu_(h)", "h[:, 0] = 0.25", "h = h.clone(); h[:, 1:] *= 2", "h = F.leaky_relu_(h, 0.2)",
                "h = h.sub_(0.1).tanh_()", "h -= h.relu()", "h[:, :1].mul_(3.0)",
            )
        )
    )  # fmt: skip
    if kept:
        draft.run(random.choice(("h = h + r", "h = h - 0.5 * r", "h = torch.cat((h, r), 1)[:, : h.shape[1]]")))
