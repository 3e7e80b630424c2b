"""The front end: the only places where a model enters."""

from snncc.frontend.fx import check_against, trace
from snncc.frontend.netx import read_netx
from snncc.frontend.places import constructed

__all__ = ["check_against", "constructed", "read_netx", "trace"]
