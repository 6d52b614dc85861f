"""All targets by name."""

from collections.abc import Mapping

from fuzz import configuration, fields, listener, paths, readers
from fuzz.running import Promise

TARGETS: Mapping[str, Promise] = {
    "configuration": (configuration.DOCUMENTS, configuration.check),
    "paths": (paths.TARGETS, paths.check),
    "fields": (fields.FIELDS, fields.check),
    "readers": (readers.TEXTS, readers.check),
    "listener": (listener.CONVERSATIONS, listener.check),
}
