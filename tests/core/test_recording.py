from keyturn.core.events import Journal
from keyturn.core.http import Fields
from keyturn.core.recording import UNRECORDED, NoRecorder, Recorder, Recording

from tests.telemetry.samples import Arrived


def test_what_is_not_recorded_goes_on_as_it_came() -> None:
    """A caller's trace context among the rest: the very same fields."""
    fields: Fields = ((b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), (b"A", b"b"))
    recorder: Recorder = NoRecorder()
    recording: Recording = recorder.begin(Arrived("GET", fields))
    recording.waits()
    recording.waited()
    assert recording.tries("k0", "/me", fields) is fields
    recording.tried(200)
    recording.ended(Journal())
    assert recording.trace == ""


def test_a_journal_belongs_to_no_trace_unless_it_is_said() -> None:
    """So whoever makes one need not think of it."""
    assert Journal().recording is UNRECORDED
    assert Journal().trace == ""
