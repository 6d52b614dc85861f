from keyturn.config import Config
from keyturn.core.model import SECOND
from keyturn.web.bounds import Bounds


def test_defaults_are_those_of_the_configuration() -> None:
    """A listener without settings of its own, such as the admin's, is as careful as one with them."""
    inbound = Config.model_validate({}).inbound
    assert Bounds() == Bounds(
        inbound.max_connections,
        inbound.max_connections_per_peer,
        inbound.max_head,
        inbound.max_fields,
        inbound.max_target,
        inbound.head_timeout / SECOND,
        inbound.write_timeout / SECOND,
        inbound.keep_alive / SECOND,
    )
