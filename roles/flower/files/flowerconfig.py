"""What no option of Flower's can say; its options are in flower.env. Flower runs this file as it starts.

It replaces the loop that receives the nodes' heartbeats and events, which has two faults. It doubles the
pause between two attempts to reach the broker, without a bound: after an outage of an hour, the pages stay as
they were for up to another hour. And it only ever reads: where a connection dies without a word (a host lost
its power, a firewall forgot), it listens on for hours.

A name here that is also an option's would set that option, so modules such as logging are not imported whole.
"""

from logging import getLogger
from time import sleep

from celery.events import EventReceiver
from flower.events import Events

PAUSE = 5  # seconds between two attempts
SILENCE = 60  # seconds without a heartbeat of any node, after which the connection is taken for dead


def receive_for_ever(events: Events) -> None:
    """Receive events; when the broker is gone, try again until it is back."""
    while True:
        try:
            with events.capp.connection() as connection:
                receiver = EventReceiver(connection, handlers={"*": events.on_event}, app=events.capp)
                receiver.capture(limit=None, timeout=SILENCE, wakeup=True)
        except TimeoutError:
            getLogger("flower.events").info("No node was heard for %d seconds. Connecting anew.", SILENCE)
        except Exception as error:  # whatever it is, this thread has to go on
            getLogger("flower.events").error(
                "Failed to receive events: %s. Trying again in %d seconds.", error, PAUSE
            )
            sleep(PAUSE)


Events.run = receive_for_ever
