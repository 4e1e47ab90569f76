r"""What public names compute, as equations: `help()` says it in words, the reference sets it.

Keys are public names of the package, `explain.` before those of `rp.explain`; a test holds them to it.
"""

from __future__ import annotations

EQUATIONS: dict[str, str] = {
    "Linf": r"B_\varepsilon(x) = \{ z \in \mathrm{clip} : \max_i |z_i - x_i| \le \varepsilon \}",
    "L2": r"B_\varepsilon(x) = \{ z \in \mathrm{clip} : \sum_i (z_i - x_i)^2 \le \varepsilon^2 \}",
    "L1": r"B_\varepsilon(x) = \{ z \in \mathrm{clip} : \sum_i |z_i - x_i| \le \varepsilon \}",
    "Box": r"\{ z \in \mathrm{clip} : |z_i - x_i| \le \varepsilon\, r_i \text{ for every feature } i \}",
    "Bracket": r"\text{empirical} \le \text{true} \le \text{certified}",
    "margin_spec": r"(C z)_j = z_y - z_j, \qquad j \ne y",
    "Certificate": r"\text{margin} \le \min_{x' \in B(x)} \min_{j \ne y} z_y(x') - z_j(x')",
    "critical_radius": r"\varepsilon^*(x) = \inf \{ \varepsilon : \exists\, x' \in B_\varepsilon(x), \;"
    r" \arg\max_j z_j(x') \ne y \}",
    "ExplanationCertificate": r"\text{width}_i = \max_{x' \in B(x)} \partial_i f(x') - \min_{x' \in B(x)}"
    r" \partial_i f(x') \le \delta",
    "MixedLoss": r"\gamma\, L(y, f(x)) + (1 - \gamma)\, L(y, y_{\mathrm{worst}})",
    "GradientCertLoss": r"\alpha \, \mathrm{width}( \{ \nabla f(x') : x' \in B(x) \} )",
    "SGD": r"v \leftarrow \mu v + g + \lambda\theta, \qquad \theta \leftarrow \theta - \eta v",
    "Adam": r"m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad s \leftarrow \beta_2 s + (1 - \beta_2) g^2, \quad"
    r" \theta \leftarrow \theta - \eta \frac{m / (1 - \beta_1^t)}{\sqrt{s / (1 - \beta_2^t)} + \epsilon}",
    "abstract_gradient_training": r"\theta_t(D') \in [\underline\theta_t, \overline\theta_t] \quad \text{for every"
    r" data set } D' \in B(D) \text{ and every update } t",
    "explain.Saliency": r"|\nabla_x f(x)|",
    "explain.InputXGradient": r"x \odot \nabla_x f(x)",
    "explain.IntegratedGradients": r"(x - x_0) \odot \sum_k w_k \, \nabla f(x_0 + \alpha_k (x - x_0))",
    "explain.SmoothGrad": r"\frac{1}{n} \sum_{k=1}^{n} \nabla f(x + \xi_k), \qquad \xi_k \sim N(0, \sigma^2)",
}
