import torch

from polyfuse.fusion.proxy import ProxyFusion
from polyfuse.losses import proxy_loss

NAMES = ("b", "a")


def make() -> tuple[ProxyFusion, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    return ProxyFusion(NAMES, {"b": 3, "a": 4}, 6).eval(), {"b": torch.randn(5, 3), "a": torch.randn(5, 4)}


def test_complete_rows_are_those_of_concat() -> None:
    fusion, x = make()
    filled = torch.cat([fusion.norm[name](fusion.project[name](x[name])) for name in ("a", "b")], dim=1)
    torch.testing.assert_close(fusion(x).fused, fusion.joint(filled, torch.ones(5, 2, dtype=torch.bool)))


def test_an_empty_slot_holds_the_guess_from_the_other() -> None:
    fusion, x = make()
    out = fusion(x, torch.tensor([[True, False]] * 5))
    slot = fusion.norm["b"](fusion.project["b"](x["b"]))
    guess = fusion.token["a"].weight + fusion.guess["a"](slot)
    torch.testing.assert_close(out.info["proxies"][:, 1], guess)
    torch.testing.assert_close(out.info["slots"][:, 0], slot)
    expected = fusion.joint(torch.cat([guess, slot], dim=1), torch.tensor([[False, True]] * 5))
    torch.testing.assert_close(out.fused, expected)


def test_loss_counts_what_was_hidden_and_known() -> None:
    slots, proxies = torch.randn(3, 2, 4), torch.randn(3, 2, 4, requires_grad=True)
    hidden = torch.tensor([[True, False], [False, False], [True, True]])
    rows = proxy_loss(proxies, slots, hidden)
    cosine = torch.nn.functional.cosine_similarity(proxies, slots, dim=-1)
    expected = torch.stack([1 - cosine[0, 0], torch.zeros(()), (1 - cosine[2]).mean()])
    torch.testing.assert_close(rows, expected)
    torch.testing.assert_close(proxy_loss(2.5 * slots, slots, hidden), torch.zeros(3), atol=1e-6, rtol=0)
