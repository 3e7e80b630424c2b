"""The front end: the only place where a PyTorch model enters."""

from snncc.frontend.fx import check_against, trace

__all__ = ["check_against", "trace"]
