"""The front end: the only places where a model enters."""

from snncc.frontend.fx import check_against, trace
from snncc.frontend.netx import read_netx

__all__ = ["check_against", "read_netx", "trace"]
